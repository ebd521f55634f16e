"""The action kubepki_set, by the real ansible-playbook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
PASSWORD = "correct horse battery"
SPEC: dict[str, Any] = {
    "cas": {"etcd": {"cn": "etcd-ca", "password": "env:KUBEPKI_TEST_PASSWORD"}},
    "keypairs": {"sa": {"algo": "ecdsa"}},
    "certificates": [
        {"name": "s", "ca": "etcd", "cn": "m1", "profile": "server", "hosts": ["m1"], "consumers": ["etcd"]},
        {"name": "c", "ca": "etcd", "cn": "c", "profile": "client"},
    ],
}


class Play:
    """One task on the controller; its result is written to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def pki(self) -> Path:
        return self.path / "pki"

    def run(self, *arguments: str, spec: Any = None, **options: Any) -> tuple[str, dict[str, Any]]:
        """What was said, and what the task returned."""
        module = {"spec": SPEC if spec is None else spec, "directory": str(self.pki), **options}
        tasks = [
            {"name": "Certificates", "kubepki_set": module, "register": "made", "ignore_errors": True},
            {
                "name": "Result",
                "ansible.builtin.copy": {"content": "{{ made | to_json }}", "dest": str(self.path / "result.json")},
                "check_mode": False,
                "diff": False,
            },
        ]
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
        (self.path / "play.yml").write_text(yaml.safe_dump(play))
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "-vvv", *arguments]
        # As CI and the Makefile have it: whatever is logged by default is shown.
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "KUBEPKI_TEST_PASSWORD": PASSWORD,
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        reply = subprocess.run(
            [*command, str(self.path / "play.yml")], env=environment, capture_output=True, text=True, check=False
        )
        said = reply.stdout + reply.stderr
        assert "Traceback" not in said, said
        # Not even encrypted, and not a line of what is in the files.
        secrets = {PASSWORD, "PRIVATE KEY"}
        for path in (*self.pki.glob("*-key.pem"), *self.pki.glob("*.key")):
            secrets |= {line for line in path.read_text().splitlines() if len(line) > 20}
        for secret in secrets:
            assert secret not in said
            assert secret not in (self.path / "result.json").read_text()
        return said, yaml.safe_load((self.path / "result.json").read_text())


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def test_a_task_foresees_makes_and_keeps(play: Play) -> None:
    said, made = play.run("--check", "--diff")
    assert (made["changed"], made["issued"], play.pki.exists()) == (True, ["etcd-ca", "sa", "s", "c"], False)
    assert "s: issue, missing" in said

    said, made = play.run("--diff")
    assert made["changed"]
    by_name = {one["name"]: one for one in made["certificates"]}
    serial = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", play.pki / "s.pem"], capture_output=True, text=True, check=True
    ).stdout
    assert int(by_name["s"]["serial"], 16) == int(serial.strip().removeprefix("serial="), 16)
    assert by_name["s"]["reasons"] == ["missing"]
    assert re.match(r"\d{4}-\d\d-\d\dT", by_name["s"]["not_after"])
    assert made["consumers"] == {"etcd": ["s"]}
    assert "s.pem" in made["files"]

    said, made = play.run()
    assert (made["changed"], made["issued"], made["repaired"], made["files"]) == (False, [], [], [])

    (play.pki / "s-key.pem").chmod(0o644)
    (play.pki / "etcd-ca-bundle.pem").unlink()
    play.pki.chmod(0o777)
    said, made = play.run("--check", "--diff")
    assert (made["issued"], made["repaired"]) == ([], ["etcd-ca", "s"])
    assert made["same_as"] == {"etcd-ca-bundle.pem": "etcd-ca.pem"}
    assert "s: repair, s-key.pem has mode 0644, wanted 0600" in said
    assert "others may write there (mode 0777)" in " ".join(said.split())


def test_what_went_wrong_is_one_message(play: Play) -> None:
    wrong = {**SPEC, "certificates": [{**SPEC["certificates"][0], "ca": "etdc", "hosts": ["m1:80"]}]}
    _, made = play.run(spec=wrong)
    assert (made["failed"], made["changed"]) == (True, False)
    assert made["msg"].startswith("the PKI specification is wrong:\n  - certificate 's': unknown ca 'etdc'")
    assert "has a port" in made["msg"]
    _, made = play.run(spec={**SPEC, "cas": {"etcd": {"cn": "etcd-ca", "password": "env:NOTHING_THERE"}}})
    assert made["msg"].startswith("env:NOTHING_THERE: there is no such variable")
    assert [path.name for path in play.pki.iterdir()] == [".lock"]


def test_the_commands_know_what_the_task_asked_for(play: Play) -> None:
    kept = play.pki / "spec.yml"
    said, made = play.run("--check", "--diff", spec_file=str(kept))
    assert f"{kept}: written" in said
    assert not kept.exists()
    _, made = play.run(spec_file=str(kept))
    assert made["changed"]
    _, made = play.run(spec_file=str(kept))
    assert not made["changed"]
    environment = {**os.environ, "KUBEPKI_TEST_PASSWORD": PASSWORD}
    planned = subprocess.run(
        [sys.executable, "-m", "kubepki", "plan", str(kept)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.startswith(f"{play.pki}\nnothing to do")


def test_an_option_that_is_not_there(play: Play) -> None:
    _, made = play.run(directry="x")
    assert made["failed"]
    assert "directry" in made["msg"]
