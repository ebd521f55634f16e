"""Which interface leads to the other machines, and what else on the machine the choice rests on."""

from __future__ import annotations

import ipaddress
import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import dataplane as dp
from flanneld.backend.base import Reach, Underlay
from flanneld.errors import NetworkError
from flanneld.net import wire
from flanneld.net.kernel import Kernel
from flanneld.options import InterfaceOptions


class Machine(NamedTuple):
    """The machine's network as far as the choice goes; `routes` are those of the main table."""

    links: Mapping[int, wire.Link]
    addresses: Tuple[wire.Address, ...]
    routes: Tuple[wire.RouteEntry, ...]
    reaching: int = 0


class _Choice(NamedTuple):
    """An interface, and the address by which it was chosen, empty when by name."""

    ifindex: int
    address: str = ""


def look(kernel: Kernel, options: InterfaceOptions, versions: Iterable[int]) -> Machine:
    """Ask the kernel for everything that the choice needs."""
    route = kernel.route_to(options.can_reach) if options.can_reach else None
    return Machine(
        {link.ifindex: link for link in kernel.links()},
        tuple(kernel.addresses()),
        tuple(one for version in versions for one in kernel.routes(version)),
        route.oif if route else 0,
    )


def choose(machine: Machine, options: InterfaceOptions, networks: Mapping[int, dp.Network]) -> Underlay:
    """Return the interface towards the other machines, by the options or the default route.

    `networks`: the pod networks by IP version, for each of which the interface must have an address.
    Raises NetworkError when none matches, or it has no address or no MTU.
    """
    choice = _choice(machine, options, networks)
    link = machine.links[choice.ifindex]
    addresses: Dict[int, str] = {}
    for version in networks:
        own = _addresses(machine, version).get(choice.ifindex, [])
        if not own:
            raise NetworkError(
                f"interface {link.name} has no IPv{version} address", "give it one, or choose another with -iface"
            )
        addresses[version] = choice.address if choice.address in own else own[0]
    if not link.mtu:
        raise NetworkError(f"interface {link.name} has the MTU 0", "set its MTU, or choose another with -iface")
    return Underlay(link.name, link.mtu, addresses, _reach(machine, choice.ifindex, networks))


def overlapping(
    machine: Machine, networks: Mapping[int, dp.Network], own: Sequence[dp.Network], ours: Iterable[str]
) -> List[str]:
    """Return in words routes of the machine to parts of the pod networks that are not flannel's.

    `own`: this machine's subnets, which belong to its bridge; `ours`: devices of the daemon. A route that is wider than
    the network does no harm: those to subnets are longer.
    """
    names = set(ours)
    found = []
    for route in machine.routes:
        network = networks.get(route.version)
        link = machine.links.get(route.oif)
        device = link.name if link else ""
        if network is None or device in names or route.protocol == wire.BOOT:
            continue
        prefix = ipaddress.ip_network(route.destination)
        bridge = any(_within(prefix, one) for one in own)
        if _within(prefix, network) and not bridge:
            way = f"via {route.gateway} dev {device}" if route.gateway else f"dev {device}"
            found.append(f"{route.destination} {way}")
    return found


def _within(prefix: dp.Network, network: dp.Network) -> bool:
    return prefix.version == network.version and prefix.subnet_of(network)  # type: ignore[arg-type]  # one version


def _choice(machine: Machine, options: InterfaceOptions, networks: Mapping[int, dp.Network]) -> _Choice:
    for wanted in options.names:
        found = _by_name(machine, wanted)
        if found:
            return found
    for pattern in options.patterns:
        found = _by_pattern(machine, pattern)
        if found:
            return found
    if machine.reaching:
        return _Choice(machine.reaching)
    asked = [*options.names, *options.patterns, *filter(None, [options.can_reach])]
    if asked:
        there = ", ".join(sorted(link.name for link in machine.links.values()))
        raise NetworkError(f"no interface matches {', '.join(asked)}", f"this machine has {there}")
    for public in options.public.values():
        found = _by_address(machine, public)
        if found is None:
            raise NetworkError(
                f"no interface has the address {public} of -public-ip",
                "name the interface with -iface when the address is not the machine's own",
            )
        return found
    return _by_default_route(machine, networks)


def _by_default_route(machine: Machine, networks: Mapping[int, dp.Network]) -> _Choice:
    chosen: Dict[int, int] = {}
    for version in networks:
        routes = [
            one for one in machine.routes if one.version == version and one.destination.endswith("/0") and one.oif
        ]
        if not routes:
            raise NetworkError(
                f"this machine has no default route for IPv{version}", "choose the interface with -iface"
            )
        chosen[version] = min(routes, key=lambda one: one.priority).oif
    if len(set(chosen.values())) > 1:
        names = " and ".join(f"{machine.links[index].name} (IPv{version})" for version, index in chosen.items())
        raise NetworkError(f"the default routes lead over {names}", "choose the interface with -iface")
    return _Choice(next(iter(chosen.values())))


def _addresses(machine: Machine, version: int) -> Dict[int, List[str]]:
    """Addresses by interface, best first: global before link-local, permanent before dynamic before temporary."""
    usable = [one for one in machine.addresses if one.version == version and not one.flags & wire.DEPRECATED]
    usable.sort(
        key=lambda one: (
            not one.universal or ipaddress.ip_address(one.address).is_link_local,
            not one.flags & wire.MANUAL,
            bool(one.flags & wire.TEMPORARY and version == 6),
        )
    )
    found: Dict[int, List[str]] = {}
    for one in usable:
        found.setdefault(one.ifindex, []).append(one.address)
    return found


def _by_name(machine: Machine, wanted: str) -> Optional[_Choice]:
    index = next((index for index, link in machine.links.items() if link.name == wanted), 0)
    return _Choice(index) if index else _by_address(machine, wanted)


def _by_address(machine: Machine, wanted: str) -> Optional[_Choice]:
    try:
        text = ipaddress.ip_address(wanted)
    except ValueError:
        return None
    holders = (one for one in machine.addresses if ipaddress.ip_address(one.address) == text)
    return next((_Choice(one.ifindex, one.address) for one in holders if one.ifindex in machine.links), None)


def _by_pattern(machine: Machine, pattern: str) -> Optional[_Choice]:
    for one in machine.addresses:
        if one.ifindex in machine.links and re.search(pattern, one.address):
            return _Choice(one.ifindex, one.address)
    return next((_Choice(index) for index, link in machine.links.items() if re.search(pattern, link.name)), None)


def _reach(machine: Machine, index: int, networks: Mapping[int, dp.Network]) -> Tuple[Reach, ...]:
    found = []
    for one in machine.routes:
        network = networks.get(one.version)
        if one.kind != wire.UNICAST or network is None or dp.contains(network, one.destination.partition("/")[0]):
            continue
        found.append(Reach(ipaddress.ip_network(one.destination), one.oif == index and not one.gateway))
    return tuple(sorted(found, key=lambda one: (-one.network.prefixlen, str(one.network))))
