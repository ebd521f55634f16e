"""The overlay as it should be, and the steps from what the kernel has to that. Pure: no kernel, no clock.

What the daemon owns, and may remove: its device; on the device addresses within the network, permanent neighbours
within the network, unicast forwarding entries, and routes that lie within the network or have the daemon's form
(through their own first address). Everything else on the machine is foreign and stays.
"""

from __future__ import annotations

import ipaddress
from typing import FrozenSet, List, Mapping, NamedTuple, Optional, Set, Tuple, Union

Network = ipaddress.IPv4Network
Address = ipaddress.IPv4Address
Interface = ipaddress.IPv4Interface


class Device(NamedTuple):
    """A vxlan device. `parent` is the name of the underlying interface, `local` the outer source address."""

    name: str
    vni: int
    parent: str
    local: Address
    port: int
    mtu: int
    mac: str
    learning: bool = False
    gbp: bool = False


class Desired(NamedTuple):
    """The whole overlay of one machine."""

    device: Device
    network: Network
    addresses: FrozenSet[Interface]
    neighbours: Mapping[Address, str]
    forwarding: Mapping[str, Address]
    routes: Mapping[Network, Address]


class FoundDevice(NamedTuple):
    """The device as the kernel has it; `vxlan` is None when it is of another kind.

    `parent_matches` tells that it runs over the interface that now has the wanted name.
    """

    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    vni: int = 0
    parent_matches: bool = False
    local: Optional[Address] = None
    port: int = 0
    learning: bool = False
    gbp: bool = False
    group: bool = False


class Route(NamedTuple):
    """A route of the main table through the device."""

    destination: Network
    gateway: Optional[Address]
    onlink: bool
    by_boot: bool


class Found(NamedTuple):
    """What the kernel has on the device; empty when there is no device."""

    device: Optional[FoundDevice]
    addresses: FrozenSet[Interface] = frozenset()
    neighbours: Mapping[Address, str] = {}
    forwarding: FrozenSet[Tuple[str, Address]] = frozenset()
    routes: FrozenSet[Route] = frozenset()


class CreateDevice(NamedTuple):
    """Make the device, up, with its MAC given at creation."""

    device: Device


class DeleteDevice(NamedTuple):
    """Remove the device of this name."""

    name: str
    reason: str


class SetDevice(NamedTuple):
    """Change what can be changed on a living device."""

    device: Device


class AddAddress(NamedTuple):
    """Give the device an address."""

    address: Interface


class RemoveAddress(NamedTuple):
    """Take an address from the device."""

    address: Interface


class PutNeighbour(NamedTuple):
    """Set a permanent neighbour."""

    address: Address
    mac: str


class RemoveNeighbour(NamedTuple):
    """Remove a neighbour."""

    address: Address
    mac: str


class PutForwarding(NamedTuple):
    """Send frames for a MAC to this machine, and to no other."""

    mac: str
    machine: Address


class RemoveForwarding(NamedTuple):
    """Forget one destination of a MAC."""

    mac: str
    machine: Address


class PutRoute(NamedTuple):
    """Set an on-link route through the device."""

    destination: Network
    gateway: Address


class RemoveRoute(NamedTuple):
    """Remove a route through the device."""

    destination: Network
    gateway: Optional[Address]


Step = Union[
    CreateDevice,
    DeleteDevice,
    SetDevice,
    AddAddress,
    RemoveAddress,
    PutNeighbour,
    RemoveNeighbour,
    PutForwarding,
    RemoveForwarding,
    PutRoute,
    RemoveRoute,
]

_NO_MAC = "00:00:00:00:00:00"


def incompatible(wanted: Device, found: FoundDevice) -> str:
    """Return why the device must be made anew, empty when it can stay."""
    if found.kind != "vxlan":
        return f"it is a {found.kind or 'device of another kind'}, not a vxlan"
    differences = [
        ("VNI", found.vni, wanted.vni),
        ("local address", found.local, wanted.local),
        ("port", found.port, wanted.port),
        ("GBP", found.gbp, wanted.gbp),
    ]
    for what, have, want in differences:
        if have != want:
            return f"its {what} is {have}, not {want}"
    if not found.parent_matches:
        return f"it does not run over {wanted.parent}"
    return "it has a multicast group" if found.group else ""


def plan(desired: Desired, found: Found) -> List[Step]:
    """Return the steps, in the order in which they must be taken; none when all is as it should be.

    Per peer: neighbour, forwarding entry, route last, so that no packet leaves before it can arrive.
    """
    steps: List[Step] = []
    device, have = desired.device, found.device
    reason = incompatible(device, have) if have is not None else ""
    if have is not None and reason:
        steps.append(DeleteDevice(device.name, reason))
    if have is None or reason:
        steps.append(CreateDevice(device))
        found = Found(None)
    elif not have.up or (have.mac, have.mtu, have.learning) != (device.mac, device.mtu, device.learning):
        steps.append(SetDevice(device))
    steps += _address_steps(desired, found)
    steps += [
        RemoveRoute(route.destination, route.gateway)
        for route in sorted(found.routes, key=str)
        if _our_route(route, desired.network) and route.destination not in desired.routes
    ]
    steps += [
        RemoveNeighbour(address, mac)
        for address, mac in found.neighbours.items()
        if address in desired.network and address not in desired.neighbours
    ]
    steps += _forwarding_steps(desired, found, adding=False)
    steps += [
        PutNeighbour(address, mac)
        for address, mac in desired.neighbours.items()
        if found.neighbours.get(address) != mac
    ]
    steps += _forwarding_steps(desired, found, adding=True)
    steps += _route_steps(desired, found)
    return steps


def _address_steps(desired: Desired, found: Found) -> List[Step]:
    steps: List[Step] = [AddAddress(address) for address in sorted(desired.addresses - found.addresses)]
    steps += [
        RemoveAddress(address)
        for address in sorted(found.addresses - desired.addresses)
        if address.ip in desired.network
    ]
    return steps


def _forwarding_steps(desired: Desired, found: Found, *, adding: bool) -> List[Step]:
    if adding:
        return [
            PutForwarding(mac, machine)
            for mac, machine in desired.forwarding.items()
            if (mac, machine) not in found.forwarding
        ]
    return [
        RemoveForwarding(mac, machine)
        for mac, machine in sorted(found.forwarding)
        if mac != _NO_MAC and desired.forwarding.get(mac) != machine
    ]


def _our_route(route: Route, network: Network) -> bool:
    if not route.by_boot:
        return False
    return route.destination.subnet_of(network) or route.gateway == route.destination.network_address


def _route_steps(desired: Desired, found: Found) -> List[Step]:
    good: Set[Tuple[Network, Optional[Address]]] = {
        (route.destination, route.gateway) for route in found.routes if route.onlink
    }
    return [
        PutRoute(destination, gateway)
        for destination, gateway in desired.routes.items()
        if (destination, gateway) not in good
    ]
