"""Another pod network on a living cluster: the way there, in steps of which each cuts off nobody. Pure.

A larger network is taken over by running daemons. Another backend is not: flanneld has to be restarted, one machine
after the other, so all the time some have it and some do not. vxlan with DirectRouting and host-gw set the same routes
and understand each other, so the way from one to the other leads by these two. docs/adr/0011 has the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flanneld import state
from flanneld.errors import ConfigError
from flanneld.subnet import change
from flanneld.subnet.config import NetworkConfig, parse_config
from kubewright.errors import UserError

_DIRECT = "directrouting"
_PLAYBOOK = "playbooks/ops/network.yml"
_ALL = "all nodes must take part, so no --limit, and all of them reachable"


@dataclass(frozen=True)
class Node:
    """What a node says. `name`: of the machine; `trouble`: why flanneld cannot be asked or is not ready, else empty.

    asked: whether the run has an answer of the machine.
    config: what its flanneld runs, as `expected` gives it. address: the one that it announces to the others. gateways:
    address of another node -> the gateway on the way there, empty for none. strict: settings of the kernel by which
    packets are dropped that come another way than the answer goes.
    """

    name: str
    trouble: str = ""
    config: Mapping[str, Any] | None = None
    address: str = ""
    gateways: Mapping[str, str] | None = None
    strict: Sequence[str] = ()
    asked: bool = True


def node(name: str, answer: Mapping[str, Any] | None) -> Node:
    """A node from what module kubewright_network found there, None when the run has no answer of it."""
    if answer is None or "status" not in answer:
        return Node(name, f"this run has not asked it: {_ALL}", asked=False)
    status = answer["status"]
    if not status.get("running"):
        return Node(name, f"flanneld does not run there: {status.get('reason') or 'it gives no answer'}")
    announced = (status.get("interface") or {}).get("announced") or {}
    unread = "" if status.get("config") else "flanneld has no network configuration yet"
    return Node(
        name,
        str(status.get("trouble") or unread),
        status.get("config"),
        str(announced.get("4", "")),
        answer["gateways"],
        answer["strict"],
    )


def expected(text: str) -> dict[str, Any]:
    """PREFIX/config as `flanneld status` shows it when a daemon runs with it."""
    return state.config_json(parse_config(text))


def must_restart(running: Mapping[str, Any], wanted: str) -> bool:
    """Tell whether a daemon takes `wanted` over only by a restart."""
    return bool(change.refusals(parse_config(json.dumps(running)), parse_config(wanted)))


def steps(before: str, after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configurations to be written one after the other, `after` last; none when it is there already.

    `before`: the text in etcd. Raises `UserError` when there is no way.
    """
    try:
        known = json.loads(before)
        if known == after:
            return []
        old, new = parse_config(before), parse_config(json.dumps(after))
        larger = {key: value for key, value in after.items() if key.lower() != "backend"}
        larger["Backend"] = _given(known)
        middle = parse_config(json.dumps(larger))
    except (ConfigError, ValueError, AttributeError) as error:
        raise UserError(f"the network configuration in etcd, {before}, cannot be used: {error}") from None
    reasons = change.refusals(old, middle)
    if reasons:
        raise UserError(
            f"the pod network cannot be changed to {middle.name}: {'; '.join(reasons)}",
            "only a larger network that contains the present one is taken over: see pod_cidr, flannel_subnet_length",
        )
    found = [larger] if middle != old else []
    found += [{**larger, "Backend": dict(backend)} for backend in _backends(old, new, after)]
    # The last one as the inventory has it, in its letter case: that is what a run of site.yml compares.
    return [*found[:-1], dict(after)]


def _backends(old: NetworkConfig, new: NetworkConfig, after: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if old.backend == new.backend:
        return []
    wanted, before, kinds = _given(after), dict(old.backend), (old.backend_type, new.backend_type)
    if kinds == ("vxlan", "host-gw"):
        return [wanted] if before.get(_DIRECT) else [_direct(before), wanted]
    if kinds == ("host-gw", "vxlan"):
        return [wanted] if new.backend.get(_DIRECT) else [_direct(wanted), wanted]
    if kinds == ("vxlan", "vxlan"):
        differing = {key for key in old.backend.keys() | new.backend.keys() if _setting(old, key) != _setting(new, key)}
        if differing <= {_DIRECT}:
            return [wanted]
        raise UserError(
            f"flannel_backend: {', '.join(sorted(differing - {_DIRECT}))} of vxlan cannot be changed while pods go on: "
            "machines with the old and the new setting do not reach each other",
            "where all machines are on one link, change to {Type: host-gw} first and from there to the new setting; "
            "elsewhere docs/flannel.md says what to do with all pods gone",
        )
    raise UserError(
        f"flannel_backend: from {kinds[0]} to {kinds[1]} cannot be changed while pods go on: machines with the one and "
        "the other do not reach each other",
        "only vxlan and host-gw change into each other; docs/flannel.md says what to do with all pods gone",
    )


def _given(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The backend as a configuration has it, in its letter case; flannel's default where it has none."""
    return next((value for key, value in config.items() if key.lower() == "backend"), {"Type": "udp"})


def _setting(config: NetworkConfig, key: str) -> Any:
    return str(config.backend[key]).lower() if key == "type" and key in config.backend else config.backend.get(key)


def _direct(backend: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in backend.items() if key.lower() != _DIRECT}
    # flanneld knows its keys in any letter case; the usual one is for people who read etcd.
    kind = next(value for key, value in kept.items() if key.lower() == "type")
    return {"Type": kind, **{key: value for key, value in kept.items() if key.lower() != "type"}, "DirectRouting": True}


def lost(planned: Collection[str], here: Collection[str]) -> str:
    """Why a step must not begin when of the nodes of the plan only `here` are left, empty when all are."""
    gone = sorted(set(planned) - set(here))
    return f"{', '.join(gone)}: this run has lost it: {_ALL}; the next step would cut off its pods" if gone else ""


def refusals(
    before: str,
    way: Sequence[Mapping[str, Any]],
    nodes: Sequence[Node],
    helped: Collection[str] = (),
    *,
    ends_pods: bool = False,
) -> list[str]:
    """Why the cluster must not go this way now, all of it; empty when it may.

    helped: as `cut_off` gives them. ends_pods: a restart of flanneld ends the pods of its node.
    """
    found = [f"{one.name}: {one.trouble}" for one in nodes if one.trouble and one.name not in helped]
    names = behind(before, way, nodes)
    late = [one for one in nodes if one.name in names]
    found += [
        f"{one.name}: flanneld runs with {_told(one.config or {})}, and etcd has {_told(json.loads(before))}: a node "
        "that takes that over reaches none that has not; write into etcd what the nodes run (etcdctl put), and type "
        "this again"
        for one in late
        if not _reach(_backend(json.dumps(one.config)), _backend(before))
    ]
    taken = [_backend(text) for text in (*([before] if late else []), *(json.dumps(one) for one in way))]
    left = [_backend(text) for text in (before, *(json.dumps(one.config) for one in late))]
    if all(one == left[0] for one in left + taken):
        return found
    if ends_pods:
        found.append(
            "flannel_backend: flanneld restarts docker along (network_mode docker), which ends all pods of a node "
            "without docker_live_restore; set it to true and run site.yml --tags docker first"
        )
    ours = {one.address: one.name for one in nodes}
    if any(one["type"] == "host-gw" for one in taken):
        found += [
            f"{one.name}: the way to {ours.get(address, address)} ({address}) leads through {gateway}, and host-gw "
            "needs all nodes on one link; use vxlan (with DirectRouting, nodes on one link do without the tunnel)"
            for one in nodes
            for address, gateway in (one.gateways or {}).items()
            if gateway and address in ours
        ]
    found += [
        f"{one.name}: {', '.join(one.strict)} is strict (1): while some nodes use the tunnel and some do not, packets "
        f"would be dropped; set it to 2: {'; '.join(f'sysctl -w {name}=2' for name in one.strict)}"
        for one in nodes
        if one.strict
    ]
    if not any(one.trouble for one in nodes):
        strangers = sorted({address for one in nodes for address in one.gateways or {} if address not in ours})
        found += [
            f"{address} has a lease of the pod network and is no node of the inventory: a machine that has left is "
            "removed by playbooks/ops/remove.yml"
            for address in strangers
        ]
    return found


def behind(before: str, way: Sequence[Mapping[str, Any]], nodes: Sequence[Node]) -> list[str]:
    """Nodes that first have to run with what etcd has: an earlier change was interrupted.

    None when all of them run with the next step already: the change is taken back, perhaps because it does not work.
    Not those in trouble: what etcd has may be the reason.
    """
    wanted = expected(before)
    late = [one for one in nodes if one.config != wanted and not one.trouble]
    if way and all(one.config == expected(json.dumps(way[0])) for one in late):
        return []
    return [one.name for one in late]


def note(start: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept in etcd while a change is under way, so that it can be taken back."""
    return {"from": start, "to": end}


def start(noted: str | None, before: str, nodes: Sequence[Node]) -> dict[str, Any] | None:
    """The network that the change under way comes from, by its note; None when there is none under way.

    A run that was killed after its last step leaves the note: all nodes run then with what the change led to.
    """
    if noted is None:
        return None
    try:
        kept = json.loads(noted)
        wanted, found = _backend(json.dumps(kept["to"])), dict(kept["from"])
        same = _backend(json.dumps(found)) == wanted
    except (ConfigError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the note of a change that is under way, {noted}, cannot be used: {error}",
            "etcdctl del that key, PREFIX/change, when no change is to be taken back",
        ) from None
    # A run of site.yml may have made the network larger since.
    over = _backend(before) == wanted and all(
        not one.trouble and _backend(json.dumps(one.config)) == wanted for one in nodes
    )
    return None if over or same else found


def goes_back(begun: Mapping[str, Any] | None, before: str, way: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this way takes a change of the backend back, and does nothing else. `begun`: as `start` gives it.

    There may be no way left: the run that took it back was interrupted after its last write to etcd.
    """
    if begun is None:
        return False
    last = json.dumps(way[-1]) if way else before
    return _backend(last) == _backend(json.dumps(begun)) and parse_config(last).pools == parse_config(before).pools


def cut_off(
    begun: Mapping[str, Any] | None, before: str, way: Sequence[Mapping[str, Any]], nodes: Sequence[Node]
) -> list[str]:
    """Nodes in trouble that this way helps: it takes a change of the backend back. `begun`: as `start` gives it."""
    return [one.name for one in nodes if one.trouble and one.asked] if goes_back(begun, before, way) else []


def changes_backend(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations have different backends."""
    return _backend(json.dumps(one)) != _backend(json.dumps(other))


def way_out(begun: Mapping[str, Any] | None, nodes: Sequence[Node]) -> list[str]:
    """What nodes in trouble do not hinder while a change is under way; none when there is none, or no such node."""
    if begun is None or not any(one.trouble and one.asked for one in nodes):
        return []
    return [
        f"flannel_backend: {json.dumps(_given(begun))}, with pod_cidr as it is now, takes back the change that is "
        "under way, also with nodes in trouble"
    ]


def _backend(text: str) -> dict[str, Any]:
    """The backend of a configuration, such that those that mean the same are the same."""
    config = parse_config(text)
    kept = {key: value for key, value in config.backend.items() if key != _DIRECT or value}
    return {**kept, "type": config.backend_type}


def _reach(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether machines with the one backend and with the other reach each other: docs/adr/0011."""
    kinds = {one["type"], other["type"]}
    if kinds == {"vxlan", "host-gw"}:
        return bool(one.get(_DIRECT) or other.get(_DIRECT))
    return one == other or (kinds == {"vxlan"} and {**one, _DIRECT: True} == {**other, _DIRECT: True})


def summary(
    before: str, way: Sequence[Mapping[str, Any]], late: Sequence[str], helped: Sequence[str] = ()
) -> list[str]:
    """The way for people. `late`: nodes that first take over what etcd has; `helped`: as `cut_off` gives them."""
    known = json.loads(before)
    if not way and not late and not helped:
        return [f"{_told(known)}: nothing is to be changed"]
    found = [f"etcd has {_told(known)}"]
    if late:
        found.append(f"what an interrupted run has left: {', '.join(late)} take that over")
    if helped:
        found.append(
            f"taken back because of {', '.join(helped)}, whose pods may be cut off: without pings, so run "
            "playbooks/verify.yml afterwards"
        )
    return found + [f"then all nodes: {_told(one)}" for one in way]


def _told(config: Mapping[str, Any]) -> str:
    parsed = parse_config(json.dumps(config))
    direct = " with DirectRouting" if parsed.backend_type == "vxlan" and parsed.backend.get(_DIRECT) else ""
    return f"{parsed.name}, {parsed.backend_type}{direct}"


def hint(before: str, after: Mapping[str, Any]) -> str:
    """For a run that refuses a change: the playbook that can do it, empty when there is none."""
    try:
        return f"{_PLAYBOOK} changes it while pods go on" if steps(before, after) else ""
    except UserError:
        return ""
