"""Where the way between two pods ends: route, neighbour, FDB, rule or runtime, with what was seen there. Pure.

`paths` is what every machine saw of its own part of the way (`kubewright.machine.probe.path`), by machine name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubewright.matrix import Result

Path = Mapping[str, Any]
_BRIDGES = ("cni0", "docker0")
_TUN = re.compile(r"flannel\d+")


@dataclass(frozen=True)
class Place:
    """A machine with a test pod: its own address, the pod's, and flannel's (the first of the machine's subnet)."""

    name: str
    address: str
    pod: str
    flannel: str


def _overlay(path: Path) -> Mapping[str, Any]:
    return next((link for link in path["links"] if str(link.get("ifname", "")).startswith("flannel")), {})


def _sending(there: Place, path: Path, other: Path) -> str:
    """Why a packet for the pod on `there` does not find its way into the tunnel, or to the machine itself."""
    device = _overlay(path)
    routes = path["routes"].get(there.pod) or []
    # By host-gw, or vxlan with DirectRouting; by udp, where what follows is inside of flanneld.
    plain = routes and routes[0].get("gateway") == there.address
    if plain or (routes and _TUN.fullmatch(str(routes[0].get("dev")))):
        return ""
    if not device:
        return "runtime: there is no flannel device, and no route to the machine; systemctl status flanneld"
    if "UP" not in device.get("flags", []):
        return f"runtime: {device['ifname']} is down"
    if not routes:
        return f"route: ip route get {there.pod} finds none"
    if routes[0].get("dev") != device["ifname"]:
        return f"route: ip route get {there.pod} leads to {routes[0].get('dev')}, not to {device['ifname']}"
    return _tunnelled(routes[0].get("gateway") or there.pod, there, path, other)


def _tunnelled(next_hop: str, there: Place, path: Path, other: Path) -> str:
    device = _overlay(path)["ifname"]
    macs = [n["lladdr"] for n in path["neighbours"] if n.get("dst") == next_hop and n.get("lladdr")]
    if not macs:
        return f"neighbour: {device} has no entry for {next_hop}"
    theirs = _overlay(other).get("address")
    if theirs and macs[0] != theirs:
        return f"neighbour: {next_hop} has {macs[0]} on {device}, the device of {there.name} has {theirs}"
    peers = [str(f["dst"]) for f in path["fdb"] if f.get("mac") == macs[0] and f.get("dst")]
    if not peers:
        return f"FDB: {device} has no entry for {macs[0]}, the device of {there.name}"
    if there.address not in peers:
        return f"FDB: {macs[0]} leads to {peers[0]}, {there.name} is {there.address}"
    return ""


def _covers(rule: str, option: str, address: str) -> bool:
    match = re.search(rf"(! )?{option} (\S+)", rule)
    if not match:
        return True
    inside = ipaddress.ip_address(address) in ipaddress.ip_network(match[2], strict=False)
    return inside != bool(match[1])


def _dropping(rules: Sequence[str], source: str, target: str) -> str:
    """The first rule that drops this packet before one accepts all such packets; or a policy that nobody softens."""
    for rule in rules:
        if not (_covers(rule, "-s", source) and _covers(rule, "-d", target)):
            continue
        if re.search(r" -j (DROP|REJECT)\b", rule):
            return rule
        # Rules with a protocol, a state or an interface are not for every packet.
        if re.search(r" -j ACCEPT\b", rule) and not re.search(r" (-p|-i|-o|-m (?!comment))", rule):
            return ""
    return next((rule for rule in rules if re.fullmatch(r"-P \S+ DROP", rule)), "")


def _forwarding(source: str, target: str, path: Path) -> str:
    if path["forwarding"] != "1":
        return f"rule: net.ipv4.ip_forward is {path['forwarding']}"
    rule = _dropping(path["forward"], source, target)
    return f"rule: iptables drops it in FORWARD: {rule}" if rule else ""


def _arriving(here: Place, path: Path, answers: bool | None) -> str:
    """Why a pod cannot be reached on its own machine. `answers`: whether the machine's own ping was answered."""
    routes = path["routes"].get(here.pod) or [{}]
    if routes[0].get("dev") not in _BRIDGES:
        return f"route: ip route get {here.pod} leads to {routes[0].get('dev')}, not to the pods' bridge"
    if answers is False:
        return f"runtime: its own pod {here.pod} does not answer; docker ps, journalctl -u kubelet"
    return ""


def _one_way(source: Place, target: Place, paths: Mapping[str, Path], lost: set[tuple[str, str]]) -> str:
    near, far = paths[source.name], paths[target.name]
    steps = [
        (source.name, _arriving(source, near, (source.name, source.pod) not in lost)),
        (source.name, _sending(target, near, far)),
        (source.name, _forwarding(source.pod, target.pod, near)),
        (target.name, _arriving(target, far, (target.name, target.pod) not in lost)),
        (target.name, _forwarding(source.pod, target.pod, far)),
    ]
    for machine, fault in steps:
        if fault:
            return f"{machine}: {fault}"
    return ""


def _underlay(source: Place, target: Place, paths: Mapping[str, Path], lost: set[tuple[str, str]]) -> str:
    tunnel = _overlay(paths[source.name]).get("linkinfo", {}).get("info_data", {})
    if paths[source.name]["peers"].get(target.address) is False:
        return f"underlay: {source.name} does not reach {target.name} ({target.address}) at all"
    for machine in (target, source):
        drop = next(
            (r for r in paths[machine.name]["input"] if re.search(r" -j (DROP|REJECT)\b", r) and "udp" in r), ""
        )
        if drop:
            return f"{machine.name}: rule: iptables drops it in INPUT: {drop}"
    if (source.name, target.flannel) in lost:
        port = tunnel.get("port")
        asked = f"is UDP port {port} open between them?" if port else "does a firewall drop the pods' addresses?"
        return f"underlay: {source.name} reaches {target.name}, but nothing comes through flannel: {asked}"
    return ""


def pods(source: Place, target: Place, paths: Mapping[str, Path], lost: set[tuple[str, str]]) -> str:
    """Where a ping from the pod on `source` to the pod on `target` ends, there or on the way back.

    `lost`: (machine, address) of every ping by a machine that had no answer.
    """
    silent = [place.name for place in (source, target) if place.name not in paths]
    if silent:
        return f"{', '.join(silent)} gave no answer about its part of the way"
    return (
        _one_way(source, target, paths, lost)
        or _one_way(target, source, paths, lost)
        or _underlay(source, target, paths, lost)
        or "route, neighbour, FDB, rules and runtime look right on both machines; "
        f"tcpdump -ni any host {target.pod} on both shows where it ends"
    )


def service(address: str, place: Place, paths: Mapping[str, Path]) -> str:
    """Why a Service does not answer on a machine."""
    path = paths.get(place.name)
    if path is None:
        return f"{place.name} gave no answer about its part of the way"
    if not path["services"].get(address):
        return f"{place.name}: rule: kube-proxy has none for {address}; journalctl -u kube-proxy"
    return f"{place.name}: kube-proxy has rules for {address}; a pod behind it is not reached"


def explain(result: Result, places: Mapping[str, Place], paths: Mapping[str, Path], lost: set[tuple[str, str]]) -> str:
    """One sentence for a probe that was lost; `places` by machine name."""
    source = places[result.source.removeprefix("pod ")]
    if result.kind == "http":
        return service(result.address, source, paths)
    target = next(place for place in places.values() if result.address in (place.pod, place.flannel))
    if source is target:
        path = paths.get(source.name)
        return _arriving(source, path, answers=False) if path else f"{source.name} did not answer"
    return pods(source, target, paths, lost)
