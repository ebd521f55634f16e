"""playbooks/trust.yml as a whole, by the real ansible-playbook, with servers on the loopback."""

from __future__ import annotations

import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from ssh_machine import Machine, clean_environment, key_pair, listening

from kubewright.trust.report import SSH_ARGUMENTS

ROOT = Path(__file__).resolve().parent.parent.parent
PASSWORD = "correct horse"


class Site:
    """An inventory in a directory with a space in its name, and its machines."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.inventory = path / "my machines"
        self.inventory.mkdir()
        self.private = path / "id_ed25519"
        self.public = key_pair(self.private)
        self.hosts: dict[str, dict[str, Any]] = {}
        self.stack = stack

    @property
    def known_hosts(self) -> Path:
        return self.inventory / "known_hosts"

    def machine(self, name: str, **fields: Any) -> Machine:
        machine = self.stack.enter_context(listening(Machine(self.path / name, **{"password": PASSWORD, **fields})))
        self.hosts[name] = {"ansible_host": machine.address, "ansible_port": machine.port, "ansible_user": machine.user}
        # Its own python3; Ansible's default looks at /usr/bin as well, where the one of this computer is.
        self.hosts[name]["ansible_python_interpreter"] = "python3"
        return machine

    def command(self, *arguments: str, playbook: str = "playbooks/trust.yml") -> list[str]:
        shared = yaml.safe_load(SSH_ARGUMENTS)
        # -F: what whoever runs the tests has in ~/.ssh/config is left out.
        shared["ansible_ssh_common_args"] += " -F /dev/null -o IdentitiesOnly=yes"
        shared |= {"ansible_ssh_private_key_file": str(self.private), "ansible_ssh_args": "", "trust_timeout": 5}
        groups = {"etcd": {"hosts": self.hosts}, "kube_master": {"hosts": {name: {} for name in self.hosts}}}
        text = yaml.safe_dump({"all": {"vars": shared, "children": groups}})
        (self.inventory / "hosts.yml").write_text(text)
        program = [sys.executable, "-m", "ansible", "playbook"]
        return [*program, str(ROOT / playbook), "-i", str(self.inventory), *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        return {**clean_environment(), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The playbook, without a terminal, as in CI."""
        return self.quietly(self.command(*arguments))

    def quietly(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command of Ansible's without a terminal."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run_in_terminal(self, answers: list[bytes], *arguments: str) -> tuple[int, str]:
        """With a terminal of its own: each answer is given to one question."""
        # Ansible asks only in a terminal that is its controlling one.
        command = ["setsid", "--ctty", *self.command(*arguments)]
        terminal, slave = pty.openpty()
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        seen = b""
        deadline = time.monotonic() + 60
        try:
            while time.monotonic() < deadline:
                if not select.select([terminal], [], [], 1)[0]:
                    continue
                try:
                    seen += os.read(terminal, 65536)
                except OSError:
                    # EIO: the last program in the terminal has ended.
                    break
                if answers and b"(input is hidden)" in seen:
                    # The terminal is set to hide the input just after the question is printed.
                    time.sleep(0.5)
                    os.write(terminal, answers.pop(0))
            return process.wait(5), seen.decode().replace("\r\n", "\n")
        finally:
            process.kill()
            process.wait()
            os.close(terminal)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def changes(output: str) -> list[str]:
    return re.findall(r"changed=(\d+)", output)


def vault(site: Site) -> tuple[str, str]:
    path = site.path / "secrets.yml"
    path.write_text(yaml.safe_dump({"trust_password": PASSWORD}))
    return "-e", f"@{path}"


def rows(output: str) -> dict[str, str]:
    lines = output.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("host  "))
    table = lines[head + 1 : lines.index("", head)]
    return {line.split()[0]: line for line in table}


def test_first_contact_check_first_and_again(site: Site) -> None:
    first, second = site.machine("m1"), site.machine("m2", user="admin", uid=1000, sudo="nopasswd")
    shown = site.run(*vault(site), "--check")
    assert shown.returncode == 0, shown.stdout
    assert "would be recorded" in rows(shown.stdout)["m1"]
    assert "would be installed" in rows(shown.stdout)["m2"]
    assert not site.known_hosts.exists()
    assert not first.authorized_keys.exists()

    met = site.run(*vault(site), "-vvv")
    assert met.returncode == 0, met.stdout
    assert changes(met.stdout) == ["1"]
    assert re.search(r"yes +recorded +password +installed +root +3\.11\.99", rows(met.stdout)["m1"])
    assert re.search(r"yes +recorded +password +installed +sudo +3\.11\.99", rows(met.stdout)["m2"])
    for machine in (first, second):
        fingerprint = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(machine.host_key())], capture_output=True, text=True, check=True
        ).stdout.split()[1]
        assert fingerprint in met.stdout
    assert PASSWORD not in met.stdout + met.stderr
    assert "m2: admin is not root: set ansible_become: true" in met.stdout

    again = site.run()
    assert again.returncode == 0, again.stdout
    assert changes(again.stdout) == ["0"]
    assert re.search(r"yes +known +key id_ed25519 +present +root", rows(again.stdout)["m1"])
    assert first.logins == ["password", "password", "publickey", "publickey"]

    # And this is what it is for: Ansible itself gets in, with host keys checked strictly.
    site.hosts["m1"]["ansible_python_interpreter"] = sys.executable
    site.command()
    ping = [sys.executable, "-m", "ansible", "adhoc", "m1", "-i", str(site.inventory), "-m", "ansible.builtin.ping"]
    reply = site.quietly(ping)
    assert "pong" in reply.stdout, reply.stdout + reply.stderr


def test_every_failure_of_every_host_in_one_table(site: Site) -> None:
    """... and the one machine that is fine is done all the same. Nobody is there to be asked for a password."""
    fine, changed = site.machine("fine"), site.machine("changed")
    fine.let_in(site.public)
    site.machine("locked")
    python = site.machine("python", python="", user="admin", uid=1000)
    python.let_in(site.public)
    name, stale = f"[127.0.0.1]:{changed.port}", key_pair(site.path / "stale")
    site.known_hosts.write_text(f"{name} {stale}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        site.hosts["gone"] = {"ansible_host": "127.0.0.1", "ansible_port": closed.getsockname()[1]}
        done = site.run()
    assert done.returncode == 2
    assert set(rows(done.stdout)) == {"fine", "changed", "locked", "python", "gone"}
    assert re.search(r"yes +recorded +key id_ed25519 +present +root", rows(done.stdout)["fine"])
    assert re.search(r"yes +CHANGED +NO", rows(done.stdout)["changed"])
    assert re.search(r"yes +recorded +NO", rows(done.stdout)["locked"])
    assert re.search(r"NO +- +- ", rows(done.stdout)["gone"])
    flat = " ".join(done.stdout.split())
    assert "4 of 5 hosts failed:" in flat
    assert "and no password is given" in flat
    assert f"ssh-keygen -R '{name}' -f '{site.known_hosts}'" in flat
    assert "there is no Python 3, 3.9 or newer is needed" in flat
    assert "admin is not root, and there is no sudo" in flat
    assert "refuses connections to port" in flat
    assert site.known_hosts.read_text().startswith(f"{name} {stale}")
    assert len(site.known_hosts.read_text().splitlines()) == 4


def test_it_asks_for_a_password_when_one_is_needed(site: Site) -> None:
    machine, open_to_keys = site.machine("m1"), site.machine("m2")
    open_to_keys.let_in(site.public)
    status, output = site.run_in_terminal([PASSWORD.encode() + b"\r"])
    assert status == 0, output
    question = output[: output.index("(input is hidden)")]
    # Whom one is about to tell a password is shown before it is asked for.
    assert "SHA256:" in question
    assert f"Password for m1 (root@[127.0.0.1]:{machine.port});" in " ".join(question.split())
    assert PASSWORD not in output
    assert (machine.passwords, open_to_keys.passwords) == ([PASSWORD], [])
    assert machine.authorized_keys.read_text() == site.public


def test_nothing_is_done_when_the_question_is_interrupted(site: Site) -> None:
    machine = site.machine("m1")
    status, output = site.run_in_terminal([b"\x03"])
    assert status == 2
    assert "no host key was recorded" in output
    assert not site.known_hosts.exists()
    assert machine.passwords == []


def test_an_own_password_stays_with_its_host(site: Site) -> None:
    first, second = site.machine("m1"), site.machine("m2", password="another")
    site.hosts["m1"]["trust_password"] = PASSWORD
    site.hosts["m2"]["ansible_password"] = "another"
    third = site.machine("m3")
    done = site.run()
    assert done.returncode == 2
    assert "1 of 3 hosts failed" in done.stdout
    assert (first.passwords, second.passwords, third.passwords) == ([PASSWORD], ["another"], [])


def test_the_question_when_one_machine_is_done_already(site: Site) -> None:
    """A key that is named is handed over before the question, to a machine that lets another one in."""
    machine, _ = site.machine("m1"), site.machine("m2")
    machine.let_in(site.public)
    team = key_pair(site.path / "team")
    status, output = site.run_in_terminal([b"\x03"], "-e", f"trust_public_key={site.path / 'team.pub'}")
    assert status == 2
    assert "no host key was recorded; the public key is on m1 already" in " ".join(output.split())
    assert machine.authorized_keys.read_text() == site.public + team


def test_a_timeout_that_is_none(site: Site) -> None:
    site.machine("m1")
    done = site.run("-e", "trust_timeout=soon")
    assert done.returncode == 2
    assert "trust_timeout is 'soon'" in done.stdout
    assert "Traceback" not in done.stdout
