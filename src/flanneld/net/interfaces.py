"""Which interface leads to the other machines, and what else on the machine the choice rests on."""

from __future__ import annotations

import ipaddress
import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

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


class Overlap(NamedTuple):
    """Something of the machine's own within the pod network, as a sentence, and what to do about it."""

    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.what} ({self.todo})"


class _Choice(NamedTuple):
    """An interface, and the address by which it was chosen, empty when by name."""

    ifindex: int
    address: str = ""


def look(kernel: Kernel, options: InterfaceOptions, versions: Iterable[int]) -> Machine:
    """Ask the kernel for everything that the choice needs."""
    route = kernel.route_to(options.can_reach) if options.can_reach else None
    links = {link.ifindex: link for link in kernel.links()}
    # An interface may come or go between the questions.
    return Machine(
        links,
        tuple(one for one in kernel.addresses() if one.ifindex in links),
        tuple(one for version in versions for one in kernel.routes(version) if not one.oif or one.oif in links),
        route.oif if route is not None and route.oif in links else 0,
    )


def choose(
    machine: Machine,
    options: InterfaceOptions,
    networks: Mapping[int, dp.Network],
    present: Optional[Underlay] = None,
) -> Underlay:
    """Return the interface towards the other machines, by the options or the default route.

    `networks`: the pod networks by IP version, for each of which the interface must have an address. `present`: the
    choice before this one; of what serves as well it is kept, whatever addresses and routes were added meanwhile.
    Raises NetworkError when none matches, or it has no address or no MTU.
    """
    choice = _choice(machine, options, networks, present)
    link = machine.links[choice.ifindex]
    addresses: Dict[int, str] = {}
    for version in networks:
        own = _addresses(machine, version).get(choice.ifindex, [])
        if not own:
            raise NetworkError(
                f"interface {link.name} has no IPv{version} address", "give it one, or choose another with -iface"
            )
        usable = [one.address for one in own]
        held = present.addresses.get(version, "") if present is not None and present.ifindex == link.ifindex else ""
        as_good = [one.address for one in own if _narrow(one) == _narrow(own[0])]
        addresses[version] = next(
            one for one in (choice.address, held if held in as_good else "", usable[0]) if one in usable
        )
    if not link.mtu:
        raise NetworkError(f"interface {link.name} has the MTU 0", "set its MTU, or choose another with -iface")
    return Underlay(link.name, link.mtu, addresses, _reach(machine, choice.ifindex, networks), choice.ifindex)


def overlapping(
    machine: Machine,
    networks: Mapping[int, dp.Network],
    own: Sequence[dp.Network],
    ours: Iterable[str],
    made: Iterable[Tuple[str, str]] = (),
) -> List[Overlap]:
    """Return the machine's own addresses within the pod networks, and routes to parts of them that are not flannel's.

    `own`: this machine's subnets, which belong to its bridge; `ours`: devices of the daemon; `made`: destination and
    gateway of the routes over the underlay that it has set or would set. A route that is wider than the network does no
    harm: those to subnets are longer. What one address has brought along is told once.
    """
    names = {index for index, link in machine.links.items() if link.name in set(ours)}
    found: List[Overlap] = []
    told: Set[Tuple[int, str]] = set()
    for one in machine.addresses:
        network = networks.get(one.version)
        host = ipaddress.ip_network(one.address)
        if network is None or one.ifindex in names or not dp.within(host, network):
            continue
        if any(dp.within(host, subnet) for subnet in own):
            continue
        link = str(ipaddress.ip_network(f"{one.address}/{one.length}", strict=False))
        told |= {(one.ifindex, link), (one.ifindex, str(host))}
        found.append(
            Overlap(
                f"this machine's own address {one.address}/{one.length} of {machine.links[one.ifindex].name}"
                f" lies within the pod network {network}",
                "remove it when it is that of a former subnet's bridge, else give the pod network other addresses",
            )
        )
    past = dp.Past(frozenset(made))
    for route in machine.routes:
        network = networks.get(route.version)
        if network is None or route.oif in names or (route.oif, route.destination) in told:
            continue
        prefix = ipaddress.ip_network(route.destination)
        if not dp.within(prefix, network) or any(dp.within(prefix, one) for one in own) or _is_flannels(route, past):
            continue
        found.append(_overlap(machine, route))
    return found


def _is_flannels(route: wire.RouteEntry, past: dp.Past) -> bool:
    desired = dp.Desired(dp.Ownership({route.version: ipaddress.ip_network(route.destination)}))
    way = dp.Route(route.destination, str(route.oif), route.gateway, route.onlink)
    return route.kind == wire.UNICAST and dp.ours(dp.FoundRoute(way, route.protocol == wire.BOOT), desired, past)


def _overlap(machine: Machine, route: wire.RouteEntry) -> Overlap:
    link = machine.links.get(route.oif)
    kind = "" if route.kind == wire.UNICAST else wire.KINDS.get(route.kind, f"type {route.kind}")
    parts = [
        kind,
        route.destination,
        f"via {route.gateway}" if route.gateway else "",
        f"dev {link.name}" if link else "",
    ]
    way = " ".join(filter(None, parts))
    removable = (
        "" if route.protocol == wire.KERNEL and not route.gateway else f"remove it with `ip route del {way}`, or "
    )
    return Overlap(
        f"this machine has a route of its own within the pod network, which may hide pods: {way}",
        f"{removable}give the pod network other addresses",
    )


def _choice(
    machine: Machine, options: InterfaceOptions, networks: Mapping[int, dp.Network], present: Optional[Underlay]
) -> _Choice:
    for wanted in options.names:
        found = _by_name(machine, wanted)
        if found:
            return found
    for pattern in options.patterns:
        found = _by_pattern(machine, pattern, present)
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
    return _by_default_route(machine, networks, present.ifindex if present is not None else 0)


def _by_default_route(machine: Machine, networks: Mapping[int, dp.Network], before: int) -> _Choice:
    chosen: Dict[int, int] = {}
    for version in networks:
        routes = [
            one for one in machine.routes if one.version == version and one.destination.endswith("/0") and one.oif
        ]
        if not routes:
            raise NetworkError(
                f"this machine has no default route for IPv{version}", "choose the interface with -iface"
            )
        chosen[version] = min(routes, key=lambda one: (one.priority, one.oif != before)).oif
    if len(set(chosen.values())) > 1:
        names = " and ".join(f"{machine.links[index].name} (IPv{version})" for version, index in chosen.items())
        raise NetworkError(f"the default routes lead over {names}", "choose the interface with -iface")
    return _Choice(next(iter(chosen.values())))


def _addresses(machine: Machine, version: int) -> Dict[int, List[wire.Address]]:
    """Addresses by interface, best first: global before link-local, permanent before dynamic before temporary."""
    usable = [one for one in machine.addresses if one.version == version and not one.flags & wire.DEPRECATED]
    usable.sort(
        key=lambda one: (
            _narrow(one),
            not one.flags & wire.MANUAL,
            bool(one.flags & wire.TEMPORARY and version == 6),
        )
    )
    found: Dict[int, List[wire.Address]] = {}
    for one in usable:
        found.setdefault(one.ifindex, []).append(one)
    return found


def _narrow(one: wire.Address) -> bool:
    return not one.universal or ipaddress.ip_address(one.address).is_link_local


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


def _by_pattern(machine: Machine, pattern: str, present: Optional[Underlay]) -> Optional[_Choice]:
    held = set(present.addresses.values()) if present is not None else ()
    for one in sorted(machine.addresses, key=lambda one: one.address not in held):
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
