"""First contact with servers on the loopback, and afterwards the real `ssh` with what was recorded."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from ssh_machine import Machine, clean_environment, key_pair, listening

from kubewright.files import write_file
from kubewright.trust.contact import Contact, Plan, meet, meet_all, record
from kubewright.trust.report import table
from kubewright.trust.target import Settings

PASSWORD = "correct horse"


class Place:
    """A controller: a home with an ssh key, an inventory; and the machines it meets."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.home = path / "home dir"
        self.inventory = path / "inventories" / "mine"
        self.inventory.mkdir(parents=True)
        self.private = self.home / ".ssh" / "id_ed25519"
        self.public = key_pair(self.private)
        self.stack = stack

    def machine(self, name: str = "m1", **fields: Any) -> Machine:
        return self.stack.enter_context(listening(Machine(self.path / name, **{"password": PASSWORD, **fields})))

    def settings(self, machine: Machine, name: str = "m1", **fields: Any) -> Settings:
        # What the test's own user has in ~/.ssh/config is left out.
        known: dict[str, Any] = {
            "host": name,
            "address": machine.address,
            "inventory": self.inventory,
            "port": machine.port,
            "user": machine.user,
            "arguments": self.arguments(),
            "password": PASSWORD,
        }
        return Settings(**{**known, **fields})

    def arguments(self, *more: str) -> str:
        options = [f"UserKnownHostsFile={self.known_hosts}", f'IdentityFile "{self.private}"', "IdentitiesOnly=yes"]
        return " ".join(["-F /dev/null", *(f"-o '{option}'" for option in options), *more])

    @property
    def known_hosts(self) -> Path:
        return self.inventory / "known_hosts"

    def plan(self, **fields: Any) -> Plan:
        return Plan(**{"home": self.home, "timeout": 3.0, **fields})

    def meet(self, machine: Machine, *, check: bool = False, public_key: str = "", **fields: Any) -> Contact:
        """One round, and what it has to record recorded."""
        contact = meet(self.settings(machine, **fields), self.plan(check=check, public_key=public_key))
        if not check:
            record([contact], write_file)
        return contact

    def ssh(self, machine: Machine, *more: str) -> subprocess.CompletedProcess[str]:
        """The real client, as Ansible would run it, with the known_hosts file of the inventory."""
        command = ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        command += ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"]
        command += ["-i", str(self.private), "-o", "IdentitiesOnly=yes", *more]
        command += ["-p", str(machine.port), f"{machine.user}@{machine.address}", "echo through"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=clean_environment())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def problems(contact: Contact) -> str:
    return "\n".join(map(str, contact.problems))


def test_by_password_once_and_by_key_ever_after(place: Place) -> None:
    machine = place.machine()
    first = place.meet(machine)
    assert problems(first) == ""
    assert (first.reachable, first.means, first.key, first.root) == (True, "password", "installed", "root")
    assert first.verdict
    assert first.verdict.state == "new"
    assert first.machine
    assert first.machine.python == "3.11.99"
    assert first.machine.architecture == os.uname().machine
    assert machine.authorized_keys.read_text() == place.public
    assert stat.S_IMODE(machine.authorized_keys.stat().st_mode) == 0o600
    assert stat.S_IMODE(machine.authorized_keys.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.known_hosts.stat().st_mode) == 0o644
    # Installed, and then proved by logging in with it.
    assert machine.logins == ["password", "publickey"]

    recorded = place.known_hosts.read_text()
    second = place.meet(machine)
    assert problems(second) == ""
    assert (second.means, second.key, second.changed, second.records) == ("key id_ed25519", "present", False, False)
    assert place.known_hosts.read_text() == recorded
    assert machine.authorized_keys.read_text() == place.public
    assert machine.passwords == [PASSWORD]


def test_openssh_knows_the_recorded_key_and_refuses_another(place: Place) -> None:
    machine = place.machine(host_keys=("rsa", "ecdsa", "ed25519"))
    contact = place.meet(machine)
    assert contact.host_key
    name = f"[127.0.0.1]:{machine.port}"
    found = subprocess.run(
        ["ssh-keygen", "-l", "-F", name, "-f", str(place.known_hosts)], capture_output=True, text=True, check=True
    )
    assert contact.host_key.fingerprint in found.stdout
    through = place.ssh(machine)
    assert through.stdout == "through\n", through.stderr

    machine.new_host_key()
    refused = place.ssh(machine)
    assert refused.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_openssh_asks_for_the_type_that_is_recorded(place: Place, kind: str) -> None:
    """The server has keys of all types, the file has one: neither OpenSSH nor we take another for a changed one."""
    machine = place.machine(host_keys=("rsa", "ecdsa", "ed25519"))
    public = machine.host_key(kind).with_name(f"host_{kind}.pub").read_text().split()
    place.known_hosts.write_text(f"[127.0.0.1]:{machine.port} {public[0]} {public[1]}\n")
    contact = place.meet(machine)
    assert problems(contact) == ""
    assert contact.host_key
    assert (contact.host_key.kind, contact.records) == (public[0], False)
    assert place.ssh(machine).stdout == "through\n"


def test_a_changed_host_key_is_refused_and_gets_no_password(place: Place) -> None:
    machine = place.machine()
    place.meet(machine)
    before = place.known_hosts.read_text()
    machine.new_host_key()
    machine.passwords.clear()
    machine.commands.clear()
    machine.authorized_keys.unlink()
    contact = place.meet(machine)
    assert contact.verdict
    assert contact.verdict.state == "changed"
    assert "host key has CHANGED" in problems(contact)
    assert "somebody may be in between" in problems(contact)
    assert f"{place.known_hosts} line 1" in problems(contact)
    assert (machine.passwords, machine.commands) == ([], [])
    assert place.known_hosts.read_text() == before

    # The command in the message is one that works, and then the host is new.
    command = re.search(r"ssh-keygen -R .*", problems(contact))
    assert command
    subprocess.run(["sh", "-c", command[0]], check=True, capture_output=True)
    again = place.meet(machine)
    assert problems(again) == ""
    assert again.verdict
    assert again.verdict.state == "new"
    assert place.ssh(machine).stdout == "through\n"


def test_a_key_the_operator_trusts_elsewhere_is_believed_and_a_contradiction_is_refused(place: Place) -> None:
    machine = place.machine()
    public = machine.host_key().with_name("host_ed25519.pub").read_text().split()
    theirs = place.home / ".ssh" / "known_hosts"
    theirs.write_text(f"[127.0.0.1]:{machine.port} {public[0]} {public[1]}\n")
    believed = place.meet(machine)
    assert believed.verdict
    assert believed.verdict.confirmed[0].path == theirs
    place.known_hosts.unlink()
    machine.new_host_key()
    refused = place.meet(machine)
    assert f"-f '{theirs}'" in problems(refused)
    assert not place.known_hosts.exists()


def test_check_changes_nothing_and_says_what_it_would(place: Place) -> None:
    machine = place.machine()
    contact = place.meet(machine, check=True)
    assert problems(contact) == ""
    assert (contact.records, contact.changed, contact.key) == (True, True, "would be installed")
    assert not place.known_hosts.exists()
    assert list(machine.home.iterdir()) == []


def test_what_is_in_authorized_keys_stays(place: Place) -> None:
    machine = place.machine()
    machine.let_in("# mine\nssh-rsa AAAAB3NzaC1yc2E= somebody else, no newline")
    machine.authorized_keys.chmod(0o644)
    assert problems(place.meet(machine)) == ""
    assert machine.authorized_keys.read_text() == (
        "# mine\nssh-rsa AAAAB3NzaC1yc2E= somebody else, no newline\n" + place.public
    )
    assert stat.S_IMODE(machine.authorized_keys.stat().st_mode) == 0o600
    assert [path.name for path in machine.authorized_keys.parent.iterdir()] == ["authorized_keys"]


def test_bytes_that_are_no_utf8_survive_and_a_link_stays_one(place: Place) -> None:
    machine = place.machine()
    kept = machine.home / "kept"
    kept.write_bytes(b"# caf\xe9\r\n")
    machine.authorized_keys.parent.mkdir()
    machine.authorized_keys.symlink_to(kept)
    assert problems(place.meet(machine)) == ""
    assert machine.authorized_keys.is_symlink()
    assert kept.read_bytes() == b"# caf\xe9\r\n" + place.public.encode()


def test_a_file_that_is_read_in_part_is_not_written_over(place: Place) -> None:
    machine = place.machine()
    machine.let_in("ssh-rsa AAAAB3NzaC1yc2E= somebody else\n")
    cat = machine.directory / "bin" / "cat"
    cat.unlink()
    cat.write_text('#!/bin/sh\necho "ssh-rsa AAAA"\necho "cat: $1: Input/output error" >&2\nexit 1\n')
    cat.chmod(0o755)
    contact = place.meet(machine)
    assert (
        "authorized_keys of root cannot be read: cat: "
        f"{machine.authorized_keys}: Input/output error\n  nothing was written" in problems(contact)
    )
    assert (contact.key, contact.changed, contact.root) == ("no", False, "root")
    assert machine.authorized_keys.read_text() == "ssh-rsa AAAAB3NzaC1yc2E= somebody else\n"


def test_a_file_whose_reading_fails_is_not_taken_for_an_empty_one(place: Place) -> None:
    machine = place.machine(reads_keys=False)
    # Real ones: the first page of a process's memory is an input/output error, a link to itself leads nowhere.
    for target, message in (("/proc/self/mem", "Input/output error"), ("authorized_keys", "Too many levels of symbo")):
        machine.authorized_keys.parent.mkdir(exist_ok=True)
        machine.authorized_keys.unlink(missing_ok=True)
        machine.authorized_keys.symlink_to(target)
        assert f"cannot be read: cat: {machine.authorized_keys}: {message}" in problems(place.meet(machine))
    machine.authorized_keys.unlink()
    machine.authorized_keys.symlink_to("not there yet")
    machine.reads_keys = True
    assert problems(place.meet(machine)) == ""
    assert (machine.home / ".ssh" / "not there yet").read_text() == place.public


def test_a_named_key_is_handed_over_even_where_another_lets_in(place: Place) -> None:
    machine = place.machine()
    machine.let_in(place.public)
    team = key_pair(place.path / "team")
    contact = place.meet(machine, public_key=str(place.path / "team.pub"))
    assert problems(contact) == ""
    assert (contact.means, contact.key) == ("key id_ed25519", "installed")
    assert machine.authorized_keys.read_text() == place.public + team
    assert contact.notes == [
        f"login by {place.path / 'team.pub'} is not tried: ssh here does not offer its private key "
        "(a passphrase? ssh-add)"
    ]
    assert not place.meet(machine, public_key=str(place.path / "team.pub")).changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no public key to hand over"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
        ("hello world\n", "is no OpenSSH public key"),
    ],
)
def test_public_keys_that_cannot_be_handed_over(place: Place, content: str | None, message: str) -> None:
    machine = place.machine()
    path = place.path / "other.pub"
    if content is not None:
        path.write_text(content)
    contact = place.meet(machine, public_key=str(path))
    assert message in problems(contact)
    assert not machine.authorized_keys.exists()


def test_without_a_key_pair_it_says_how_to_make_one(place: Place) -> None:
    machine = place.machine()
    shutil.rmtree(place.home / ".ssh")
    contact = place.meet(machine)
    assert "make one with: ssh-keygen -t ed25519" in problems(contact)
    assert not (place.home / ".ssh").exists()


def test_a_wrong_password_and_none_at_all(place: Place) -> None:
    machine = place.machine()
    wrong = place.meet(machine, password="wrong")
    assert "the password is refused for root" in problems(wrong)
    assert "wrong" not in problems(wrong).replace("is the password right", "")
    assert not wrong.wants_password
    none = place.meet(machine, password="")
    assert "and no password is given" in problems(none)
    assert none.wants_password
    # It could be judged all the same, so it is recorded: the second run knows it.
    assert none.verdict
    assert none.verdict.state == "known"


def test_a_server_that_takes_keys_only(place: Place) -> None:
    contact = place.meet(place.machine(methods="publickey"))
    assert "sshd there takes keys only" in problems(contact)
    assert not contact.wants_password


def test_a_key_and_a_password_besides(place: Place) -> None:
    machine = place.machine(both=True)
    machine.let_in(place.public)
    contact = place.meet(machine)
    assert problems(contact) == ""
    assert (contact.means, contact.key) == ("key id_ed25519 and password", "present")


def test_more_keys_than_the_server_has_patience_for(place: Place) -> None:
    """It hangs up after ten; the eleventh, and the password after it, have their turn on a connection of their own."""
    machine = place.machine()
    others = [place.path / f"id{number}" for number in range(10)]
    for path in others:
        key_pair(path)
    last = key_pair(place.path / "last")
    machine.let_in(last)
    arguments = " ".join(f"-o IdentityFile={path}" for path in [*others, place.path / "last"])
    contact = place.meet(machine, arguments=f"-F /dev/null -o UserKnownHostsFile={place.known_hosts} {arguments}")
    assert problems(contact) == ""
    assert contact.means == "key last"


def test_a_key_with_a_passphrase_needs_the_agent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = place.path / "locked"
    public = key_pair(locked, passphrase="secret words")
    machine = place.machine()
    machine.let_in(public)
    arguments = f"-F /dev/null -o UserKnownHostsFile={place.known_hosts} -o IdentitiesOnly=yes"
    settings: dict[str, Any] = {"arguments": arguments, "private_key": str(locked), "password": ""}
    without = place.meet(machine, **settings)
    assert f"the private key {locked} has a passphrase: load it with ssh-add" in problems(without)

    # The path of its socket has to fit into 108 bytes.
    agent = place.path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL) as process:
        try:
            _until(agent.exists)
            helper = place.path / "askpass"
            helper.write_text("#!/bin/sh\necho secret words\n")
            helper.chmod(0o700)
            asked = {**os.environ, "SSH_AUTH_SOCK": str(agent), "SSH_ASKPASS": str(helper)}
            asked["SSH_ASKPASS_REQUIRE"] = "force"
            subprocess.run(["ssh-add", "-q", str(locked)], env=asked, check=True, stdin=subprocess.DEVNULL)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
            contact = place.meet(machine, **settings)
        finally:
            process.terminate()
    assert problems(contact) == ""
    assert contact.means == "key agent: key locked"


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_key_that_sshd_does_not_accept_is_noticed(place: Place) -> None:
    contact = place.meet(place.machine(reads_keys=False))
    assert "sshd does not accept it" in problems(contact)


@pytest.mark.parametrize(
    ("sudo", "become_password", "root", "message"),
    [
        ("nopasswd", "", "sudo", ""),
        ("password", "", "sudo with password", ""),
        ("password", PASSWORD, "sudo with password", ""),
        ("password", "another", "no", "admin is not root, and sudo refuses: sudo: a password is required"),
        ("refuses", "", "no", "admin is not root, and sudo refuses: sudo: a password is required"),
        ("", "", "no", "admin is not root, and there is no sudo"),
    ],
)
def test_users_who_are_not_root(place: Place, sudo: str, become_password: str, root: str, message: str) -> None:
    machine = place.machine(user="admin", uid=1000, sudo=sudo)
    contact = place.meet(machine, become=True, become_password=become_password)
    assert contact.root == root
    assert [problem.message for problem in contact.problems] == ([message] if message else [])
    # Whatever sudo says, the key is handed over.
    assert contact.key == "installed"
    assert PASSWORD not in "\n".join(machine.commands)
    if sudo == "password" and not become_password:
        assert contact.notes == [
            "sudo wants the password: run with --ask-become-pass, or set ansible_become_password (in a vault)"
        ]


def test_a_user_who_is_not_root_has_to_become(place: Place) -> None:
    contact = place.meet(place.machine(user="admin", uid=1000, sudo="nopasswd"))
    assert contact.notes == ["admin is not root: set ansible_become: true"]


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("", "there is no Python 3, 3.9 or newer is needed"),
        ("3.7.3", "/python3 is Python 3.7.3, 3.9 or newer is needed"),
        ("2.7.18", "there is no Python 3, 3.9 or newer is needed"),
    ],
)
def test_machines_without_a_python_that_will_do(place: Place, python: str, message: str) -> None:
    contact = place.meet(place.machine(python=python))
    assert [problem.message.endswith(message) for problem in contact.problems] == [True]
    assert contact.key == "installed"


def test_a_login_without_a_shell(place: Place) -> None:
    contact = place.meet(place.machine(forced="echo This account is currently not available.; exit 1"))
    assert "root is let in, but gets no shell there: This account is currently not available." in problems(contact)


@pytest.mark.parametrize("forced", ["sleep 20", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.2; done"])
def test_a_machine_that_does_not_answer_in_time(place: Place, forced: str) -> None:
    machine = place.machine(forced=forced)
    begin = time.monotonic()
    contact = meet(place.settings(machine), place.plan(timeout=0.5))
    assert "a command did not end within 0.5 s" in problems(contact)
    assert time.monotonic() - begin < 5


def test_a_machine_that_never_stops_talking(place: Place) -> None:
    contact = meet(place.settings(place.machine(forced="exec /usr/bin/head -c 6000000 /dev/zero")), place.plan())
    assert "says more than anybody asked" in problems(contact)


def test_addresses_where_nobody_is(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        plan = place.plan(timeout=0.5)

        def told(port: int, address: str = "127.0.0.1", **more: str) -> Contact:
            machine = Machine(place.path / "none", address=address, port=port)
            return meet(place.settings(machine, **more), plan)

        quiet = told(silent.getsockname()[1])
        refused = told(closed.getsockname()[1])
        nowhere = told(22, "no-such-host.invalid")
        strange = told(22, arguments="-F /dev/null -o NoSuchOption=1")
    assert "accepts connections but says nothing" in problems(quiet)
    assert f"127.0.0.1 refuses connections to port {closed_port(refused)}" in problems(refused)
    assert "the name no-such-host.invalid does not resolve" in problems(nowhere)
    assert "OpenSSH does not accept this host's settings" in problems(strange)
    assert "nosuchoption" in problems(strange).lower()
    assert not any(contact.reachable for contact in (quiet, refused, nowhere, strange))


def closed_port(contact: Contact) -> int:
    assert contact.target
    return contact.target.port


def test_a_port_where_something_else_answers(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        machine = Machine(place.path / "none", port=other.getsockname()[1])
        other.settimeout(5)

        def answer() -> None:
            client, _ = other.accept()
            with client, suppress(OSError):
                client.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        contact = meet(place.settings(machine), place.plan(timeout=1))
        thread.join(5)
    assert "closes the connection or speaks no SSH" in problems(contact)


def test_through_a_configuration_with_a_proxy_command(place: Place) -> None:
    """As in the lab: a name that resolves nowhere, reached by a program that carries the connection."""
    machine = place.machine()
    config = place.path / "ssh config"
    config.write_text(
        f'Host far\n  HostName 192.0.2.7\n  User root\n  IdentityFile "{place.private}"\n  IdentitiesOnly yes\n'
        f'  UserKnownHostsFile "{place.path}/lab known"\n  ProxyCommand socat - TCP:127.0.0.1:{machine.port}\n'
    )
    settings = Settings("far", "far", place.inventory, arguments=f"-F '{config}'", password=PASSWORD)
    contact = meet(settings, place.plan())
    assert problems(contact) == ""
    assert contact.login == "root@192.0.2.7"
    record([contact], write_file)
    assert (place.path / "lab known").read_text().startswith("192.0.2.7 ssh-ed25519 ")
    assert not place.known_hosts.exists()
    assert meet(settings, place.plan()).means == "key id_ed25519"

    config.write_text(config.read_text().replace("socat", "echo no way here >&2; exit 1; socat"))
    assert "through `echo no way here >&2; exit 1; socat" in problems(meet(settings, place.plan()))
    assert ": no way here" in problems(meet(settings, place.plan()))


def test_through_a_jump_host(place: Place) -> None:
    bastion, machine = place.machine("bastion"), place.machine("m1")
    bastion.let_in(place.public)
    config = place.path / "config"
    config.write_text(
        f"Host bastion\n  HostName 127.0.0.1\n  Port {bastion.port}\n  User root\nHost *\n"
        f'  IdentityFile "{place.private}"\n  IdentitiesOnly yes\n  UserKnownHostsFile {place.known_hosts}\n'
    )
    arguments = f"-F {config} -o ProxyJump=bastion"
    stranger = place.meet(machine, arguments=arguments)
    assert "log in to the jump host once so that its host key is known" in problems(stranger)
    assert "Host key verification failed" in problems(stranger)
    assert place.meet(bastion).key == "present"
    contact = place.meet(machine, arguments=arguments)
    assert problems(contact) == ""
    assert contact.means == "password"
    assert f"forward to 127.0.0.1:{machine.port}" in bastion.commands


def test_many_at_once(place: Place) -> None:
    machines = [place.machine(f"m{number}") for number in range(8)]
    machines[3].forced = "sleep 1; exit 1"
    names = [f"m{number}" for number in range(8)]
    hosts = [place.settings(machine, name) for machine, name in zip(machines, names, strict=True)]
    contacts = meet_all(hosts, place.plan())
    assert [contact.host for contact in contacts] == names
    assert [bool(contact.problems) for contact in contacts] == [name == "m3" for name in names]
    assert record(contacts, write_file) == [place.known_hosts]
    assert len(place.known_hosts.read_text().splitlines()) == 8


def test_a_file_that_cannot_be_written(place: Place) -> None:
    place.known_hosts.symlink_to("/proc/no such place/known_hosts")
    contact = place.meet(place.machine())
    assert f"its host key cannot be recorded in {place.known_hosts}" in problems(contact)
    assert "NOT RECORDED" in table([contact], check=False)
    assert contact.key == "installed"


def test_a_second_round_meets_the_same_machines(place: Place) -> None:
    machine = place.machine()
    plan = place.plan()
    first = meet_all([place.settings(machine, password="")], plan)
    machine.new_host_key()
    (second,) = meet_all([place.settings(machine)], plan, first)
    assert "a moment ago and now" in problems(second)
    assert machine.passwords == []
