"""First contact, the parts that decide: known_hosts, authorized_keys, how OpenSSH would connect, the report."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest
import yaml
from ssh_machine import key_pair

from kubewright.errors import UserError
from kubewright.trust import authorized_keys, known_hosts, report, survey
from kubewright.trust.connection import ask_openssh
from kubewright.trust.contact import Contact
from kubewright.trust.known_hosts import Entry, HostKey, Verdict
from kubewright.trust.target import Settings, Target, expand

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path("/inventory/known_hosts")
THERE = Path("/home/me/.ssh/known_hosts")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> str:
    return key_pair(tmp_path_factory.mktemp("keys") / "id_ed25519")


@pytest.fixture
def key(public: str) -> HostKey:
    return HostKey(*public.split()[:2])


def entry(key: HostKey, marker: str = "", path: Path = HERE) -> Entry:
    return Entry(path, 1, marker, key)


OTHER = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
RSA = HostKey("ssh-rsa", "AAAAB3NzaC1yc2EAAAADAQABAAAAAQ==")


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path, public: str, key: HostKey) -> None:
    path = tmp_path / "key.pub"
    path.write_text(public)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=True).stdout
    assert key.fingerprint == shown.split()[1]
    assert f"({key.algorithm})" in shown


@pytest.mark.parametrize(
    "patterns",
    [
        "192.0.2.1",
        "node01,192.0.2.1",
        "192.0.2.*",
        "192.0.2.?",
        "192.0.2.*,!192.0.2.1",
        "!192.0.2.9,192.0.2.*",
        "[192.0.2.1]:2222",
        "[192.0.2.*]:2222",
        "NODE01",
        "192.0.2.11",
    ],
)
@pytest.mark.parametrize("name", ["192.0.2.1", "node01", "[192.0.2.1]:2222"])
def test_names_match_as_they_do_for_openssh(tmp_path: Path, key: HostKey, patterns: str, name: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"# a comment\n\n{patterns} {key.kind} {key.base64} a comment\n")
    theirs = subprocess.run(["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, check=False)
    ours = known_hosts.entries(path.read_text(), name, path)
    assert bool(ours) == (theirs.returncode == 0)
    assert all((e.key, e.number, e.path) == (key, 3, path) for e in ours)


def test_hashed_names_are_found(tmp_path: Path, key: HostKey) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"[192.0.2.1]:2222 {key.kind} {key.base64}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], capture_output=True, check=True)
    text = path.read_text()
    assert text.startswith("|1|")
    assert len(known_hosts.entries(text, known_hosts.host_name("192.0.2.1", 2222), path)) == 1
    assert known_hosts.entries(text, "192.0.2.1", path) == []


def test_lines_that_say_nothing_about_a_host_key_are_left_out(key: HostKey) -> None:
    lines = [
        "m1 ssh-ed25519",
        "m1 ssh-ed25519 not-base64!",
        f"@cert-authority m1 {key.kind} {key.base64}",
        "|1|x|y z w",
    ]
    assert known_hosts.entries("\n".join(lines), "m1", HERE) == []
    (revoked,) = known_hosts.entries(f"@revoked m1 {key.kind} {key.base64}", "m1", HERE)
    assert revoked.marker == "@revoked"


def test_verdicts(key: HostKey) -> None:
    judge = known_hosts.judge
    own, theirs = entry(key), entry(key, path=THERE)
    assert judge(key, []) == Verdict("new")
    assert judge(key, [own]) == Verdict("known", confirmed=(own,))
    assert judge(key, [entry(OTHER), own]).state == "known"
    assert judge(key, [entry(OTHER)]) == Verdict("changed", (entry(OTHER),))
    # A known type that the host did not show counts as much as another key of the same type.
    assert judge(key, [entry(RSA)]).state == "changed"
    assert judge(key, [], [theirs]) == Verdict("new", confirmed=(theirs,))
    assert judge(key, [], [entry(OTHER, path=THERE)]).state == "changed"
    # The file of the inventory is the one that is used; an old line elsewhere does not matter any more.
    assert judge(key, [own], [entry(OTHER, path=THERE)]).state == "known"
    revoked = entry(key, "@revoked", THERE)
    assert judge(key, [own], [revoked]) == Verdict("revoked", (revoked,))
    assert judge(key, [own], [entry(OTHER, "@revoked")]).state == "known"


def test_known_types_are_asked_for_first(key: HostKey) -> None:
    assert known_hosts.kinds([entry(RSA), entry(key), entry(OTHER), entry(OTHER, "@revoked")]) == (
        "ssh-rsa",
        "ssh-ed25519",
    )


def test_lines_are_added_once_and_nothing_is_lost(key: HostKey) -> None:
    line = known_hosts.line(known_hosts.host_name("Node01", 2222), key)
    assert line == f"[node01]:2222 {key.kind} {key.base64}"
    assert known_hosts.line(known_hosts.host_name("192.0.2.1", 22), key).startswith("192.0.2.1 ssh-")
    assert known_hosts.extended("", [line, line]) == f"{line}\n"
    assert known_hosts.extended("# mine", [line]) == f"# mine\n{line}\n"
    assert known_hosts.extended(f"{line}\n", [line]) == f"{line}\n"
    assert known_hosts.extended("# no end", []) == "# no end"


@pytest.mark.parametrize("options", ["", "restrict ", 'command="echo hello world",no-pty ', 'from="192.0.2.*" '])
def test_a_key_is_found_whatever_stands_around_it(public: str, options: str) -> None:
    mine = authorized_keys.parse(public, "id.pub")
    bare = f"{mine.kind} {mine.base64}"
    assert authorized_keys.contains(f"# one\n{options}{bare} another comment\n", mine)
    assert not authorized_keys.contains(f"# {bare}\n", mine)
    assert not authorized_keys.contains(f"{options}{mine.kind} AAAA {mine.base64}", mine)


def test_a_key_is_added_behind_a_line_without_an_end(public: str) -> None:
    mine = authorized_keys.parse(public, "id.pub")
    assert authorized_keys.extended("# last", mine) == f"# last\n{public}"
    assert authorized_keys.extended("", mine) == public


@pytest.mark.parametrize("text", ["", "ssh-ed25519\n", "ssh-rsa {}\n", "ssh-ed25519 AAAA\n", "{} {}\n"])
def test_what_is_no_public_key_is_not_handed_over(public: str, text: str) -> None:
    key = public.split()[1]
    with pytest.raises(UserError, match="no OpenSSH public key"):
        authorized_keys.parse(text.format(key, key), "id.pub")
    with pytest.raises(UserError, match="no OpenSSH public key"):
        authorized_keys.parse(public + public, "id.pub")


def asked(tmp_path: Path, **fields: object) -> Target:
    values: dict[str, object] = {"host": "m1", "address": "192.0.2.1", "inventory": tmp_path, "user": "root"}
    settings = Settings(**{**values, "arguments": "-F /dev/null", **fields})  # type: ignore[arg-type]
    # Where ssh itself looks for ~, whatever HOME is.
    return ask_openssh(settings, Path(pwd.getpwuid(os.getuid()).pw_dir))


def test_openssh_says_how_it_would_connect(tmp_path: Path) -> None:
    plain = asked(tmp_path)
    assert (plain.hostname, plain.port, plain.user, plain.proxy, plain.known_as) == (
        "192.0.2.1",
        22,
        "root",
        "",
        "192.0.2.1",
    )
    assert plain.login == "root@192.0.2.1"
    other = asked(
        tmp_path, port=2222, user="admin", private_key="/keys/of me", arguments="-F /dev/null -o Port=23 -o User=x"
    )
    # Ansible names port and user before ansible_ssh_common_args, and ansible_ssh_args before these.
    assert (other.login, other.identities) == ("admin@[192.0.2.1]:2222", (Path("/keys/of me"),))
    assert asked(tmp_path, port=2222, first_arguments="-o Port=24").port == 24


def test_ansible_own_line_names_the_file_of_the_inventory(tmp_path: Path) -> None:
    inventory = tmp_path / "my machines"
    line = yaml.safe_load(report.SSH_ARGUMENTS)["ansible_ssh_common_args"]
    arguments = line.replace("{{ inventory_dir }}", str(inventory))
    target = asked(tmp_path, inventory=inventory, arguments=f"-F /dev/null {arguments}")
    assert target.own == inventory / "known_hosts"
    assert target.uses_own
    assert not asked(tmp_path).uses_own
    throwaway = asked(tmp_path, arguments="-F /dev/null -o UserKnownHostsFile=/dev/null")
    assert (throwaway.own, throwaway.uses_own) == (tmp_path / "known_hosts", False)


def test_the_example_inventory_has_the_line_that_the_report_proposes() -> None:
    text = (ROOT / "inventories/example/group_vars/all/connection.yml").read_text()
    assert f"\n{report.SSH_ARGUMENTS}\n" in text


def test_a_jump_host_becomes_a_program_that_asks_nothing(tmp_path: Path) -> None:
    config = tmp_path / "my config"
    config.write_text("Host m1\n  HostName 192.0.2.1\n")
    jumped = asked(tmp_path, address="m1", arguments=f"-F '{config}' -J first,admin@second:2222")
    assert jumped.proxy == f"ssh -o BatchMode=yes -F '{config}' -J first -W '[192.0.2.1]:22' ssh://admin@second:2222"
    command = asked(tmp_path, arguments="-F /dev/null -o 'ProxyCommand=nc -X 5 %h %p # %% %r %n'", port=23)
    assert command.proxy == "nc -X 5 192.0.2.1 23 # % root 192.0.2.1"
    with pytest.raises(UserError, match="the token %C"):
        expand("nc %C", {"h": "x"})


@pytest.mark.parametrize("arguments", ["-o 'open", "-o NoSuchOption=1"])
def test_arguments_that_are_not_understood(tmp_path: Path, arguments: str) -> None:
    with pytest.raises(UserError, match=r"cannot be split|does not accept"):
        asked(tmp_path, arguments=arguments)


@pytest.mark.parametrize("arrives", [0, 10, None])
def test_authorized_keys_are_replaced_by_the_whole_or_not_at_all(tmp_path: Path, arrives: int | None) -> None:
    """What a connection that breaks brings is a part of the file, and then the end of the input."""
    kept = tmp_path / ".ssh" / "authorized_keys"
    kept.parent.mkdir()
    kept.write_text("ssh-ed25519 AAAA old\n")
    content = "ssh-ed25519 AAAA old\nssh-ed25519 AAAA néw\n"
    written = subprocess.run(
        ["/bin/sh", "-c", survey.command(survey.write_authorized_keys(content))],
        input=content.encode()[:arrives],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    whole = arrives is None
    assert (written.returncode == 0, written.stderr) == (whole, b"" if whole else b"it arrived only in part\n")
    assert kept.read_text() == (content if whole else "ssh-ed25519 AAAA old\n")
    assert list(kept.parent.iterdir()) == [kept]


def test_the_answer_is_found_between_what_a_login_shell_prints() -> None:
    questions = subprocess.run(
        ["/bin/sh", "-c", survey.command(survey.script(["no-such-python", "python3"]))],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    found = survey.read(f"Welcome!\nuid=5\n{questions.stdout}", questions.returncode, questions.stderr.strip())
    assert found
    assert found.keys_unread == ""
    assert found.interpreter == "/usr/bin/python3"
    assert found.python_is_new_enough
    assert (found.authorized_keys, found.directory_mode) == ("", "")
    assert survey.read("Welcome!\n", 0, "") is None
    assert survey.read(questions.stdout.partition("kubewright-authorized-keys")[0], 0, "") is None


def test_what_a_machine_says_cannot_control_the_terminal() -> None:
    found = survey.read("kubewright-begin\nuid=0\nos=\x1b[2Jgone\x07\nkubewright-authorized-keys\n", 0, "")
    assert found
    assert found.os == "[2Jgone"


@pytest.mark.parametrize(("version", "enough"), [("3.9.0", True), ("3.10.1", True), ("3.8.19", False), ("", False)])
def test_python_versions_are_numbers(version: str, enough: bool) -> None:
    found = survey.read(f"kubewright-begin\nuid=0\npython={version}\nkubewright-authorized-keys\n", 0, "")
    assert found
    assert found.python_is_new_enough is enough


def test_the_report_has_a_row_for_everybody(key: HostKey) -> None:
    good = Contact("m1", "root@192.0.2.1", reachable=True, host_key=key, verdict=Verdict("new"), means="password")
    good.key, good.root = "installed", "root"
    bad = Contact("node01", "192.0.2.2", problems=[UserError("it is off", "switch it on"), UserError("and broken")])
    lines = report.table([good, bad], check=False).splitlines()
    assert [line.split()[0] for line in lines] == ["host", "m1", "node01"]
    assert "recorded" in lines[1]
    assert lines[0].index("reachable") == lines[1].index("yes") == lines[2].index("NO")
    assert "would be recorded" in report.table([good], check=True)
    assert report.failures([good, bad]).splitlines() == [
        "1 of 2 hosts failed:",
        "  - node01: it is off",
        "      switch it on",
        "  - node01: and broken",
    ]
    assert report.failures([good]) == ""
    assert f"m1  ED25519 {key.fingerprint}" in report.new_keys([good, bad])
    assert report.new_keys([bad]) == ""
    assert "site.yml" in report.next_steps([good], "my machines", check=False)
    assert "-i 'my machines'" in report.next_steps([good], "my machines", check=False)
    assert report.next_steps([bad], "x", check=False) == ""
