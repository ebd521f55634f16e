from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubewright import journal
from kubewright.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["-e", "a=1 b='hunter2'"], "-e a=... b=..."),
        (["-e", '{"a": 1, "b": {"c": "hunter2"}}'], "-e {a, b}"),
        (["-e", '{"a": hunter2'], "-e {...}"),
        (["-e", "hunter2"], "-e ..."),
        (["-ea=hunter2", "--limit", "node01"], "-ea=... --limit node01"),
        (["--extra-vars=a=hunter2"], "--extra-vars=a=..."),
        (["--extra", "a=hunter2"], "--extra a=..."),
        (["--e=a=hunter2"], "--e=a=..."),
        (["-ve", "a=hunter2"], "-ve a=..."),
        (["-Cvea=hunter2", "-vv"], "-Cvea=... -vv"),
        # The value of another option.
        (["-le", "-tetcd", "--limit=e"], "-le -tetcd --limit=e"),
        (["-e", "token=aHVudGVyMg=="], "-e token=..."),
        (["-e", "a='x hunter2=y' b=1"], "-e a=... b=..."),
        (["-e", "a='hunter2 b=1"], "-e ..."),
        (["-e", "hunt?er2=1"], "-e ..."),
        # Slips: YAML without braces, a blank too many, the secret alone.
        (["-e", "password: aHVudGVyMg=="], "-e ..."),
        (["-e", "a=1 password: aHVudGVyMg=="], "-e ..."),
        (["-e", "token= aHVudGVyMg=="], "-e ..."),
        (["-e", "token = aHVudGVyMg=x"], "-e ..."),
        (["-e", "aHVudGVyMg=="], "-e ..."),
        (["-e", "aHVudGVyMjI="], "-e ..."),
        (["--extra-vars", "@/etc/secrets.yml", "--tags", "etcd"], "--extra-vars @/etc/secrets.yml --tags etcd"),
    ],
)
def test_command_lines_keep_no_values(typed: list[str], expected: str) -> None:
    assert journal.command_line(["/usr/bin/ansible-playbook", "site.yml", *typed]) == (
        f"ansible-playbook site.yml {expected}"
    )


def test_a_reason_is_one_line() -> None:
    assert journal.first_line("\n  Task failed: Module failed: it broke\n  hint") == "it broke"
    assert journal.first_line("") == "no reason was given"


def test_of_a_loop_the_item_that_failed_tells_the_reason() -> None:
    items = [{"msg": "fine"}, {"failed": True, "msg": "no quorum\nhint"}, {"failed": True, "msg": "later"}]
    assert journal.reason({"msg": "One or more items failed", "results": items}) == "no quorum"
    assert journal.reason({"msg": "it broke", "results": "of something else"}) == "it broke"


RECORD: dict[str, Any] = {
    "id": "20260102-030405-6",
    "who": "anna@ops",
    "pid": 6,
    "command": "ansible-playbook site.yml",
    "began": 0.0,
    "ended": 2.0,
    "seconds": 2.0,
    "result": "ok",
    "check": False,
    "playbooks": ["site.yml"],
    "versions": {"etcd": "3.4.23"},
    "hosts": {"a": {"ok": 3, "changed": 1, "failures": 0, "unreachable": 0}},
    "stages": {"Etcd cluster": 1.5},
    "changed": [{"host": "a", "task": "t", "items": ["file /x"]}],
    "failed": [],
    "left_out": [],
}


def test_the_newest_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    for number in range(5):
        journal.write(tmp_path, {**RECORD, "id": f"20260102-03040{number}-6"}, 3)
    assert [run["id"] for run in journal.runs(tmp_path)] == [f"20260102-03040{number}-6" for number in (2, 3, 4)]
    assert (tmp_path / "notes.json").exists()
    assert (tmp_path / "last").read_text() == journal.text(journal.runs(tmp_path)[-1])


def test_a_killed_run_is_written_down_once(tmp_path: Path) -> None:
    holder = {"id": "20260102-030405-6", "who": "a@b", "pid": 6, "since": 5.0, "command": "c", "controller": "d"}
    (tmp_path / "lock").write_text(json.dumps(holder))
    assert [run["result"] for run in journal.runs(tmp_path)] == ["killed"]
    journal.killed(tmp_path, holder)
    assert [run["result"] for run in journal.runs(tmp_path)] == ["killed"]
    assert "killed" in journal.brief(journal.runs(tmp_path)[0])
    assert "result    killed" in journal.text(journal.runs(tmp_path)[0])
    # A lock that somebody wrote by hand is no way to write elsewhere.
    journal.killed(tmp_path, {**holder, "id": "../x"})
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "20260102-030405-6.json").write_text("{")
    assert journal.runs(tmp_path) == []


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["journal", "-i", str(tmp_path), "last"])
    assert journal.main() == 1
    assert "there is no run in this journal" in capsys.readouterr().err
    journal.write(tmp_path / "journal", RECORD, 3)
    assert journal.main() == 0
    assert "changed   a: t: file /x" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["journal", "-i", str(tmp_path)])
    assert journal.main() == 0
    assert "1 changed  anna@ops: ansible-playbook site.yml" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no run 'x'"):
        journal._chosen([RECORD], "x")


ASK = """
from ansible.plugins.action import ActionBase
from kubewright import runlock
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        how = (task_vars or {}).get("how", {}).get(task_vars["inventory_hostname"], {"changed": False})
        return {**how, "lock_of": runlock.current and runlock.current.me["id"]}
"""
PLAYS: list[dict[str, Any]] = [
    {"name": "First", "hosts": "all", "gather_facts": False, "tasks": [{"name": "Ask", "kubewright_machine": {}}]},
    {"name": "Second", "hosts": "a", "gather_facts": False, "tasks": [{"name": "Wait", "kubewright_wait": {}}]},
]


class Project:
    """The callbacks, and a playbook whose preflight asks nobody."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        for name in ("callback_plugins", "action_plugins"):
            (directory / name).mkdir()
        for plugin in ("run", "screen"):
            shutil.copy(ROOT / f"callback_plugins/kubewright_{plugin}.py", directory / "callback_plugins")
        (directory / "action_plugins/kubewright_machine.py").write_text(ASK)
        (directory / "action_plugins/kubewright_wait.py").write_text(ASK.replace('"how"', '"wait"'))
        for name in ("kubewright_machine", "kubewright_wait"):
            (directory / "library").mkdir(exist_ok=True)
            (directory / "library" / f"{name}.py").write_text("# An action only.\n")
        text = (ROOT / "ansible.cfg").read_text()
        (directory / "ansible.cfg").write_text(text)
        (directory / "site.yml").write_text(json.dumps(PLAYS))
        (directory / "other.yml").write_text(json.dumps(PLAYS[1:]))
        (directory / "inventory").mkdir()
        hosts = {name: {"ansible_connection": "local"} for name in ("a", "b")}
        (directory / "inventory/hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))

    def start(self, playbook: str, *arguments: str) -> subprocess.Popen[str]:
        command = [Path(sys.executable).with_name("ansible-playbook"), playbook, "-i", "inventory", *arguments]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(self.path / "ansible.cfg"),
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def play(self, playbook: str, *arguments: str) -> tuple[int, str]:
        with self.start(playbook, *arguments) as process:
            output, _ = process.communicate(timeout=60)
            return process.returncode, output

    def runs(self) -> list[dict[str, Any]]:
        return journal.runs(self.path / "inventory/journal")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_run_is_written_down(project: Project) -> None:
    status, output = project.play("site.yml", "-e", json.dumps({"password": SECRET}), "--limit", "a")
    assert status == 0, output
    (run,) = project.runs()
    assert (run["result"], run["limit"], run["tags"], run["check"]) == ("ok", "a", ["all"], False)
    assert list(run["stages"]) == ["First", "Second"]
    assert run["hosts"]["a"]["ok"] == 2
    assert run["playbooks"] == ["site.yml"]
    assert journal.last_of(project.path / "inventory/journal", "site.yml") == run
    kept = list((project.path / "inventory/journal").iterdir())
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert not [path for path in kept if SECRET in path.read_text()]


def test_playbooks_without_a_preflight_have_no_journal(project: Project) -> None:
    assert project.play("other.yml")[0] == 0
    assert not (project.path / "inventory/journal").exists()


def test_a_look_ahead_has_no_lock(project: Project) -> None:
    assert project.play("site.yml", "--check")[0] == 0
    assert project.runs()[0]["check"]
    assert not (project.path / "inventory/journal/lock").exists()


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ({"failed": True, "msg": "it is broken\n  mend it"}, 2, "failed (more above):"),
        ({"unreachable": True, "msg": "no route"}, 4, "cannot be reached, left out:"),
    ],
)
def test_a_lost_machine_fails_the_run_though_later_plays_do_not_have_it(
    project: Project, how: dict[str, Any], status: int, words: str
) -> None:
    ended, output = project.play("site.yml", "-e", json.dumps({"how": {"b": how}}))
    assert ended == status
    reason = how["msg"].splitlines()[0]
    closing = output.partition("total")[2]
    assert f"{words}\n  b, in 'Ask': {reason}\nMend the cause; the same command again resumes the run.\n" in closing
    # Once in full, once in the closing words.
    assert output.count(reason) == 2
    (run,) = project.runs()
    assert run["result"] == "failed"
    assert [entry["host"] for entry in run["failed"] + run["left_out"]] == ["b"]
    assert run["hosts"]["a"]["ok"] == 2


def poll(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("how", "result"), [(signal.SIGINT, "interrupted"), (signal.SIGKILL, "killed")])
def test_runs_that_do_not_end_by_themselves(project: Project, how: signal.Signals, result: str) -> None:
    waits = project.path / "waits"
    slow = (project.path / "action_plugins/kubewright_wait.py").read_text()
    (project.path / "action_plugins/kubewright_wait.py").write_text(
        slow.replace("super().run", f"open({str(waits)!r}, 'w').close(); __import__('time').sleep(20); super().run")
    )
    with project.start("site.yml") as process:
        # Not before: Ansible hangs when Ctrl-C meets a worker that is about to tell that its task begins.
        poll(waits.exists, process)
        assert [run["result"] for run in project.runs()] == ["under way"]
        os.killpg(process.pid, how)
        process.communicate(timeout=30)
        assert process.returncode != 0
    assert [run["result"] for run in project.runs()] == [result]


def test_a_run_whose_lock_was_taken_over_stops_with_one_message(project: Project) -> None:
    tell = 'runlock.current and runlock.os.write(runlock.current.tell, b"eve@ci\\n")'
    (project.path / "action_plugins/kubewright_machine.py").write_text(
        ASK.replace("        super()", f"        {tell}\n        super()")
    )
    status, output = project.play("site.yml")
    assert status == 1
    assert output.count("this run stops, for its lock was taken over by eve@ci") == 2
    assert "Traceback" not in output
    (run,) = project.runs()
    assert run["result"] == "interrupted"
    assert [task["task"] for task in run["tasks"]] == ["Ask", "Wait"]


def test_what_was_rescued_has_not_failed(project: Project) -> None:
    bad = {"name": "Try", "kubewright_wait": {}}
    rescued = {"name": "Try it", "block": [bad], "rescue": [{"name": "Ask again", "kubewright_machine": {}}]}
    (project.path / "site.yml").write_text(json.dumps([PLAYS[0], {**PLAYS[1], "tasks": [rescued]}]))
    status, output = project.play("site.yml", "-e", json.dumps({"wait": {"a": {"failed": True, "msg": "not yet"}}}))
    assert status == 0, output
    (run,) = project.runs()
    assert (run["result"], run["failed"]) == ("ok", [])


def test_an_error_that_is_no_machine_s_is_a_failure(project: Project) -> None:
    (project.path / "site.yml").write_text(json.dumps([PLAYS[0], {**PLAYS[1], "hosts": "{{ nothing_of_the_kind }}"}]))
    assert project.play("site.yml")[0] != 0
    assert [run["result"] for run in project.runs()] == ["failed"]


def test_a_journal_that_cannot_be_written_is_a_warning(project: Project) -> None:
    (project.path / "inventory/journal").write_text("in the way")
    (project.path / "ansible.cfg").write_text(
        (project.path / "ansible.cfg").read_text().replace("ignore_patterns =", "ignore_patterns = ^journal$,")
    )
    status, output = project.play("site.yml")
    said = " ".join(output.split())
    assert status == 0, output
    assert "this run has no lock beside the inventory" in said
    assert "the journal of this run is not kept" in said
    assert "Traceback" not in said
