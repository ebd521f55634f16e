from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kubewright.machine import files, lock


def run(number: int, controller: str = "") -> dict[str, Any]:
    name = f"20260102-030405-{number}"
    about = {"who": "anna@ops", "pid": number, "since": 1.0, "command": "ansible-playbook site.yml"}
    return {"id": name, "controller": controller or f"ops{number}", **about}


class Place:
    """A lock in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.path, self.beat = directory / "run/lock", directory / "run/lock.beat"

    def take(self, wanted: dict[str, Any], broken: str = "") -> dict[str, Any]:
        return lock.take(wanted, broken, str(self.path), str(self.beat))

    def look(self) -> dict[str, Any]:
        holder: dict[str, Any] = lock.look(str(self.path), str(self.beat))["holder"]
        return holder

    def silent_for(self, seconds: float) -> None:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        self.beat.write_text(f"{uptime - seconds} 1.0\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(files, "owner_ids", lambda *_: (os.getuid(), os.getgid()))
    return Place(tmp_path)


def test_one_run_has_it(place: Place) -> None:
    assert place.take(run(1)) == {"holder": {}, "new": True, "void": {}, "why": ""}
    assert place.take(run(2))["holder"] == run(1)
    assert place.look() == run(1)
    # The same run asks again: a playbook that imports two preflights.
    assert place.take(run(1)) == {"holder": {}, "new": False, "void": {}, "why": ""}


def test_a_run_that_ended_on_the_same_controller_blocks_nobody(place: Place) -> None:
    place.take(run(1, "here"))
    assert place.take(run(2, "here")) == {"holder": {}, "new": True, "void": run(1, "here"), "why": "ended"}
    assert place.look() == run(2, "here")


def test_two_without_a_controller_are_not_the_same(place: Place) -> None:
    place.take({**run(1), "controller": ""})
    assert place.take({**run(2), "controller": ""})["holder"]["id"] == run(1)["id"]


def test_silence_ends_it(place: Place) -> None:
    place.take(run(1))
    place.silent_for(lock.SILENCE_SECONDS - 5)
    assert place.take(run(2))["holder"] == run(1)
    place.silent_for(lock.SILENCE_SECONDS + 5)
    assert place.look() == {}
    assert place.take(run(2))["why"] == "silent"
    # And the new one begins to be heard of.
    assert place.look() == run(2)


def test_it_is_broken_by_its_name_only(place: Place) -> None:
    place.take(run(1))
    assert place.take(run(2), broken="true")["holder"] == run(1)
    assert place.take(run(2), broken=run(1)["id"])["why"] == "broken"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}'])
def test_a_damaged_lock_is_nobody_s(place: Place, content: str) -> None:
    place.path.parent.mkdir()
    place.path.write_text(content)
    assert place.look() == {}
    assert place.take(run(1))["new"]


def test_the_commands_of_the_keeper_concern_its_own_lock(place: Place) -> None:
    place.take(run(1))
    place.silent_for(100)
    before = place.beat.read_text()
    replies = [
        subprocess.run(["/bin/sh", "-c", other], check=False, capture_output=True, text=True)
        for other in lock.upkeep("20260102-030405-11", str(place.path), str(place.beat))
    ]
    # It is told whose the lock is now.
    assert [reply.returncode for reply in replies] == [lock.TAKEN, 0]
    assert json.loads(replies[0].stdout) == run(1)
    assert place.beat.read_text() == before
    assert json.loads(place.path.read_text()) == run(1)
    beat, give_back = lock.upkeep(run(1)["id"], str(place.path), str(place.beat))
    subprocess.run(["/bin/sh", "-c", beat], check=True)
    assert place.beat.read_text() != before
    subprocess.run(["/bin/sh", "-c", give_back], check=True)
    assert not list(place.path.parent.iterdir())
    # A machine that started anew has none.
    for command in (beat, give_back):
        subprocess.run(["/bin/sh", "-c", command], check=True)
    assert not list(place.path.parent.iterdir())


def test_only_root_reads_who_runs_what(place: Place) -> None:
    place.path.parent.mkdir()
    place.path.touch(0o644)
    place.take(run(1))
    assert {file.stat().st_mode & 0o777 for file in place.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("which", [0, 1])
def test_the_keeper_waits_for_who_is_looking(place: Place, which: int) -> None:
    place.take(run(1))
    place.silent_for(100)
    before = place.beat.read_text()
    command = lock.upkeep(run(1)["id"], str(place.path), str(place.beat))[which]
    with place.path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with subprocess.Popen(["/bin/sh", "-c", command]) as keeper:
            with pytest.raises(subprocess.TimeoutExpired):
                keeper.wait(0.3)
            assert place.beat.read_text() == before
            fcntl.flock(held, fcntl.LOCK_UN)
            assert keeper.wait(10) == 0
    assert place.path.exists() == (which == 0)
