"""What an operator is told before a restore, and the programs that the timer takes along."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kubewright import restore, upkeep

MIB = 1 << 20


def left(**more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"data": True, "interrupted": False, "free": 500 * MIB, "size": 50 * MIB}
    known["transfer"] = {"path": "/tmp/way", "free": 500 * MIB, "same": True}  # noqa: S108
    return {**known, "written": time.time() - 7200, "revision": None, **more}


def member(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "answers": False, "healthy": False, "revision": 0, **more}


def test_every_member_has_a_line_with_what_it_has() -> None:
    members = [
        member("m1", answers=True, healthy=True, revision=90),
        member("m2", answers=True, revision=80),
        member("m3"),
        member("m4"),
        member("m5"),
        member("m6"),
    ]
    remains = {"m3": left(revision=70), "m4": left(data=False), "m5": left(interrupted=True)}
    assert restore.states(members, remains) == [
        "m1: healthy, revision 90",
        "m2: answers, without a quorum, revision 80",
        "m3: data of 2 hours ago (50.0 MiB), revision 70, does not answer",
        "m4: no data",
        "m5: data of 2 hours ago (50.0 MiB), does not answer, from a restore that was interrupted",
        "m6: not in this run",
    ]
    assert restore.newest(members, remains) == 90
    assert restore.newest([member("m3")], {"m3": left(revision=70), "m4": left()}) == 70
    assert restore.newest([member("m3")], {}) == 0


def test_all_members_and_room_on_each_are_needed() -> None:
    remains = {"m1": left(), "m2": left(free=100 * MIB)}
    found = restore.problems(["m1", "m2", "m3"], remains, 100 * MIB, "/var/lib/etcd")
    assert len(found) == 2
    assert found[0].startswith("m3: not in this run")
    assert found[1] == "m2: /var/lib/etcd has 100 MiB free, 264 MiB are needed; make room there"
    assert restore.problems(["m1"], {"m1": left()}, 100 * MIB, "/x") == []


def test_the_snapshot_needs_room_on_its_way() -> None:
    way = {"path": "/root/.ansible/tmp/x", "free": 150 * MIB, "same": False}
    found = restore.problems(["m1"], {"m1": left(free=200 * MIB, transfer=way)}, 100 * MIB, "/var/lib/etcd")
    assert found == ["m1: /root/.ansible/tmp/x has 150 MiB free, 164 MiB are needed; make room there"]
    assert restore.problems(["m1"], {"m1": left(free=200 * MIB, transfer={**way, "free": 200 * MIB})}, 1, "/x") == []


def test_no_api_server_may_go_on_with_what_is_gone() -> None:
    found = restore.problems(["m1"], {"m1": left()}, MIB, "/x", ["m7"])
    assert len(found) == 1
    assert found[0].startswith("m7: not in this run, and an API server that goes on there")


def test_the_timers_program_needs_nothing_but_what_is_shipped(tmp_path: Path) -> None:
    for entry in upkeep.program(str(tmp_path)):
        path = Path(entry["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(entry["sources"][0]).read_bytes())
    reply = subprocess.run(
        [sys.executable, "-S", "-m", "kubewright.machine.etcd_snapshot", str(tmp_path / "none.json")],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert reply.returncode == 1
    assert reply.stderr.startswith("no snapshot: ")
    assert len(reply.stderr.splitlines()) == 1


def test_an_older_etcd_does_not_get_a_newer_snapshot() -> None:
    found = restore.too_old({"m1": "3.4.23", "m2": "3.5.4", "m3": "3.5.16"}, "3.5.16")
    assert [one.split(":")[0] for one in found] == ["m1"]
