"""Which components a reset is about, and whom it must not be done to. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kubewright.errors import UserError
from kubewright.machine.leavings import ORDER

# The parts of a reset, in order: whoever uses something goes before it.
PARTS: Mapping[str, tuple[str, ...]] = {
    "nodes": ("kube-proxy", "kubelet", "docker", "flanneld"),
    "masters": (
        "kube-lb-vip",
        "kube-lb-check",
        "kube-lb",
        "kube-scheduler",
        "kube-controller-manager",
        "kube-apiserver",
    ),
    "etcd": ("etcd-snapshot", "etcd", "etcd-installation"),
    "rest": ("pki", "sysprep"),
}
# Tags of the stages that stand for other components than the one of that name.
STAGES: Mapping[str, tuple[str, ...]] = {
    "proxy": ("kube-proxy",),
    "bootstrap": ("kubelet",),
    "flannel": ("flanneld",),
    "master": ("kube-scheduler", "kube-controller-manager", "kube-apiserver"),
    "lb": ("kube-lb-vip", "kube-lb-check", "kube-lb"),
    "etcd": PARTS["etcd"],
}
_ANY_TAG = {"all", "always"}


def selection(
    tags: Collection[str], skipped: Collection[str], wanted: Sequence[str], found: Collection[str]
) -> list[str]:
    """Components to remove; empty: all of them. `found`: names of components that some machine has.

    Raises UserError for names that are none, because what is misspelt here would remove too much or nothing.
    """
    named = [*wanted, *sorted(set(tags) - _ANY_TAG)]
    chosen = _expand(named, found)
    left_out = _expand(sorted(skipped), found)
    if not left_out:
        return chosen
    return [name for name in chosen or [*ORDER, *sorted(set(found) - set(ORDER))] if name not in left_out]


def _expand(names: Sequence[str], found: Collection[str]) -> list[str]:
    known = [*ORDER, *sorted(set(found) - set(ORDER))]
    result: dict[str, None] = {}
    for name in names:
        if name not in known and name not in STAGES:
            close = difflib.get_close_matches(name, [*known, *STAGES], 1)
            raise UserError(
                f"{name!r} is no component: nothing has been removed",
                f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}",
            )
        result |= dict.fromkeys(STAGES.get(name, (name,)))
    return list(result)


def parts(chosen: Sequence[str]) -> dict[str, list[str]]:
    """The components of each part; all of them when none is named."""
    if not chosen:
        return {**{part: list(names) for part, names in PARTS.items()}, "rest": ["all"]}
    found = {part: [name for name in names if name in chosen] for part, names in PARTS.items()}
    listed = {name for names in PARTS.values() for name in names}
    found["rest"] += [name for name in chosen if name not in listed]
    return found


def refusals(
    groups: Mapping[str, Sequence[str]],
    limited: Collection[str],
    members: Collection[str],
    chosen: Sequence[str],
    endpoint_mode: str = "auto",
) -> list[str]:
    """Why this reset must not be done: it would break those who stay.

    `groups`: inventory group -> names. `limited`: machines of this run. `members`: those that have data of etcd.
    `endpoint_mode`: the variable api_endpoint_mode.
    """
    found = []
    etcd, masters = groups.get("etcd", ()), groups.get("kube_master", ())
    going = [name for name in etcd if name in limited and name in members]
    staying = [name for name in etcd if name not in limited]
    if going and staying and (not chosen or "etcd" in chosen):
        quorum = len(etcd) // 2 + 1
        listed = ", ".join(going)
        if len(staying) < quorum:
            found.append(
                f"{listed}: {len(staying)} of {len(etcd)} etcd members would be left, and {quorum} are a quorum: the "
                "cluster would stop; reset it as a whole, without --limit"
            )
        else:
            found.append(
                f"{listed}: {'is a member' if not going[1:] else 'are members'} of an etcd cluster that goes on; "
                f"playbooks/ops/remove.yml -e machine={going[0]} takes it out and resets it"
            )
    gone = [name for name in masters if name in limited]
    others = [name for name in [*groups.get("kube_node", ()), *masters] if name not in limited]
    if gone and set(gone) == set(masters) and others and (not chosen or "kube-apiserver" in chosen):
        found.append(
            f"{', '.join(gone)}: no master would be left for {', '.join(dict.fromkeys(others))}; reset the cluster as "
            "a whole, without --limit"
        )
    balancers = groups.get("lb", ())
    others = [name for name in dict.fromkeys([*groups.get("kube_node", ()), *masters]) if name not in limited]
    serves = endpoint_mode in ("auto", "vip") and (not chosen or set(chosen) & {"kube-lb", "kube-lb-vip"})
    if balancers and set(balancers) <= set(limited) and others and serves:
        found.append(
            f"{', '.join(balancers)}: no load balancer would be left for {', '.join(others)}; reset the cluster as a "
            "whole, without --limit, or give it another api_endpoint_mode first"
        )
    return found


def report(problems: Sequence[str]) -> str:
    """All problems as one message."""
    noun = "problem" if len(problems) == 1 else "problems"
    return "\n".join([f"{len(problems)} {noun} found, nothing has been removed:", *(f"  - {one}" for one in problems)])


def doing(chosen: Sequence[str], machines: Sequence[str], *, data: bool) -> str:
    """What is to be confirmed."""
    what = ", ".join(chosen) if chosen else "everything of the cluster, with all its data,"
    kept = "" if data or not set(chosen) & {"etcd", "docker"} else " (data is kept)"
    return f"removes {what}{kept} from {', '.join(machines)}"


def closing(
    hosts: Mapping[str, Sequence[Mapping[str, Any]]], unreachable: Collection[str], *, whole: bool, check: bool
) -> tuple[str, list[str]]:
    """Title and lines of the summary. `hosts`: machine -> results of the module in the parts that it came to."""
    verb = "would be removed or put back" if check else "removed or put back"
    lines, done, bare = [], True, whole
    for name, results in hosts.items():
        # A look ahead finds in the last part, which is about all, what the parts before it would have removed.
        steps = len({step for result in results for step in result.get("steps", ())})
        left = dict.fromkeys(line for result in results for line in result.get("left", ()))
        if name in unreachable:
            lines.append(f"{name}: not reached, nothing done; the same command again does it")
            done = False
        elif len(results) < len(PARTS) or any(result.get("failed") or result.get("unreachable") for result in results):
            lines.append(f"{name}: not finished; the same command again goes on")
            done = False
        else:
            # Of a member that is on no record; whoever installs etcd there again would have its data.
            member = bool(results[-1].get("member"))
            bare = bare and not member
            idle = "nothing was done" if member else "nothing is left"
            lines.append(f"{name}: {steps} things {verb}" if steps else f"{name}: {idle}")
        lines += [f"{name}: left: {line}" for line in left]
    if check:
        return "This would be removed", lines
    if not done:
        return "Some machines are not done", lines
    return "The machines are bare" if bare else "The components are removed", lines
