"""Whether the other machines answer: through the overlay, directly, and with packets as large as the overlay's."""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple

from flanneld import explain, state
from flanneld.net import probe
from flanneld.subnet.config import NetworkConfig, number
from flanneld.surroundings import FAILED, OK, SKIPPED, WARNING, Finding

_SHOWN = 20


def peers(config: NetworkConfig, running: Optional[state.State]) -> List[Finding]:
    """Ask the other machines that a running daemon knows: through the overlay, and where that fails directly."""
    if running is None or running.desired is None:
        return [Finding(SKIPPED, "peers", "no daemon runs here that knows the other machines")]
    asked = list(_targets(running))
    if not asked:
        return [Finding(SKIPPED, "peers", "there are none yet")]
    answers = probe.ask([target for _, _, target in asked])
    answering = [one for one, answer in zip(asked, answers) if answer.reached]
    silent = [one for one, answer in zip(asked, answers) if not answer.reached]
    found = []
    if answering:
        found.append(Finding(OK, "peers", f"{len(answering)} of {len(asked)} answer through the overlay"))
    found += _silent(running, silent)
    return found + _path_mtu(config, running, sorted({machine for _, machine, _ in answering}))


def _targets(running: state.State) -> Iterator[Tuple[state.Peer, str, probe.Target]]:
    for peer in running.peers:
        for subnet in peer.subnets if not peer.ignored else ():
            if subnet.version in running.networks:
                yield peer, peer.machine.get(subnet.version, ""), explain.overlay_target(running, subnet)


def _silent(running: state.State, silent: Sequence[Tuple[state.Peer, str, probe.Target]]) -> List[Finding]:
    replies = probe.ask([probe.Target(machine) for _, machine, _ in silent if machine])
    direct = {one.target.address: one for one in replies}
    port = explain.tunnel_port(running)
    found = []
    for peer, machine, target in silent[:_SHOWN]:
        reply = direct.get(machine)
        seen = f"{machine or peer.name} does not answer through the overlay ({target.address})"
        if reply is None or not reply.reached:
            todo = "is it down? else a firewall drops everything between here and there"
            found.append(Finding(WARNING, "peers", f"{seen}, nor directly", todo))
            continue
        todo = (
            f"allow UDP port {port} between the machines, both ways" if port else f"`flanneld explain {target.address}`"
        )
        # Without a device of its own only a bridge can answer, which comes with the first pod.
        level = FAILED if target.source else WARNING
        found.append(Finding(level, "peers", f"{seen}, but directly", todo))
    if len(silent) > _SHOWN:
        found.append(Finding(WARNING, "peers", f"and {len(silent) - _SHOWN} more do not answer"))
    return found


def _path_mtu(config: NetworkConfig, running: state.State, machines: Sequence[str]) -> List[Finding]:
    """Send packets as large as the overlay's to the machines, which nobody on the way may cut."""
    if not machines:
        return []
    size = number(config.backend, "MTU", 0, 0, 65535) or running.interface_mtu
    answers = probe.ask([probe.Target(one, size=size) for one in machines])
    # Not every machine answers directly: behind a NAT the overlay alone gets through.
    small = {one.target.address for one in probe.ask([probe.Target(one) for one in machines]) if one.reached}
    found = []
    for answer in answers:
        address = answer.target.address
        if answer.reached or address not in small:
            continue
        limit = f", only up to {answer.mtu}" if answer.mtu else " and vanish on the way"
        todo = f"set Backend.MTU to {answer.mtu or 'what the way takes'}, or the MTU on the way to {size}"
        found.append(Finding(FAILED, "path MTU", f"packets of {size} octets do not reach {address}{limit}", todo))
    return found[:_SHOWN] or [Finding(OK, "path MTU", f"packets of {size} octets arrive whole")]
