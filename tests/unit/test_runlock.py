from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubewright import runlock

# A run that takes the lock, starts a keeper from a forked worker as Ansible does, and waits.
RUN = """
import os, sys, time
from pathlib import Path
from kubewright import runlock
runlock.BEAT_SECONDS = 0.2
directory = Path(sys.argv[1])
run = runlock.Run(directory / "journal", "ansible-playbook site.yml", time.time())
worker = os.fork()
if not worker:
    def beat():
        (directory / "beat").write_text("x")
        return "eve@ci, who is faster" if "taken" in sys.argv else ""
    runlock.keep(run, beat, lambda: (directory / "returned").write_text("x"))
    if "worker stays" in sys.argv:
        time.sleep(60)
    os._exit(0)
print("begun" if run.holder is None else f"refused {run.holder.get('id')}", flush=True)
while "taken" in sys.argv and not (taken := run.lost_to()):
    time.sleep(0.02)
if "taken" in sys.argv:
    print(taken, flush=True)
sys.stdin.readline()
run.end()
"""


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(directory), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def appears(path: Path) -> bool:
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.exists()


def test_the_second_run_is_told_of_the_first(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert said(first) == "begun"
        run = runlock.Run(tmp_path / "journal", "another", 5.0)
        assert run.holder
        assert run.holder["pid"] == first.pid
        message, hint = runlock.refused_here(run.holder, run.holder["since"] + 200)
        assert f"(pid {first.pid}), since " in message
        assert "(3 min ago): ansible-playbook site.yml" in message
        assert f"kill {first.pid}" in hint
        # What it says at its own end does not concern the first.
        run.end()
        assert runlock.read(run.path)["pid"] == first.pid
        assert runlock.is_held(run.path)
        first.communicate("\n")
    assert not runlock.is_held(run.path)


def test_a_run_that_ends_leaves_nothing(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        said(first)
        assert not (tmp_path / "returned").exists()
        first.communicate("\n")
    assert appears(tmp_path / "returned")
    run = runlock.Run(tmp_path / "journal", "next", 5.0)
    assert run.holder is None
    assert run.killed == {}
    run.end()


def test_a_killed_run_gives_all_back_though_its_workers_live_on(tmp_path: Path) -> None:
    with start(tmp_path, "worker stays") as first:
        said(first)
        assert appears(tmp_path / "beat")
        first.kill()
        first.wait()
        assert appears(tmp_path / "returned")
        run = runlock.Run(tmp_path / "journal", "next", 5.0)
        assert run.holder is None
        assert run.killed["pid"] == first.pid
        run.end()
        os.killpg(first.pid, signal.SIGKILL)


def test_a_run_is_told_that_its_lock_was_taken_over_and_gives_nothing_back(tmp_path: Path) -> None:
    with start(tmp_path, "taken") as first:
        assert said(first) == "begun"
        assert said(first) == "eve@ci, who is faster"
        first.communicate("\n")
    time.sleep(0.3)
    assert not (tmp_path / "returned").exists()


def test_who_has_the_lock_instead_is_one_line() -> None:
    holder = {"id": "1", "who": "eve@ci", "pid": 6, "since": 0.0, "command": "c\nd"}
    assert runlock.lost("node01", json.dumps(holder), 5.0) == (
        "eve@ci (pid 6), since 1970-01-01 00:00:00 UTC (5 s ago): c d (its lock is on node01)"
    )
    for damaged in ("", "{", '{"id": 1}'):
        assert runlock.lost("node01", damaged, 5.0) == "another run (its lock is on node01)"


def test_no_place_for_a_lock_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("in the way")
    run = runlock.Run(tmp_path / "journal", "x", 5.0)
    assert "journal" in run.trouble
    assert run.holder is None
    # Nobody can be sure to be the same controller.
    assert run.me["controller"] == ""
    run.end()


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"id": "1"})])
def test_what_is_no_lock_tells_of_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    assert runlock.read(tmp_path / "lock") == {}
    assert not runlock.is_held(tmp_path / "lock")
    assert not runlock.is_held(tmp_path / "nothing")


def test_other_controllers_are_named_with_their_machines() -> None:
    holder = {"id": "20260102-030405-6", "who": "eve@ci", "pid": 6, "since": 0.0, "command": "c"}
    message, hint = runlock.refused_there({"a": holder, "b": holder}, 60.0)
    assert message.endswith("eve@ci (pid 6), since 1970-01-01 00:00:00 UTC (60 s ago): c (its lock is on a, b)")
    assert hint.endswith("-e break_lock=20260102-030405-6")


def test_locks_that_were_not_respected_are_told() -> None:
    void = {"id": "1", "who": "eve@ci", "pid": 6, "since": 0.0, "command": "c"}
    silent = {"holder": {}, "void": void, "why": "silent"}
    locks = {"a": silent, "b": silent, "c": {"holder": {}, "void": void, "why": "ended"}, "d": {"holder": {}}}
    (text,) = runlock.taken_over(locks, 5.0)
    assert text.startswith("this run takes the lock on a, b from eve@ci (pid 6)")
    assert text.endswith("which had not been heard of for 3 minutes")


@pytest.mark.parametrize(
    ("answering", "asked", "expected"),
    [
        (["a", "b", "c", "n"], ["a", "b", "c", "n"], []),
        # The first is away, and nobody asks it twice.
        (["b", "c"], ["a", "b", "c"], []),
        (["n"], ["n"], ["a", "b", "c"]),
        (["b"], ["b"], ["a"]),
        (["c"], ["b", "c"], ["a"]),
    ],
)
def test_runs_with_limits_meet(answering: list[str], asked: list[str], expected: list[str]) -> None:
    assert runlock.places(["a", "b", "c"], answering, asked) == expected
