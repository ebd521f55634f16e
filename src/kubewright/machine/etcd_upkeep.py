"""Care of a living etcd: files that are mostly air are rewritten, one member at a time, and alarms lifted.

Defragmenting blocks a member while it rewrites its file (etcd, maintenance), so the others must do without it:
the same rule as for a restart.
"""

from __future__ import annotations

import time
from typing import Any

from . import etcd, etcd_status, health

# A file of this many GB may take minutes.
_DEFRAG_SECONDS = 600.0
_HEALTH_SECONDS = 60.0


def share_unused(one: dict[str, Any]) -> float:
    """Percent of a member's file that hold nothing."""
    size, used = int(one["db_size"]), int(one["db_used"])
    return 100.0 * (size - used) / size if size else 0.0


def plan(members: list[dict[str, Any]], threshold: float, smallest: int, quota: int) -> list[dict[str, Any]]:
    """Which members are worth it, leader last: more than `threshold` percent of a file of `smallest` bytes are unused.

    A member with less than a tenth of `quota` bytes left is taken whatever it holds.
    """
    worth = [
        one
        for one in members
        if one["answers"]
        and (
            "NOSPACE" in one["alarms"]
            or (one["db_size"] > 0.9 * quota and one["db_used"] < one["db_size"])
            or (one["db_size"] >= smallest and share_unused(one) > threshold)
        )
    ]
    return sorted(worth, key=lambda one: bool(one["leader"]))


def _wait_healthy(endpoint: dict[str, Any]) -> str:
    deadline = time.monotonic() + _HEALTH_SECONDS
    while True:
        reason = health.probe({**endpoint, "kind": "etcd"})
        if not reason or time.monotonic() > deadline:
            return reason
        time.sleep(0.25)


def _defragment(one: dict[str, Any], tls: dict[str, str]) -> dict[str, Any]:
    endpoint = etcd_status.endpoint(tls, one["url"])
    reason = etcd.quorum_depends_on(endpoint)
    if reason:
        raise etcd.EtcdError(reason.replace("restarting", "defragmenting"))
    begin = time.monotonic()
    etcd.ask(endpoint, "/v3/maintenance/defragment", {}, _DEFRAG_SECONDS)
    reason = _wait_healthy(endpoint)
    if reason:
        raise etcd.EtcdError(f"{one['name']} is not healthy after it was defragmented: {reason}; the others were left")
    after = int(etcd.ask(endpoint, "/v3/maintenance/status", {}).get("dbSize", 0))
    return {"name": one["name"], "before": one["db_size"], "after": after, "seconds": time.monotonic() - begin}


def _compact(members: list[dict[str, Any]], tls: dict[str, str]) -> int:
    """Drop all old revisions; the API server cannot do it while there is no space."""
    first = next(one for one in members if one["answers"])
    revision: int = max(one["revision"] for one in members if one["answers"])
    try:
        body = {"revision": str(revision), "physical": True}
        etcd.ask(etcd_status.endpoint(tls, first["url"]), "/v3/kv/compaction", body, _DEFRAG_SECONDS)
    except etcd.EtcdError as error:
        if "has been compacted" not in str(error):
            raise
    return revision


def lift(members: list[dict[str, Any]], tls: dict[str, str], quota: int) -> list[str]:
    """Take NOSPACE back from members that have space again; what was done or not, as sentences. CORRUPT stays."""
    told = []
    answering = [one for one in members if one["answers"]]
    for one in answering:
        if "NOSPACE" not in one["alarms"]:
            continue
        if one["db_size"] >= quota:
            told.append(
                f"{one['name']}: still {etcd_status.megabytes(one['db_size'])} of "
                f"{etcd_status.megabytes(quota)}: NOSPACE stays; raise etcd_quota_backend_bytes and run --tags etcd"
            )
            continue
        _disarm(answering[0]["url"], tls, one["member"], "NOSPACE")
        told.append(f"{one['name']}: alarm NOSPACE lifted")
    return told


def _disarm(url: str, tls: dict[str, str], member: str, alarm: str) -> None:
    body = {"action": "DEACTIVATE", "memberID": str(int(member, 16)), "alarm": alarm}
    etcd.ask(etcd_status.endpoint(tls, url), "/v3/maintenance/alarm", body)


def strays(members: list[dict[str, Any]], tls: dict[str, str]) -> list[tuple[str, str]]:
    """(id, alarm) of members that are gone. etcd keeps both when a member is removed, and in every snapshot."""
    raised = etcd_status.alarms(members, tls)
    if not raised:
        return []
    answering = [etcd_status.endpoint(tls, one["url"]) for one in members if one["answers"]]
    there = {etcd_status.hexadecimal(one["ID"]) for one in etcd.first_answer(answering, etcd.members)}
    return [(member, alarm) for member, alarm in raised if member not in there]


def _lift_strays(members: list[dict[str, Any]], tls: dict[str, str], check: bool) -> list[str]:
    """Take back the alarms of members that are gone: nobody else can, and each stops all writes; as sentences."""
    found = strays(members, tls)
    for member, alarm in [] if check else found:
        _disarm(next(one["url"] for one in members if one["answers"]), tls, member, alarm)
    done = "would be lifted" if check else "lifted"
    return [f"alarm {alarm} of {member}, which is no member any more: {done}" for member, alarm in found]


def forget(members: list[dict[str, str]], tls: dict[str, str]) -> list[str]:
    """Alarms of members that are gone, lifted; what was done, as sentences."""
    return _lift_strays(etcd_status.survey(members, tls), tls, False)


def maintain(members: list[dict[str, str]], tls: dict[str, str], limits: dict[str, Any], check: bool) -> dict[str, Any]:
    """Survey, defragment what is worth it, lift alarms. `limits`: {threshold, smallest, quota}.

    Returns {before, after: surveys, done: [{name, before, after, seconds}], told: sentences, corrupt: names,
    left: why nothing can be written all the same}.
    """
    before = etcd_status.survey(members, tls)
    space = any(alarm == "NOSPACE" for _, alarm in etcd_status.alarms(before, tls))
    told = _lift_strays(before, tls, check)
    corrupt = _corrupt(before)
    # With CORRUPT, etcd compacts nothing.
    if space and not corrupt and not check:
        _compact(before, tls)
    now = before if check else etcd_status.survey(members, tls)
    todo = plan(now, limits["threshold"], limits["smallest"], limits["quota"])
    if check:
        done = [
            {"name": one["name"], "before": one["db_size"], "after": one["db_used"], "seconds": 0.0} for one in todo
        ]
        return {"before": before, "after": before, "done": done, "told": told, "corrupt": corrupt, "left": []}
    done = [_defragment(one, tls) for one in todo]
    told += lift(etcd_status.survey(members, tls), tls, limits["quota"])
    after = etcd_status.survey(members, tls)
    left = _left(after, etcd_status.alarms(after, tls), limits["quota"])
    return {"before": before, "after": after, "done": done, "told": told, "corrupt": corrupt, "left": left}


def _left(members: list[dict[str, Any]], alarms: list[tuple[str, str]], quota: int) -> list[str]:
    """What stops all writes: any alarm, also of a member that does not answer, and a database that will raise one."""
    answering = {one["member"]: one for one in members if one["answers"]}
    found = [f"alarm {alarm} of {answering[one]['name'] if one in answering else one}" for one, alarm in alarms]
    full = [one for one in answering.values() if 0 < quota <= one["db_size"] and "NOSPACE" not in one["alarms"]]
    return found + [f"{one['name']} is full: {etcd_status.megabytes(one['db_size'])}" for one in full]


def _corrupt(members: list[dict[str, Any]]) -> list[str]:
    return [one["name"] for one in members if one["answers"] and "CORRUPT" in one["alarms"]]
