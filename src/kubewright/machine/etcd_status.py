"""What every member of etcd says of itself, and who should be asked for what. Decisions are pure, `survey` asks.

A member as it is told here:
  name, url        of the inventory
  answers          whether it answers at all; everything below is missing otherwise, but for `reason`
  healthy          whether it is part of a quorum, whatever alarms there are
  reason           why it does not answer or is not healthy; empty otherwise
  member, cluster  ids, hexadecimal as etcd prints them
  version          of etcd
  revision         of the key-value store, as far as this member has got
  leader, learner  booleans
  db_size, db_used bytes of the file, and of it those in use
  alarms           [NOSPACE | CORRUPT] that were raised for this member
"""

from __future__ import annotations

from typing import Any

from . import etcd, health


def endpoint(tls: dict[str, str], url: str) -> dict[str, Any]:
    """Where to ask a member. `tls`: paths `ca`, `cert`, `key`; none of them for a member without TLS."""
    return {**tls, "url": url}


def hexadecimal(number: Any) -> str:
    """An id of the gateway, which writes 64-bit numbers as decimal text."""
    return f"{int(number or 0):x}"


def _ask(tls: dict[str, str], name: str, url: str) -> dict[str, Any]:
    where = endpoint(tls, url)
    try:
        status = etcd.ask(where, "/v3/maintenance/status", {})
    except (etcd.EtcdError, OSError) as error:
        return {"name": name, "url": url, "answers": False, "healthy": False, "reason": str(error)}
    reason = health.probe({**where, "kind": "etcd"})
    header = status["header"]
    return {
        "name": name,
        "url": url,
        "answers": True,
        "healthy": not reason,
        "reason": reason,
        "member": hexadecimal(header["member_id"]),
        "cluster": hexadecimal(header["cluster_id"]),
        "version": status.get("version", ""),
        "revision": int(header.get("revision", 0)),
        "leader": bool(status.get("leader")) and status["leader"] == header["member_id"],
        "learner": bool(status.get("isLearner")),
        "db_size": int(status.get("dbSize", 0)),
        "db_used": int(status.get("dbSizeInUse", 0)),
        "alarms": [],
    }


def survey(members: list[dict[str, str]], tls: dict[str, str]) -> list[dict[str, Any]]:
    """Every member of `members` ({name, url}) as above, in that order."""
    found = [_ask(tls, member["name"], member["url"]) for member in members]
    raised = alarms(found, tls)
    for one in filter(lambda one: one["answers"], found):
        one["alarms"] = [alarm for member, alarm in raised if member == one["member"]]
    return found


def alarms(members: list[dict[str, Any]], tls: dict[str, str]) -> list[tuple[str, str]]:
    """(id of a member, alarm) of all alarms, by the first member that tells. `members`: of a survey."""
    for known in filter(lambda one: one["answers"], members):
        try:
            reply = etcd.ask(endpoint(tls, known["url"]), "/v3/maintenance/alarm", {"action": "GET"})
        except (etcd.EtcdError, OSError):
            continue
        return [(hexadecimal(one.get("memberID")), one.get("alarm", "NONE")) for one in reply.get("alarms", [])]
    return []


def of_choice(members: list[dict[str, Any]], near: str = "") -> dict[str, Any] | None:
    """Which member a snapshot is taken from: a healthy one, rather not the leader, rather the one named `near`."""
    able = [one for one in members if one["healthy"] and not one["learner"] and "CORRUPT" not in one["alarms"]]
    able.sort(key=lambda one: (one["leader"], one["name"] != near))
    return able[0] if able else None


def on_duty(members: list[dict[str, Any]]) -> str:
    """Name of the member that takes a scheduled snapshot: all members must come to the same answer; empty: nobody can.

    The lowest id of those that are healthy and do not lead; the leader only where it is alone.
    """
    able = [one for one in members if one["healthy"] and not one["learner"] and "CORRUPT" not in one["alarms"]]
    able.sort(key=lambda one: (one["leader"], int(one["member"], 16)))
    return str(able[0]["name"]) if able else ""


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1048576:.1f} MiB"


def table(members: list[dict[str, Any]]) -> list[str]:
    """Lines with one member each, for people."""
    rows = [("member", "id", "version", "db", "in use", "revision", "state")]
    for one in members:
        if not one["answers"]:
            rows.append((one["name"], "-", "-", "-", "-", "-", "does not answer"))
            continue
        states = ["leader"] if one["leader"] else ["learner"] if one["learner"] else []
        states += ["" if one["healthy"] else "NOT HEALTHY", *(f"ALARM {alarm}" for alarm in one["alarms"])]
        sizes = (megabytes(one["db_size"]), megabytes(one["db_used"]))
        state = ", ".join(filter(None, states))
        rows.append((one["name"], one["member"], one["version"], *sizes, str(one["revision"]), state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
