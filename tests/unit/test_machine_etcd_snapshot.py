"""Snapshots, upkeep and restores of a real etcd on the loopback, and who is asked for what."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked

from kubewright.machine import etcd, etcd_restore, etcd_scratch, etcd_snapshot, etcd_status, etcd_upkeep, health

CONFIG = "/coreos.com/network/config"


def seen(name: str, **more: Any) -> dict[str, Any]:
    known = {"name": name, "url": name, "answers": True, "healthy": True, "reason": "", "member": name[-1]}
    known |= {"leader": False, "learner": False, "alarms": [], "db_size": 100 << 20, "db_used": 90 << 20, "revision": 9}
    return {**known, "cluster": "c", "version": "3.4.23", **more}


def test_a_snapshot_is_not_asked_of_the_leader_where_another_can() -> None:
    members = [seen("m1", leader=True), seen("m2"), seen("m3")]
    assert (etcd_status.of_choice(members) or {})["name"] == "m2"
    assert (etcd_status.of_choice(members, "m3") or {})["name"] == "m3"
    assert (etcd_status.of_choice(members, "m1") or {})["name"] == "m2"
    members = [seen("m1", leader=True), seen("m2", healthy=False), seen("m3", alarms=["CORRUPT"])]
    assert (etcd_status.of_choice(members) or {})["name"] == "m1"
    assert etcd_status.of_choice([seen("m2", healthy=False), seen("m4", learner=True)]) is None


def test_all_members_agree_on_who_takes_the_scheduled_one() -> None:
    members = [seen("m1", leader=True), seen("m3"), seen("m2")]
    assert {etcd_status.on_duty(order) for order in (members, members[::-1])} == {"m2"}
    assert etcd_status.on_duty([seen("m1", leader=True), seen("m2", healthy=False)]) == "m1"
    assert etcd_status.on_duty([seen("m2", healthy=False)]) == ""


def test_only_what_is_worth_it_is_defragmented_and_the_leader_last() -> None:
    airy = {"db_used": 10 << 20}
    members = [seen("m1", leader=True, **airy), seen("m2", **airy), seen("m3"), seen("m4", db_size=1 << 20, db_used=1)]
    assert [one["name"] for one in etcd_upkeep.plan(members, 30, 64 << 20, 4 << 30)] == ["m2", "m1"]
    assert [one["name"] for one in etcd_upkeep.plan([seen("m5", alarms=["NOSPACE"])], 30, 1 << 40, 1)] == ["m5"]
    nearly_full = [seen("m6", db_size=95 << 20)]
    assert [one["name"] for one in etcd_upkeep.plan(nearly_full, 99, 1 << 40, 100 << 20)] == ["m6"]


def test_the_table_shows_what_a_person_looks_for() -> None:
    members = [seen("m1", leader=True, alarms=["NOSPACE"]), {"name": "m2", "answers": False}]
    text = "\n".join(etcd_status.table(members))
    assert "leader, ALARM NOSPACE" in text
    assert "does not answer" in text


def test_rotation_keeps_the_newest() -> None:
    names = [f"etcd-2026010{day}T000000Z-r{day}.db" for day in range(1, 5)]
    assert etcd_snapshot.surplus([*names, "mine.db", ".partial-scheduled-1.db"], 2) == names[:2]
    assert etcd_snapshot.surplus(names[:1], 0) == []


@pytest.fixture(scope="module")
def programs() -> Path:
    """A directory with etcd and etcdctl, as machines have them."""
    root = unpacked("etcd", ["etcd-server"])
    client = unpacked("etcdctl", ["etcd-client"])
    return _linked(root, client)


def _linked(root: Path, client: Path) -> Path:
    path = client / "both"
    path.mkdir(exist_ok=True)
    for name, home in (("etcd", root), ("etcdctl", client)):
        if not (path / name).exists():
            (path / name).symlink_to(home / "usr/bin" / name)
    return path


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "programs" in request.fixturenames:
        path = request.getfixturevalue("programs")
        monkeypatch.setattr(etcd_snapshot, "_PATH", f"{path}:/usr/bin:/bin")
        monkeypatch.setattr(etcd_scratch, "BINARY", str(path / "etcd"))


def names(path: Path | str) -> list[str]:
    return sorted(one.name for one in Path(path).iterdir())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Member:
    def __init__(self, programs: Path, data: Path, *more: str) -> None:
        self.data = data
        self.url = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        command = [str(programs / "etcd"), "--name=one", f"--data-dir={data}", "--logger=zap"]
        command += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        command += [f"--initial-cluster=one={peer}", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while health.probe({"kind": "etcd", "url": self.url}) and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def listed(self) -> list[dict[str, str]]:
        return [{"name": "one", "url": self.url}]

    def put(self, key: str, value: str) -> None:
        etcd.ask({"url": self.url}, "/v3/kv/put", {"key": etcd._b64(key), "value": etcd._b64(value)})

    def fill(self) -> None:
        for _ in range(100):
            self.put("/big", "x" * 500000)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def living(programs: Path, tmp_path: Path) -> Iterator[Member]:
    member = Member(programs, tmp_path / "data", "--quota-backend-bytes=16777216")
    for number in range(20):
        member.put(f"/registry/namespaces/{number}", '{"kind":"Namespace"}')
    member.put(CONFIG, '{"Network":"10.1.0.0/16"}')
    yield member
    member.stop()


def test_a_snapshot_is_proven_and_restored(living: Member, tmp_path: Path) -> None:
    directory = str(tmp_path / "snapshots")
    members = [*living.listed, {"name": "dead", "url": f"http://127.0.0.1:{free_port()}"}]
    taken = etcd_snapshot.lend(members, {}, directory, "dead", "root")
    assert taken["member"] == "one"
    assert taken["revision"] == 22
    assert Path(taken["path"]).stat().st_mode & 0o777 == 0o600
    told = etcd_scratch.rehearse(taken["path"], directory, {}, CONFIG, taken["revision"])
    assert (told["keys"], told["revision"]) == (21, 22)
    assert told["samples"] == ["20 namespaces", "flannel's network 10.1.0.0/16"]
    assert names(directory) == [Path(taken["path"]).name]
    with pytest.raises(etcd_snapshot.SnapshotError, match="restored, it is at revision 22, the backup says 23"):
        etcd_scratch.rehearse(taken["path"], directory, {}, CONFIG, 23)
    living.put(CONFIG, "gibberish")
    taken = etcd_snapshot.lend(living.listed, {}, directory, "", "root")
    with pytest.raises(etcd_snapshot.SnapshotError, match="holds no configuration of flannel"):
        etcd_scratch.rehearse(taken["path"], directory, {}, CONFIG, 1)
    assert names(directory) == [Path(taken["path"]).name]
    with Path(taken["path"]).open("r+b") as stream:
        stream.seek(9000)
        stream.write(b"\xff")
    assert not etcd_snapshot.is_whole(taken["path"])
    with pytest.raises(etcd_snapshot.SnapshotError, match="expected sha256"):
        etcd_scratch.rehearse(taken["path"], directory, {}, CONFIG, 1)


def test_one_is_kept_before_an_upgrade(living: Member, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(etcd_snapshot, "BEFORE_UPGRADE", str(tmp_path / "s"))
    for _ in range(2):
        kept = etcd_snapshot.keep(living.listed, {}, "one")
    assert names(tmp_path / "s") == ["before-upgrade.db"]
    assert etcd_snapshot.is_whole(kept["path"])


def test_a_disk_that_is_too_small_is_said_before(living: Member, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(etcd_snapshot, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(etcd_snapshot.SnapshotError, match=r"has 1\.0 MiB free, .* are needed for a snapshot of one"):
        etcd_snapshot.lend(living.listed, {}, str(tmp_path / "s"), "", "root")
    assert names(tmp_path / "s") == []


def test_the_timer_takes_one_and_keeps_some(living: Member, tmp_path: Path) -> None:
    directory = tmp_path / "snapshots"
    config = {"name": "one", "members": living.listed, "tls": {}, "directory": str(directory), "keep": 1}
    assert "21 keys" not in etcd_snapshot.scheduled({**config, "name": "two"})
    assert etcd_snapshot.scheduled({**config, "name": "two"}) == "left to one"
    directory.mkdir()
    (directory / "etcd-20200101T000000Z-r1.db").write_text("old")
    (directory / ".partial-scheduled-9.db").write_text("of a run that was killed")
    (directory / ".partial-lent-9.db").write_text("of a backup that is being fetched")
    assert "keys, hash" in etcd_snapshot.scheduled(config)
    assert [name[-7:] for name in names(directory)] == ["nt-9.db", "-r22.db"]
    (directory / ".partial-scheduled-9.db").write_text("being written")
    etcd_snapshot.clear_partial(str(directory))
    assert [name[-7:] for name in names(directory)] == ["ed-9.db", "-r22.db"]


def test_what_a_dead_member_holds_is_salvaged_from_its_log(living: Member, tmp_path: Path) -> None:
    living.put("/last", "word")
    living.stop()
    before = {path: path.read_bytes() for path in living.data.rglob("*") if path.is_file()}
    taken = etcd_scratch.salvage(str(living.data / "member"), str(tmp_path / "s"), {}, "root")
    assert taken["revision"] == 23
    assert {path: path.read_bytes() for path in living.data.rglob("*") if path.is_file()} == before
    assert names(tmp_path / "s") == [Path(taken["path"]).name]


def test_room_for_a_dead_members_data_is_looked_at_before(
    living: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living.stop()
    room = etcd_scratch.salvage_room(str(living.data / "member"))
    aside = living.data / "member.before-20200101T000000Z"
    aside.mkdir()
    (aside / "db").write_bytes(b"page" * 1024)
    arguments = (str(living.data), "https://192.0.2.1:2379", str(tmp_path / "s"), str(tmp_path))
    assert room > 0
    monkeypatch.setattr(etcd_snapshot, "free_bytes", lambda _: room + (64 << 20))
    assert etcd_restore.remains(*arguments)["lacks"] == ""
    monkeypatch.setattr(etcd_snapshot, "free_bytes", lambda _: room + (64 << 20) - 1)
    assert "are needed for a copy of the data" in etcd_restore.remains(*arguments)["lacks"]


PEER = "http://127.0.0.1:1"
IDENTITY = {"name": "one", "peer": PEER, "cluster": f"one={PEER}", "token": "t1"}


def test_a_restore_never_removes_data(living: Member, programs: Path, tmp_path: Path) -> None:
    taken = etcd_snapshot.lend(living.listed, {}, str(tmp_path / "s"), "", "root")
    living.put("/after", "x")
    living.stop()
    data = str(living.data)
    # Whatever the first one made may have run for weeks before the second.
    for moment in ("FIRST", "SECOND"):
        done = etcd_restore.place(taken["path"], taken["sha256"], data, IDENTITY, moment)
        assert done["moved"] == f"{data}/member.before-{moment}"
    assert names(data) == ["member", "member.before-FIRST", "member.before-SECOND"]
    again = Member(programs, living.data, "--force-new-cluster")
    try:
        known = etcd_status.survey(again.listed, {})[0]
        assert known["revision"] == taken["revision"]
    finally:
        again.stop()


def test_data_that_an_interrupted_restore_moved_aside_is_found(
    living: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = etcd_snapshot.lend(living.listed, {}, str(tmp_path / "s"), "", "root")
    living.put("/after", "x")
    living.stop()
    data = str(living.data)
    rename = os.rename

    def killed_between(source: str, target: str) -> None:
        if source.endswith(".kubewright-restoring/member"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(etcd_restore.os, "rename", killed_between)
        with pytest.raises(KeyboardInterrupt):
            etcd_restore.place(taken["path"], taken["sha256"], data, IDENTITY, "FIRST")
    assert not Path(data, "member").exists()
    left = etcd_restore.remains(data, "", data, data)
    assert (left["data"], left["interrupted"], left["size"] > 0) == (True, True, True)
    rescued = etcd_restore.salvage(data, str(tmp_path / "s"), {}, "root")
    assert rescued["revision"] == taken["revision"] + 1
    done = etcd_restore.place(rescued["path"], rescued["sha256"], data, IDENTITY, "SECOND")
    assert done["moved"] == f"{data}/member.before-FIRST"
    assert names(data) == ["member", "member.before-FIRST"]


def test_a_machine_without_data_has_none(tmp_path: Path) -> None:
    left = etcd_restore.remains(str(tmp_path / "none"), "", str(tmp_path), str(tmp_path))
    assert (left["data"], left["interrupted"], left["transfer"]["same"]) == (False, False, True)


def raised(living: Member, alarm: str, member: int = 0) -> None:
    own = etcd.ask({"url": living.url}, "/v3/maintenance/status", {})["header"]["member_id"]
    body = {"action": "ACTIVATE", "memberID": str(member or own), "alarm": alarm}
    etcd.ask({"url": living.url}, "/v3/maintenance/alarm", body)


@pytest.mark.parametrize("alarm", ["NOSPACE", "CORRUPT"])
def test_an_alarm_is_not_the_health(living: Member, alarm: str) -> None:
    raised(living, alarm, 7)
    assert health.probe({"kind": "http", "url": f"{living.url}/health", "expect": '"health":"true"'})
    seen = etcd_status.survey(living.listed, {})
    assert (seen[0]["healthy"], seen[0]["alarms"]) == (True, [])
    assert (etcd_status.of_choice(seen) or {})["name"] == "one"


def test_a_snapshot_is_taken_while_there_is_no_space(living: Member, tmp_path: Path) -> None:
    raised(living, "NOSPACE")
    assert etcd_snapshot.lend(living.listed, {}, str(tmp_path), "", "root")["keys"] >= 21
    raised(living, "CORRUPT")
    with pytest.raises(etcd_snapshot.SnapshotError, match=r"no etcd member is healthy.*CORRUPT"):
        etcd_snapshot.lend(living.listed, {}, str(tmp_path), "", "root")


def test_alarms_of_members_that_are_gone_are_lifted(living: Member) -> None:
    raised(living, "NOSPACE", 0xABC)
    raised(living, "CORRUPT", 0xABC)
    with pytest.raises(etcd.EtcdError):
        living.put("/x", "y")
    limits = {"threshold": 30, "smallest": 1 << 30, "quota": 16777216}
    foreseen = etcd_upkeep.maintain(living.listed, {}, limits, True)
    assert sorted(foreseen["told"]) == [
        f"alarm {alarm} of abc, which is no member any more: would be lifted" for alarm in ("CORRUPT", "NOSPACE")
    ]
    done = etcd_upkeep.maintain(living.listed, {}, limits, False)
    assert len(done["told"]) == 2
    assert done["corrupt"] == []
    living.put("/x", "y")
    assert etcd_upkeep.forget(living.listed, {}) == []
    raised(living, "CORRUPT")
    done = etcd_upkeep.maintain(living.listed, {}, limits, False)
    assert (done["corrupt"], done["left"]) == (["one"], ["alarm CORRUPT of one"])
    with pytest.raises(etcd.EtcdError):
        living.put("/x", "y")


def test_a_snapshot_with_alarms_is_restored_and_freed_of_them(living: Member, programs: Path, tmp_path: Path) -> None:
    with pytest.raises(etcd.EtcdError, match="database space exceeded"):
        living.fill()
    living.stop()
    taken = etcd_restore.salvage(str(living.data), str(tmp_path / "s"), {}, "root")
    told = etcd_scratch.rehearse(taken["path"], str(tmp_path / "s"), {}, CONFIG, taken["revision"])
    assert told["revision"] == taken["revision"]
    etcd_restore.place(taken["path"], taken["sha256"], str(living.data), IDENTITY, "NOW")
    again = Member(programs, living.data, "--force-new-cluster", "--quota-backend-bytes=16777216")
    try:
        with pytest.raises(etcd.EtcdError, match="database space exceeded"):
            again.put("/x", "y")
        limits = {"threshold": 30, "smallest": 1 << 20, "quota": 16777216}
        done = etcd_upkeep.maintain(again.listed, {}, limits, False)
        assert done["after"][0]["db_size"] < 16777216 / 4
        again.put("/x", "y")
    finally:
        again.stop()


def test_what_still_stops_all_writes_is_told(living: Member) -> None:
    limits = {"threshold": 30, "smallest": 1 << 30, "quota": 1024}
    [full] = etcd_upkeep.maintain(living.listed, {}, limits, False)["left"]
    assert full.startswith("one is full: ")
    raised(living, "NOSPACE")
    assert etcd_upkeep.maintain(living.listed, {}, limits, False)["left"] == ["alarm NOSPACE of one"]
    # Foretold is nothing.
    assert etcd_upkeep.maintain(living.listed, {}, limits, True)["left"] == []


def test_a_damaged_transfer_changes_nothing(living: Member, tmp_path: Path) -> None:
    taken = etcd_snapshot.lend(living.listed, {}, str(tmp_path / "s"), "", "root")
    with pytest.raises(etcd_snapshot.SnapshotError, match="damaged on its way"):
        etcd_restore.place(taken["path"], "0" * 64, str(living.data), {}, "NOW")
    assert names(living.data) == ["member"]


def test_a_member_without_space_gets_some_and_loses_its_alarm(living: Member) -> None:
    with pytest.raises(etcd.EtcdError, match="database space exceeded"):
        living.fill()
    limits = {"threshold": 30, "smallest": 1 << 20, "quota": 16777216}
    foreseen = etcd_upkeep.maintain(living.listed, {}, limits, True)
    assert [one["name"] for one in foreseen["done"]] == ["one"]
    assert foreseen["before"][0]["alarms"] == ["NOSPACE"]
    done = etcd_upkeep.maintain(living.listed, {}, limits, False)
    assert done["told"] == ["one: alarm NOSPACE lifted"]
    assert done["left"] == []
    assert done["done"][0]["after"] < done["done"][0]["before"] / 4
    assert done["after"][0]["alarms"] == []
    living.put("/big", "small")
    assert etcd_upkeep.maintain(living.listed, {}, limits, False)["done"] == []
    json.dumps(done)
