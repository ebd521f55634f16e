"""Machines that cannot be reached: whether a run may go on without them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubewright.topology import Cluster


def said(reason: str) -> str:
    """What Ansible says of a connection that failed, without its own words around it."""
    words = " ".join(reason.split())
    return words.rpartition("can be reached over ssh: ")[2] or words


def answers(
    replies: Mapping[str, Mapping[str, Any] | None],
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Facts of those that answered; who cannot be reached, and who can be, but not be asked, each with the reason.

    Only the former may be left out: on the others services run, and what keeps them from answering can be mended now.
    """
    facts: dict[str, Any] = {}
    away: dict[str, str] = {}
    sick: dict[str, str] = {}
    for name, reply in replies.items():
        if not reply:
            continue
        reason = " ".join(str(reply.get("msg") or reply).split())[:300]
        if reply.get("facts"):
            facts[name] = reply["facts"]
        elif reply.get("unreachable"):
            away[name] = f"cannot be reached: {reason}"
        else:
            sick[name] = f"cannot be asked: {reason}"
    return facts, away, sick


def problems(
    cluster: Cluster, facts: Mapping[str, Mapping[str, Any]], unreachable: Mapping[str, str], mode: str
) -> list[str]:
    """Why the run must not go on without the machines that cannot be reached, and which these are; empty when it may.

    `facts`: of the machines that answered. `unreachable`: machine -> how it did not. Machines outside of --limit are in
    neither, and nothing is said of them. `mode`: preflight_unreachable.
    """
    if not unreachable:
        return []
    if mode == "fail":
        return reasons(unreachable)
    found = _unsafe(cluster, facts, unreachable)
    return [*reasons(unreachable), *found] if found else []


def reasons(unreachable: Mapping[str, str]) -> list[str]:
    """One line for each machine."""
    return [f"{name}: {reason}" for name, reason in unreachable.items()]


def _unsafe(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]], unreachable: Mapping[str, str]) -> list[str]:
    found = []
    members = [m.name for m in cluster.etcd_members()]
    asked = [name for name in members if name in facts or name in unreachable]
    lost = [name for name in members if name in unreachable]
    quorum = len(members) // 2 + 1
    answering = [name for name in asked if name in facts]
    if answering and not any("etcd" in facts[name]["components"] for name in answering):
        found.append(
            "machines are left out only where there is a cluster, and no etcd member has been healthy yet: mend "
            "what keeps them away; those that are only nodes may be left out with --limit '!NAME'"
        )
    if lost and len(members) - len(lost) < quorum:
        left = [name for name in members if name not in lost]
        found.append(
            f"etcd: {len(left)} of {len(members)} members can be reached ({', '.join(left) or 'none'}), {quorum} are "
            "a quorum; mend the way to the others first"
        )
    masters = [m.name for m in cluster.masters() if m.name in facts or m.name in unreachable]
    if masters and not any(name in facts for name in masters):
        found.append(f"kube_master: {', '.join(masters)} cannot be reached, and one master is needed at least")
    return found
