from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kubewright import runlock
from kubewright.errors import UserError
from kubewright.turnstile import Turnstile

HOSTS = ["a", "b", "c"]


def _worker(directory: Path, host: str, leader: bool, log: Path) -> None:
    turnstile = Turnstile(directory, host, HOSTS)
    with turnstile, turnstile.turn(last=leader, patience=10):
        with log.open("a") as stream:
            stream.write(f"begin {host}\n")
        time.sleep(0.05)
        with log.open("a") as stream:
            stream.write(f"end {host}\n")
        turnstile.report("done")


def test_one_at_a_time_and_the_leader_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # A second of delay for the others: the leader arrives first and must wait.
    leader = multiprocessing.Process(target=_worker, args=(tmp_path / "t", "a", True, log))
    leader.start()
    time.sleep(0.2)
    others = [multiprocessing.Process(target=_worker, args=(tmp_path / "t", h, False, log)) for h in ("b", "c")]
    for process in others:
        process.start()
    for process in [leader, *others]:
        process.join(20)
        assert process.exitcode == 0
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["begin a", "end a"]
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert (begin.split()[0], end.split()[0]) == ("begin", "end")
        assert begin.split()[1] == end.split()[1]


def test_a_host_that_needs_no_turn_is_not_waited_for(tmp_path: Path) -> None:
    for host in ("b", "c"):
        Turnstile(tmp_path, host, HOSTS).report("done")
    begin = time.monotonic()
    with Turnstile(tmp_path, "a", HOSTS).turn(last=True, patience=30):
        pass
    assert time.monotonic() - begin < 5


def test_nobody_gets_a_turn_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), Turnstile(tmp_path, "a", HOSTS) as first, first.turn(last=False, patience=0.3):
        raise ConnectionError
    for host in ("b", "c"):
        turnstile = Turnstile(tmp_path, host, HOSTS)
        # Who is refused has not failed: the message goes on naming only the first.
        with (
            pytest.raises(UserError, match="because a failed before its turn"),
            turnstile,
            turnstile.turn(last=False, patience=0.3),
        ):
            raise AssertionError("had a turn")


def _fail(directory: Path, begun: threading.Event) -> None:
    with (
        contextlib.suppress(ConnectionError),
        Turnstile(directory, "a", HOSTS) as turnstile,
        turnstile.turn(last=False, patience=0.3),
    ):
        begun.set()
        time.sleep(0.5)
        raise ConnectionError


def test_who_waits_for_the_turn_of_one_that_fails_gets_none(tmp_path: Path) -> None:
    begun = threading.Event()
    failing = threading.Thread(target=_fail, args=(tmp_path, begun))
    failing.start()
    begun.wait(10)
    with (
        pytest.raises(UserError, match="because a failed"),
        Turnstile(tmp_path, "b", HOSTS).turn(last=False, patience=0.1),
    ):
        raise AssertionError("had a turn")
    failing.join(10)


def test_what_is_only_started_goes_first(tmp_path: Path) -> None:
    starting = Turnstile(tmp_path, "b", HOSTS)
    starting.report("starting")
    Turnstile(tmp_path, "c", HOSTS).report("done")
    threading.Timer(0.5, starting.report, ["failed"]).start()
    with (
        pytest.raises(UserError, match="because b failed"),
        Turnstile(tmp_path, "a", HOSTS).turn(last=False, patience=9),
    ):
        raise AssertionError("had a turn")


# A run and its workers, which are sessions of their own as those of Ansible are.
RUN = """
import os, sys, time
from pathlib import Path
from kubewright import runlock
from kubewright.turnstile import Turnstile
directory = Path(sys.argv[1])
runlock.current = runlock.Run(directory / "journal", "ansible-playbook site.yml", time.time())
for host in "abc":
    if not os.fork():
        os.setsid()
        try:
            with Turnstile(directory / "t", host, "abc") as turnstile, turnstile.turn(last=False, patience=10):
                (directory / f"begun {host}").touch()
                time.sleep(0.5)
        finally:
            (directory / f"ended {host}").touch()
            os._exit(0)
time.sleep(60)
"""


def test_nobody_gets_a_turn_after_the_run(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)]) as run:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("begun *")) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.kill()
    while len(list(tmp_path.glob("ended *"))) < len(HOSTS) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(tmp_path.glob("ended *"))) == len(HOSTS)
    assert len(list(tmp_path.glob("begun *"))) == 1


def test_nobody_gets_a_turn_when_somebody_else_has_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runlock.Run(tmp_path / "journal", "ansible-playbook site.yml", 0.0)
    monkeypatch.setattr(runlock, "current", run)
    with Turnstile(tmp_path / "t", "a", ["a"]) as turnstile, turnstile.turn(last=False, patience=0.1):
        pass
    os.write(run.tell, b"eve@ci\n")
    turnstile = Turnstile(tmp_path / "t2", "a", ["a"])
    with pytest.raises(UserError, match="lost its lock"), turnstile, turnstile.turn(last=False, patience=0.1):
        raise AssertionError("had a turn")
    # It is still there for the run itself.
    assert run.lost_to() == "eve@ci"
    run.end()


def test_patience_ends(tmp_path: Path) -> None:
    with Turnstile(tmp_path, "a", HOSTS).turn(last=True, patience=0.3):
        pass
