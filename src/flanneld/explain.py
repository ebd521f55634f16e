"""`flanneld explain IP`: who has an address, which way packets take there, and whether they arrive.

Exit status: 0 reachable, 1 not, 3 no daemon answers.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import console, drift, state
from flanneld import dataplane as dp
from flanneld.errors import UsageError
from flanneld.flags import Flag, parse, usage
from flanneld.net import probe
from flanneld.net.lookup import Lookup, Way
from flanneld.options import file_name
from flanneld.status import NOT_RUNNING, Look, take_look
from flanneld.subnet.config import Network, NetworkConfig, number
from flanneld.subnet.lease import canonical

FLAGS: Tuple[Flag, ...] = (
    Flag(
        "subnet-file", "str", state.DEFAULT_SUBNET_FILE, "file the leased subnet is written to; the socket is beside it"
    ),
    Flag("probe", "bool", "true", "send packets there; -probe=false only looks"),
    Flag("json", "bool", "false", "print JSON"),
)

UDP_PORT = 8285
"""Of the udp backend, unless its configuration says another."""

_UNSEEN = "a route or a rule; look for it with `ip route show table all` and `ip rule`"


class Facts(NamedTuple):
    """What was found about an address. `lines`: label, what there is, and what is wrong with it (empty = nothing).

    verdict: one sentence; `reachable` is None when that was not tried.
    """

    address: str
    who: str
    lines: Sequence[Tuple[str, str, str]]
    reachable: Optional[bool]
    verdict: str


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print what is found; returns the exit status. Raises FlanneldError."""
    flags, text = _positional(words)
    parsed = parse(FLAGS, flags, environ)
    if parsed.help:
        console.write(["Usage: flanneld explain IP [FLAG]...", usage(FLAGS).rstrip()])
        return 0
    address = _address(text)
    console.quiet()
    subnet_file = file_name(parsed, "subnet-file")
    try:
        look = take_look(subnet_file)
    except state.NotRunningError as error:
        facts = _without_daemon(Lookup(), address, subnet_file)
        if parsed.truth("json"):
            console.write_json({"running": False, "reason": str(error), **_json(facts)})
        else:
            sys.stderr.write(f"{error}. Is it running? (systemctl status flanneld)\n")
            console.write([*([facts.who] if facts.who else []), facts.verdict])
        return NOT_RUNNING
    facts = explain(look, Lookup(), address, probing=parsed.truth("probe"))
    if parsed.truth("json"):
        console.write_json({"running": True, **_json(facts)})
    else:
        console.write(_lines(facts))
    return 0 if facts.reachable or (facts.reachable is None and not any(one[2] for one in facts.lines)) else 1


def explain(look: Look, kernel: Lookup, address: str, *, probing: bool) -> Facts:
    """Return everything about an address. `probing`: packets may be sent."""
    answer = look.state
    version = ipaddress.ip_address(address).version
    own = next((one for one in answer.own if dp.contains(one, address)), None)
    if own is not None:
        return _own_pod(answer, kernel, address, own, probing=probing)
    for peer in answer.peers:
        subnet = next((one for one in peer.subnets if dp.contains(one, address)), None)
        if subnet is not None:
            return _peers_pod(look, kernel, address, peer, subnet, probing=probing)
    network = answer.networks.get(version)
    if network is not None and dp.contains(network, address):
        return _nobodys(answer, kernel, address, network)
    return _outside(answer, kernel, address, probing=probing)


def _without_daemon(kernel: Lookup, address: str, subnet_file: Path) -> Facts:
    """Return what the kernel and the subnet file tell."""
    way, env = kernel.way(address), state.read_env(subnet_file)
    own = next((one for one in env.subnets.values() if dp.contains(one, address)), None) if env else None
    who = f"{address} lies in {own}, the subnet of this machine by {subnet_file}" if own is not None else ""
    verdict = f"the kernel sends packets to {address} {way}" if way else f"the kernel has no route to {address}"
    return Facts(address, who, [("way", str(way) if way else "none", "")], None, verdict)


def _own_pod(answer: state.State, kernel: Lookup, address: str, own: Network, *, probing: bool) -> Facts:
    who = f"{address} lies in the own subnet {own} of this machine"
    holder = kernel.holder(address)
    if holder:
        return Facts(address, who, [("address", f"on {holder}", "")], True, f"It is this machine's own, on {holder}.")
    way = kernel.way(address)
    devices = {one.name for one in answer.desired.devices} if answer.desired is not None else set()
    if way is None or way.gateway or way.device in devices or way.device == answer.interface:
        shown = str(way) if way else "none"
        return Facts(
            address,
            who,
            [("way", shown, f"no bridge of this machine has {own}")],
            False,
            f"Not reachable: no bridge of this machine has the subnet {own}. Before the first pod this is normal;"
            " else Docker or the CNI plugin was not (re)started after flanneld leased it.",
        )
    lines = [("way", str(way), "")]
    reply = probe.ask([probe.Target(address)])[0] if probing else None
    neighbour = next((one for one in kernel.neighbours(way.device, own.version) if one.address == address), None)
    mac = neighbour.mac if neighbour is not None else ""
    lines.append(
        ("neighbour", f"{address} at {mac} on {way.device}" if mac else "none", "" if mac else "nobody has it")
    )
    if reply is None:
        return Facts(address, who, lines, None, f"Not tried: packets go to {way.device} directly.")
    lines.append(_probed("pod", reply))
    if reply.reached:
        return Facts(address, who, lines, True, "Reachable: the pod answers.")
    if mac:
        return Facts(
            address, who, lines, False, f"A pod has this address ({mac} on {way.device}), but it drops what we send."
        )
    return Facts(address, who, lines, False, f"Not reachable: nobody on {way.device} has this address now.")


def _peers_pod(look: Look, kernel: Lookup, address: str, peer: state.Peer, subnet: Network, *, probing: bool) -> Facts:
    answer, version = look.state, subnet.version
    machine = peer.machine.get(version, "")
    who = f"{address} lies in {subnet}, leased by {peer.addresses or 'a machine that announces no address'}"
    if peer.ignored:
        return Facts(
            address,
            who,
            [("lease", peer.name, f"ignored: {peer.ignored}")],
            False,
            f"Not reachable: this machine does not use that lease, because {peer.ignored}.",
        )
    desired = answer.desired
    wanted = drift.way(desired, subnet) if desired is not None else None
    if desired is None or wanted is None:
        return _not_programmed(answer, kernel, address, who, machine, probing=probing)
    lines = _programmed(desired, wanted, drift.Concerned(look.differences))
    bad = next((f"the {label} {seen.partition(' with ')[0]} {wrong}" for label, seen, wrong in lines if wrong), "")
    if bad:
        bad += ". flanneld should repair that within seconds; its log says what keeps it"
    way = kernel.way(address)
    expected = Way(wanted.route.device, wanted.route.gateway)
    lines.append(("way", str(way) if way else "none", "" if way == expected else f"should be {expected}"))
    if way != expected:
        bad = _precedence(kernel.obstacle(address, wanted.route)) or bad or _precedence(_UNSEEN)
    if kernel.holder(address):  # which would answer, and prove nothing
        return Facts(address, who, lines, False, f"Not reachable: {bad}.")
    if not probing:
        verdict = f"Wrong: {bad}." if bad else "Not tried: everything on this machine is as it should be."
        return Facts(address, who, lines, None, verdict)
    replies = _ask_peer(answer, address, subnet, machine)
    lines += [_probed(label, reply) for label, reply in replies.items()]
    reached = {label: reply.reached for label, reply in replies.items()}
    return Facts(
        address, who, lines, reached.get("address", reached["overlay"]), _verdict(answer, wanted, machine, bad, replies)
    )


def _precedence(obstacle: str) -> str:
    """Say that something of the machine's own, which flanneld leaves alone, goes before flanneld's route."""
    return f"what this machine has of its own takes precedence: {obstacle}" if obstacle else ""


def _not_programmed(
    answer: state.State, kernel: Lookup, address: str, who: str, machine: str, *, probing: bool
) -> Facts:
    """Explain an address to which others lead: the alloc and extension backends program nothing."""
    reason = answer.trouble or f"the {answer.backend} backend leaves routes to others"
    way = kernel.way(address)
    lines = [("way", str(way) if way else "none", "")]
    if not probing:
        return Facts(address, who, lines, None, f"flanneld programs no way there: {reason}.")
    targets = {"address": address, **({"machine": machine} if machine else {})}
    replies = dict(zip(targets, probe.ask([probe.Target(one) for one in targets.values()])))
    lines += [_probed(label, reply) for label, reply in replies.items()]
    reached = replies["address"].reached
    found = "Reachable" if reached else "Not reachable"
    return Facts(address, who, lines, reached, f"{found}; flanneld programs no way there: {reason}.")


def _programmed(desired: dp.Desired, wanted: drift.Way, concerned: drift.Concerned) -> List[Tuple[str, str, str]]:
    route = wanted.route
    lines = []
    if route.device in {one.name for one in desired.devices}:
        addresses = " ".join(sorted(desired.addresses.get(route.device, ())))
        lines.append(("device", f"{route.device} with {addresses}", _wrong(concerned.by(route.device))))
    lines.append(("route", str(route).partition(" ")[2], _wrong(concerned.by(route.destination))))
    if wanted.mac:
        neighbour = _wrong(concerned.by((route.device, route.gateway)))
        lines.append(("neighbour", f"{route.gateway} at {wanted.mac}", neighbour))
        forwarding = _wrong(concerned.by((route.device, wanted.mac)))
        lines.append(("forwarding", f"{wanted.mac} to {wanted.machine}", forwarding))
    return lines


def _wrong(found: Sequence[drift.Difference]) -> str:
    return found[0].wrong if found else ""


def overlay_target(answer: state.State, subnet: Network) -> probe.Target:
    """Return what to ask in order to learn whether the overlay to a peer's subnet works.

    The first address of the subnet is on the peer's device, from that of the own device; where the backend has no
    device, it is the first usable one, which the peer's bridge has.
    """
    own = next((one for one in answer.own if one.version == subnet.version), None)
    desired = answer.desired
    if desired is None or not desired.devices or own is None:
        return probe.Target(str(subnet.network_address + 1))
    return probe.Target(str(subnet.network_address), str(own.network_address))


def _ask_peer(answer: state.State, address: str, subnet: Network, machine: str) -> Dict[str, probe.Answer]:
    targets = {"overlay": overlay_target(answer, subnet)}
    if machine:
        targets["machine"] = probe.Target(machine)
    if address != targets["overlay"].address:
        targets["address"] = probe.Target(address)
    return dict(zip(targets, probe.ask(list(targets.values()))))


def _verdict(
    answer: state.State, wanted: drift.Way, machine: str, bad: str, replies: Mapping[str, probe.Answer]
) -> str:
    overlay, there = replies["overlay"], replies.get("machine")
    last = replies.get("address", overlay)
    if last.reached:
        return f"Reachable, although something is wrong: {bad}." if bad else "Reachable."
    if bad:
        return f"Not reachable: {bad}."
    if overlay.reached:
        return (
            f"The machine {machine} is reached through the overlay, but {last.target.address} does not answer: no pod"
            " has this address now, or it drops what we send."
        )
    if there is None or not there.reached:
        why = there.trouble if there is not None else "it announces no address"
        return (
            f"Not reachable: neither the overlay nor the machine {machine} answers ({why}). Is it down, or does a"
            " firewall drop everything between here and there?"
        )
    port = tunnel_port(answer)
    if port and wanted.route.gateway != machine:
        return (
            f"Not reachable: the machine {machine} answers, but the overlay does not. Is UDP port {port} allowed"
            " between the machines, both ways, and does flanneld run there?"
        )
    return (
        f"Not reachable: the machine {machine} answers, but {overlay.target.address} behind it does not. Does flanneld"
        " run there, has its bridge the subnet, and does its firewall forward?"
    )


def tunnel_port(answer: state.State) -> int:
    """Return the UDP port that the backend's packets go to, 0 when it wraps none."""
    for device in answer.desired.devices if answer.desired is not None else ():
        if isinstance(device, dp.Vxlan):
            return device.port
    return udp_port(answer.config) if answer.config is not None else 0


def udp_port(config: NetworkConfig) -> int:
    """Return the port of the udp backend, 0 for another backend."""
    if config.backend_type != "udp":
        return 0
    return number(config.backend, "Port", 0, 0, 65535) or UDP_PORT


def _nobodys(answer: state.State, kernel: Lookup, address: str, network: Network) -> Facts:
    pool = answer.config.pools[network.version] if answer.config is not None else None
    length = pool.subnet_len if pool is not None else network.max_prefixlen
    subnet = ipaddress.ip_network(f"{address}/{length}", strict=False)
    way = kernel.way(address)
    outside = "" if pool is None or pool.permits(subnet) else ", and lies outside of SubnetMin to SubnetMax"
    return Facts(
        address,
        f"{address} lies in the pod network {network}, in {subnet}",
        [("way", str(way) if way else "none", "")],
        False,
        f"Not reachable: the subnet {subnet} is leased to nobody{outside}.",
    )


def _outside(answer: state.State, kernel: Lookup, address: str, *, probing: bool) -> Facts:
    shown = f"the pod network is {' and '.join(map(str, answer.networks.values()))}"
    if not answer.networks:
        shown = f"flanneld knows no pod network yet: {answer.trouble}"
        way = kernel.way(address)
        return Facts(address, f"{address} may be a pod's", [("way", str(way) if way else "none", "")], False, shown)
    version = ipaddress.ip_address(address).version
    holder = kernel.holder(address)
    peer = next((one for one in answer.peers if one.machine.get(version) == address), None)
    if holder:
        who = f"{address} is this machine's own, on {holder}"
        return Facts(address, who, [], True, f"It is no pod's address: {shown}.")
    who = f"{address} is the machine that has leased {peer.name}" if peer else f"{address} is not in the pod network"
    way = kernel.way(address)
    lines = [("way", str(way) if way else "none", "")]
    note = f"It is no pod's address: {shown}."
    if peer is None or not probing:
        return Facts(address, who, lines, None if peer else False, note)
    reply = probe.ask([probe.Target(address)])[0]
    return Facts(address, who, [*lines, _probed("machine", reply)], reply.reached, note)


def _probed(label: str, reply: probe.Answer) -> Tuple[str, str, str]:
    if reply.reached:
        return label, f"{reply.target.address} answers in {reply.seconds * 1000:.1f} ms", ""
    return label, f"{reply.target.address}", reply.trouble


def _lines(facts: Facts) -> List[str]:
    lines = [f"{facts.who}."]
    rows = [(label, seen, console.coloured(wrong, "red") if wrong else "ok") for label, seen, wrong in facts.lines]
    lines += console.columns(rows, "  ")
    colour = {True: "green", False: "red", None: "yellow"}[facts.reachable]
    return [*lines, console.coloured(facts.verdict, colour)]


def _json(facts: Facts) -> Dict[str, Any]:
    return {
        "address": facts.address,
        "who": facts.who,
        "steps": [{"step": label, "seen": seen, "wrong": wrong} for label, seen, wrong in facts.lines],
        "reachable": facts.reachable,
        "verdict": facts.verdict,
    }


def _positional(words: Sequence[str]) -> Tuple[List[str], str]:
    """Return the flags, and the address among the words: the first one, or the last."""
    left = list(words)
    if left and not left[0].startswith("-"):
        return left[1:], left[0]
    if left and _is_address(left[-1]):
        return left[:-1], left[-1]
    return left, ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    hint = "for example `flanneld explain 10.244.3.7`"
    if not text:
        raise UsageError("explain needs an address", hint)
    try:
        return canonical(text, 6 if ":" in text else 4)
    except ValueError:
        raise UsageError(f"{text!r} is not an IP address", hint) from None
