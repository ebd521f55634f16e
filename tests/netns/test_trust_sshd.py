"""First contact with OpenSSH's own server, which knows other users and passwords than the machine it runs on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked
from flannel_lab import until

from kubewright.files import write_file
from kubewright.trust.contact import Contact, Plan, meet, record
from kubewright.trust.target import Settings

PASSWORD = "correct horse"
# sshd sees the files of its own directory in the place of the machine's, which never change.
START = """\
set -e
for file in passwd shadow; do mount --bind "$1/$file" /etc/$file; done
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec "$2" -D -e -f "$1/sshd_config"
"""


def sshd_program() -> tuple[str, dict[str, str]]:
    installed = shutil.which("sshd", path="/usr/sbin:/sbin")
    if installed:
        return installed, dict(os.environ)
    root = unpacked("sshd", ("openssh-server", "libwrap0"))
    libraries = next((root / "usr/lib").glob("*-linux-gnu"))
    return str(root / "usr/sbin/sshd"), {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)], check=True)
    return path.with_name(path.name + ".pub").read_text()


class Server:
    """root and admin with the same password, each with a home of its own below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inventory = path / "inventory"
        self.operator = path / "operator"
        (self.operator / ".ssh").mkdir(parents=True)
        self.private = self.operator / ".ssh" / "id_ed25519"
        self.public = make_key(self.private)
        self.port = 0
        for kind in ("rsa", "ecdsa", "ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path / f"host_{kind}")], check=True)
        users = {"root": 0, "admin": 1000, "sshd": 65000, "nobody": 65534}
        secret = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
        ).stdout.strip()
        for name, uid in users.items():
            self.home(name).mkdir()
            os.chown(self.home(name), uid, uid)
        lines = [f"{name}:x:{uid}:{uid}::{self.home(name)}:/bin/sh\n" for name, uid in users.items()]
        (path / "passwd").write_text("".join(lines))
        (path / "shadow").write_text("".join(f"{n}:{secret}:20000:0:99999:7:::\n" for n in ("root", "admin")))

    def home(self, user: str) -> Path:
        return self.path / f"home-{user}"

    @contextmanager
    def running(self, *options: str) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", self.port)) as probe:
            self.port = probe.getsockname()[1]
        lines = [f"Port {self.port}", "ListenAddress 127.0.0.1", "UsePAM no", "PidFile none", "PermitRootLogin yes"]
        lines = [*options, *lines, *(f"HostKey {self.path}/host_{kind}" for kind in ("rsa", "ecdsa", "ed25519"))]
        (self.path / "sshd_config").write_text("\n".join([*lines, ""]))
        program, environment = sshd_program()
        namespace = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", START, "sh"]
        log = self.path / "sshd.log"
        with (
            log.open("w") as stream,
            subprocess.Popen([*namespace, str(self.path), program], env=environment, stderr=stream) as process,
        ):
            try:
                until(10, lambda: "Server listening" in log.read_text() or process.poll() is not None, "sshd listens")
                assert process.poll() is None, log.read_text()
                yield
            finally:
                process.terminate()

    def meet(self, user: str = "root", arguments: str = "", **fields: Any) -> Contact:
        shared = f"-F /dev/null -o UserKnownHostsFile={self.inventory}/known_hosts -o IdentityFile={self.private}"
        settings = Settings(
            "m1",
            "127.0.0.1",
            self.inventory,
            **{"port": self.port, "user": user, "arguments": f"{arguments} {shared}", "password": PASSWORD, **fields},
        )
        contact = meet(settings, Plan(self.operator))
        record([contact], write_file)
        return contact

    def ssh(self, user: str) -> str:
        command = ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        command += ["-o", f"UserKnownHostsFile={self.inventory}/known_hosts", "-i", str(self.private)]
        command += ["-o", "GlobalKnownHostsFile=/dev/null", "-p", str(self.port), f"{user}@127.0.0.1", "id -un"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout + done.stderr


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    # sshd's users other than root have to get to their homes.
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    return Server(tmp_path)


def problems(contact: Contact) -> str:
    return "\n".join(map(str, contact.problems))


def test_by_password_and_then_by_key(server: Server) -> None:
    with server.running():
        first = server.meet()
        assert problems(first) == ""
        assert (first.means, first.key, first.root, first.records) == ("password", "installed", "root", True)
        assert first.machine
        assert first.machine.python_is_new_enough
        assert server.ssh("root") == "root\n"
        second = server.meet()
    assert problems(second) == ""
    assert (second.means, second.changed, second.records) == ("key id_ed25519", False, False)
    assert (server.home("root") / ".ssh/authorized_keys").read_text() == server.public


def test_a_user_who_may_not_become_root_gets_the_key_all_the_same(server: Server) -> None:
    with server.running():
        contact = server.meet("admin")
        assert next(problem.message for problem in contact.problems).startswith("admin is not root, and")
        assert (contact.root, contact.key) == ("no", "installed")
        assert server.ssh("admin") == "admin\n"
    assert (server.home("admin") / ".ssh/authorized_keys").stat().st_uid == 1000


def test_root_by_key_only(server: Server) -> None:
    with server.running("PermitRootLogin prohibit-password"):
        contact = server.meet()
    assert "the password is refused for root" in problems(contact)
    assert "PermitRootLogin yes" in problems(contact)


def test_a_server_that_hangs_up_after_two_failures(server: Server) -> None:
    others = [server.path / f"id{number}" for number in range(5)]
    for path in others:
        make_key(path)
    with server.running("MaxAuthTries 2"):
        contact = server.meet(arguments=" ".join(f"-o IdentityFile={path}" for path in others))
    assert problems(contact) == ""
    assert contact.means == "password"


def test_a_home_that_others_may_write(server: Server) -> None:
    server.home("root").chmod(0o777)
    with server.running():
        contact = server.meet()
    assert "sshd does not accept it" in problems(contact)
    assert "StrictModes" in problems(contact)


def test_a_key_and_a_password(server: Server) -> None:
    with server.running():
        assert problems(server.meet()) == ""
    with server.running("AuthenticationMethods publickey,password"):
        contact = server.meet()
    assert problems(contact) == ""
    assert contact.means == "key id_ed25519 and password"


def test_a_machine_that_was_installed_anew(server: Server) -> None:
    with server.running():
        assert problems(server.meet()) == ""
    for kind in ("rsa", "ecdsa", "ed25519"):
        for path in server.path.glob(f"host_{kind}*"):
            path.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(server.path / f"host_{kind}")], check=True)
    with server.running():
        contact = server.meet()
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in server.ssh("root")
    assert "its host key has CHANGED" in problems(contact)
