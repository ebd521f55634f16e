"""A member's data replaced by that of a snapshot. What was there is moved aside, never removed.

All members are restored from the same snapshot with the same token, by which etcd computes the ids of the new cluster;
members of the old one are strangers to it. A restore that is repeated moves aside what the interrupted one made, too:
nobody can know whether it has run meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import Any

from . import etcd, etcd_members, etcd_scratch, etcd_snapshot, etcd_status, files, health, systemd

_MARKER = "kubewright-restore.json"
_STAGED = ".kubewright-restoring"


def held(data: str) -> str:
    """The directory with a member's data, or empty: in a restore that was interrupted, it may have been moved aside."""
    known = files.read_json(os.path.join(data, _MARKER)) or {}
    places = [os.path.join(data, "member"), str(known.get("moved") or "")]
    return next((place for place in places if place and os.path.isdir(place)), "")


def place(snapshot: str, sha256: str, data: str, identity: dict[str, str], moment: str) -> dict[str, Any]:
    """Restore `snapshot` into the data directory of a member that is stopped.

    `identity`: {name, peer (its URL), cluster (NAME=URL,...), token}. Returns {moved: where the data before is, or
    empty, seconds}.
    """
    begin = time.monotonic()
    if files.sha256_of(snapshot) != sha256 or not etcd_snapshot.is_whole(snapshot):
        raise etcd_snapshot.SnapshotError("the snapshot was damaged on its way here; run again")
    etcd_snapshot.need_room(data, os.path.getsize(snapshot), "the restored data")
    files.make_directory(data, 0o700)
    staged, marker, member = (os.path.join(data, name) for name in (_STAGED, _MARKER, "member"))
    shutil.rmtree(staged, ignore_errors=True)
    etcd_scratch.restore(snapshot, staged, identity["name"], identity["peer"], identity["cluster"], identity["token"])
    moved = held(data)
    if moved == member:
        moved = f"{member}.before-{moment}"
        # Before it is done: between the two renames nothing else tells where the data is.
        files.write_atomic(marker, json.dumps({"moved": moved}).encode(), 0o600)
        os.rename(member, moved)
    os.rename(os.path.join(staged, "member"), member)
    _remove(marker)
    os.rmdir(staged)
    return {"moved": moved, "seconds": round(time.monotonic() - begin, 2)}


def salvage(data: str, directory: str, tls: dict[str, Any], owner: str) -> dict[str, Any]:
    """`etcd_scratch.salvage` of what a member holds, wherever an interrupted restore has left it."""
    return etcd_scratch.salvage(held(data), directory, tls, owner)


def empty(data: str) -> str:
    """Move what a member that will join anew still has out of the way; where to, or empty."""
    _remove(os.path.join(data, _MARKER))
    member = os.path.join(data, "member")
    if not os.path.exists(member):
        return ""
    path = time.strftime(f"{member}.before-%Y%m%dT%H%M%SZ", time.gmtime())
    os.rename(member, path)
    return path


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _disk(path: str) -> int:
    return os.stat(etcd_snapshot.existing(path)).st_dev


def remains(data: str, url: str, staging: str, transfer: str) -> dict[str, Any]:
    """What a member has that may not answer: {data, interrupted, written (seconds of the epoch), size, revision,
    free (bytes), transfer: {path, free, same: whether it shares the data's disk} of where a snapshot arrives,
    lacks: why `staging` has no room for a snapshot of this data, or empty}.

    `revision` is None where only stopping the member would tell; `url` is its client URL, whose lock on the database
    is held while it runs.
    """
    member = held(data)
    database = os.path.join(member, "snap", "db")
    found: dict[str, Any] = {
        "url": url,
        "data": bool(member) and os.path.exists(database),
        "interrupted": os.path.exists(os.path.join(data, _MARKER)),
        "free": etcd_snapshot.free_bytes(data),
        "transfer": {
            "path": transfer,
            "free": etcd_snapshot.free_bytes(transfer),
            "same": _disk(transfer) == _disk(data),
        },
        "written": None,
        "size": 0,
        "revision": None,
        "lacks": "",
    }
    if found["data"]:
        # A member that runs removes files while they are counted.
        with contextlib.suppress(FileNotFoundError):
            try:
                room = etcd_scratch.salvage_room(member)
                etcd_snapshot.need_room(staging, room, "a copy of the data and a snapshot of it")
            except etcd_snapshot.SnapshotError as error:
                found["lacks"] = str(error)
        log = os.path.join(member, "wal")
        times = [os.stat(database).st_mtime]
        times += [os.stat(os.path.join(log, name)).st_mtime for name in os.listdir(log) if name.endswith(".wal")]
        found["written"], found["size"] = max(times), os.path.getsize(database)
        state = systemd.states(["etcd.service"])["etcd.service"].get("ActiveState", "")
        if state in ("inactive", "failed"):
            with contextlib.suppress(etcd_snapshot.SnapshotError):
                found["revision"] = etcd_snapshot.contents(database)["revision"]
    return found


def standing(members: list[dict[str, str]], tls: dict[str, str], name: str) -> dict[str, str]:
    """What has to be done to give the member `name` new data: {state, refusal}. `members`: {name, url} of all.

    state  healthy: nothing. replace: it is a member, and must leave and come back. join: it has left already.
           resume: it has come back, and has no vote yet.
    """
    seen = etcd_status.survey(members, tls)
    own = next(one for one in seen if one["name"] == name)
    rest = [one for one in seen if one["name"] != name]
    others = [etcd_status.endpoint(tls, one["url"]) for one in rest]
    try:
        listed = etcd_members.list_members(others)
    except etcd.EtcdError:
        reasons = "; ".join(f"{one['name']}: {one.get('reason') or 'does not tell who belongs to it'}" for one in rest)
        return {"state": "replace", "refusal": f"no other member can be asked ({reasons})"}
    member = etcd_members.find(listed, name) or etcd_members.at(listed, own["url"])
    if member is None:
        return {"state": "join", "refusal": ""}
    if member.learner:
        return {"state": "resume", "refusal": ""}
    if own["healthy"] and "CORRUPT" not in own["alarms"]:
        return {"state": "healthy", "refusal": ""}
    return {"state": "replace", "refusal": etcd_members.removal_refusal(listed, member)}


def stop(units: list[str]) -> list[str]:
    """Stop units in this order; those that ran."""
    states = systemd.states(units)
    running = [unit for unit in units if states[unit].get("ActiveState") in ("active", "activating", "reloading")]
    for unit in units:
        systemd.stop(unit)
    return running


def restart(services: list[dict[str, Any]]) -> dict[str, Any]:
    """Restart those services that are enabled here, each waiting for its health.

    `services`: {unit, checks, timeout}. Returns {restarted, failure: None or {unit, reason, journal}}.
    """
    states = systemd.states([service["unit"] for service in services])
    restarted: list[str] = []
    for service in services:
        unit = service["unit"]
        if states[unit].get("UnitFileState") != "enabled":
            continue
        begin = time.time()
        systemd.restart(unit)
        reason = health.wait(unit, service["checks"], float(service["timeout"]))
        if reason:
            evidence = {"unit": unit, "reason": reason, "journal": systemd.journal(unit, begin)}
            return {"restarted": restarted, "failure": evidence}
        restarted.append(unit)
    return {"restarted": restarted, "failure": None}
