"""The overlay as it should be, and the steps from what the kernel has to that. Pure: no kernel, no clock.

Addresses, MACs and prefixes are text in the kernel's form (`inet_ntop`): thousands of them are compared, printed and
looked up, and text is the form in which all of that is cheap.

What the daemon owns, and may remove:

- its devices; on them addresses, permanent neighbours and routes within the pod networks (also those of an earlier
  run), and unicast forwarding entries, except for MACs of foreign neighbours; a device of the vxlan backend with the
  own subnet's first address, when the backend now wants another one or none;
- on other devices: routes within the pod networks that have vxlan's form (on link through their own first address);
- on the underlay: routes that it has set, by its own record, which outlives it. For a route that a lease wants, to the
  same subnet: one through a machine of the network. Where there is no record yet and the backend sets such routes
  (host-gw, DirectRouting), also those to exactly one subnet that no lease has: they are a Go daemon's.

All of them have the protocol "boot" and the usual metric; as `ip route add` gives both, nothing else is taken for its
own on the underlay. Everything else on the machine is foreign and stays.
"""

from __future__ import annotations

import ipaddress
from typing import AbstractSet, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple, Union

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

NO_MAC = "00:00:00:00:00:00"


class Vxlan(NamedTuple):
    """A vxlan device. `parent` is the name of the underlying interface, `local` the outer source address."""

    name: str
    mtu: int
    vni: int
    parent: str
    local: str
    port: int
    mac: str
    learning: bool = False
    gbp: bool = False


class Tun(NamedTuple):
    """A device whose other end is the daemon itself; it is there as long as the backend holds it open."""

    name: str
    mtu: int


Device = Union[Vxlan, Tun]


class Route(NamedTuple):
    """A route of the main table to `destination` (a prefix). `gateway` is empty for one that ends on the link."""

    destination: str
    device: str
    gateway: str = ""
    onlink: bool = False

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"route {self.destination}{via} dev {self.device}{' onlink' if self.onlink else ''}"


class Ownership(NamedTuple):
    """What the daemon may remove: things within `networks`.

    `underlay`: the interface towards the other machines; `lengths`: SubnetLen by IP version. `plain`: the backend sets
    routes over the underlay, through a gateway to exactly one subnet.
    """

    networks: Mapping[int, Network]
    underlay: str = ""
    lengths: Mapping[int, int] = {}
    plain: bool = False


class Past(NamedTuple):
    """What this daemon and its earlier runs have made.

    made: (destination, gateway) of the routes over the underlay, None where that is not known; former: the networks of
    the earlier run.
    """

    made: Optional[AbstractSet[Tuple[str, str]]] = frozenset()
    former: Tuple[Network, ...] = ()


NO_PAST = Past()


class Desired(NamedTuple):
    """The whole overlay of one machine.

    addresses: device -> prefixes; neighbours: (device, address) -> MAC; forwarding: (device, MAC) -> machine;
    routes: by destination. firsts: the own subnets' first addresses, as prefixes, where no device has them; unused:
    prefixes of leases that are ignored.
    """

    ownership: Ownership
    devices: Tuple[Device, ...] = ()
    addresses: Mapping[str, FrozenSet[str]] = {}
    neighbours: Mapping[Tuple[str, str], str] = {}
    forwarding: Mapping[Tuple[str, str], str] = {}
    routes: Mapping[str, Route] = {}
    firsts: FrozenSet[str] = frozenset()
    unused: FrozenSet[str] = frozenset()


class FoundDevice(NamedTuple):
    """A device as the kernel has it; fields from `vni` on are those of a vxlan.

    `parent_matches` tells that it runs over the interface that now has the wanted name, or that there is no such one.
    """

    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    vni: int = 0
    parent_matches: bool = False
    local: str = ""
    port: int = 0
    learning: bool = False
    gbp: bool = False
    group: bool = False


class FoundRoute(NamedTuple):
    """A route of the main table with the usual metric; `by_boot`: with the protocol that the daemon gives its own."""

    route: Route
    by_boot: bool


class Found(NamedTuple):
    """What the kernel has of the wanted devices, and the routes through them and through the underlay.

    leftovers: devices of the vxlan backend with the own address that are not wanted; underlay: it is there.
    """

    devices: Mapping[str, FoundDevice] = {}
    addresses: Mapping[str, FrozenSet[str]] = {}
    neighbours: Mapping[Tuple[str, str], str] = {}
    forwarding: FrozenSet[Tuple[str, str, str]] = frozenset()
    routes: Tuple[FoundRoute, ...] = ()
    leftovers: Tuple[str, ...] = ()
    underlay: bool = True


class CreateDevice(NamedTuple):
    """Make the device, up, with its MAC given at creation."""

    device: Vxlan

    def __str__(self) -> str:
        return f"create {self.device.name} over {self.device.parent} with MAC {self.device.mac}"


class DeleteDevice(NamedTuple):
    """Remove the device of this name."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"remove {self.name}: {self.reason}"


class SetDevice(NamedTuple):
    """Change what can be changed on a living device: MAC, MTU, and that it is up."""

    device: Device

    def __str__(self) -> str:
        mac = f"MAC {self.device.mac}, " if isinstance(self.device, Vxlan) else ""
        return f"set {self.device.name} to {mac}MTU {self.device.mtu}, up"


class AddAddress(NamedTuple):
    """Give a device an address."""

    device: str
    address: str

    def __str__(self) -> str:
        return f"set address {self.address} of {self.device}"


class RemoveAddress(NamedTuple):
    """Take an address from a device."""

    device: str
    address: str

    def __str__(self) -> str:
        return f"remove address {self.address} of {self.device}"


class PutNeighbour(NamedTuple):
    """Set a permanent neighbour."""

    device: str
    address: str
    mac: str

    def __str__(self) -> str:
        return f"set neighbour {self.address} at {self.mac} on {self.device}"


class RemoveNeighbour(NamedTuple):
    """Remove a neighbour."""

    device: str
    address: str
    mac: str

    def __str__(self) -> str:
        return f"remove neighbour {self.address} at {self.mac} on {self.device}"


class PutForwarding(NamedTuple):
    """Send frames for a MAC to this machine, and to no other."""

    device: str
    mac: str
    machine: str

    def __str__(self) -> str:
        return f"set forwarding of {self.mac} to {self.machine} on {self.device}"


class RemoveForwarding(NamedTuple):
    """Forget one destination of a MAC."""

    device: str
    mac: str
    machine: str

    def __str__(self) -> str:
        return f"remove forwarding of {self.mac} to {self.machine} on {self.device}"


class PutRoute(NamedTuple):
    """Set a route. Without `replaces` a route to the same destination is in the way, and foreign."""

    route: Route
    replaces: bool = False

    def __str__(self) -> str:
        return f"set {self.route}"


class RemoveRoute(NamedTuple):
    """Remove a route."""

    route: Route

    def __str__(self) -> str:
        return f"remove {self.route}"


Entry = Union[
    AddAddress,
    RemoveAddress,
    PutNeighbour,
    RemoveNeighbour,
    PutForwarding,
    RemoveForwarding,
    PutRoute,
    RemoveRoute,
]
"""A step that is one message, of which many go into one system call."""

Step = Union[CreateDevice, DeleteDevice, SetDevice, Entry]


def incompatible(wanted: Device, found: FoundDevice) -> str:
    """Return why the device must be made anew, empty when it can stay."""
    if isinstance(wanted, Tun):
        return "" if found.kind == "tun" else f"it is a {found.kind or 'device of another kind'}, not a tun"
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


def plan(desired: Desired, found: Found, past: Past = NO_PAST) -> List[Step]:
    """Return the steps, in the order in which they must be taken; none when all is as it should be.

    Per peer: neighbour, forwarding entry, route last, so that no packet leaves before it can arrive. What they replace,
    and a device of another backend, go when the routes lead elsewhere. Nothing is asked of a tun that is not there:
    only its backend can open it.
    """
    steps: List[Step] = []
    absent = set()
    for device in desired.devices:
        have = found.devices.get(device.name)
        reason = incompatible(device, have) if have is not None else ""
        if isinstance(device, Tun):
            if have is None or reason:
                absent.add(device.name)
            elif not have.up or have.mtu != device.mtu:
                steps.append(SetDevice(device))
            continue
        if have is not None and reason:
            steps.append(DeleteDevice(device.name, reason))
            found = _without(found, device.name)
        if have is None or reason:
            steps.append(CreateDevice(device))
        elif not have.up or (have.mac, have.mtu, have.learning) != (device.mac, device.mtu, device.learning):
            steps.append(SetDevice(device))
    removals = _removals(desired, found, past)
    # What a route of before leads through goes when the route leads elsewhere.
    last = [entry for entry in removals if _used_by_a_route(entry, desired)]
    entries = [entry for entry in removals if entry not in last] + _additions(desired, found, past) + last
    steps += [entry for entry in entries if _device(entry) not in absent]
    return steps + [DeleteDevice(name, "it is a leftover of another backend") for name in found.leftovers]


def delta(before: Desired, after: Desired) -> Optional[List[Step]]:
    """Return the steps from one overlay to another, without looking at the kernel; None when only a look can tell.

    A lease that came or went is programmed by this in the time of its own three entries, however many there are.
    """
    if (before.ownership, before.devices, before.addresses) != (after.ownership, after.devices, after.addresses):
        return None
    steps: List[Step] = []
    steps += [RemoveRoute(before.routes[destination]) for destination in before.routes.keys() - after.routes.keys()]
    steps += [
        RemoveNeighbour(*key, before.neighbours[key]) for key in before.neighbours.keys() - after.neighbours.keys()
    ]
    steps += [RemoveForwarding(*key, machine) for key, machine in before.forwarding.items() - after.forwarding.items()]
    steps += [PutNeighbour(*key, mac) for key, mac in after.neighbours.items() - before.neighbours.items()]
    steps += [PutForwarding(*key, machine) for key, machine in after.forwarding.items() - before.forwarding.items()]
    steps += [
        PutRoute(route, replaces=destination in before.routes)
        for destination, route in after.routes.items() - before.routes.items()
    ]
    return steps


def ours(found: FoundRoute, desired: Desired, past: Past = NO_PAST) -> bool:
    """Tell whether a route is one that a daemon of this network has made; the rule is that of the module."""
    route = found.route
    if not found.by_boot:
        return False
    if past.made is not None and (route.destination, route.gateway) in past.made:
        return True
    prefix = ipaddress.ip_network(route.destination)
    if not any(within(prefix, one) for one in (*desired.ownership.networks.values(), *past.former)):
        return False
    if any(device.name == route.device for device in desired.devices):
        return True
    if route.device != desired.ownership.underlay:
        return route.onlink and _through_itself(route)
    single = prefix.prefixlen == desired.ownership.lengths.get(prefix.version)
    return single and bool(route.gateway) and _of_a_machine(route, desired, past)


def _of_a_machine(route: Route, desired: Desired, past: Past) -> bool:
    """Tell whether a route over the underlay to one subnet, which is not in the record, is a daemon's all the same."""
    unknown = past.made is None and desired.ownership.plain
    wanted = desired.routes.get(route.destination)
    if wanted is None:
        return unknown and route.destination not in desired.unused
    return unknown or route.gateway == _machine(desired, wanted) or _is_machine(desired, route.gateway)


def within(prefix: Network, network: Network) -> bool:
    """Tell whether a prefix lies within a network; of another IP version it does not."""
    return prefix.version == network.version and prefix.subnet_of(network)  # type: ignore[arg-type]  # one version


def _machine(desired: Desired, route: Route) -> str:
    """The machine that a wanted route leads to."""
    mac = desired.neighbours.get((route.device, route.gateway), "")
    return desired.forwarding.get((route.device, mac), route.gateway)


def _is_machine(desired: Desired, address: str) -> bool:
    return any(one == address for one in desired.forwarding.values()) or any(
        one.gateway == address for one in desired.routes.values() if one.device == desired.ownership.underlay
    )


def _through_itself(route: Route) -> bool:
    return bool(route.gateway) and route.destination.startswith(f"{route.gateway}/")


def _without(found: Found, name: str) -> Found:
    """What is left when a device goes: everything on it goes along."""
    return Found(
        {key: one for key, one in found.devices.items() if key != name},
        {key: one for key, one in found.addresses.items() if key != name},
        {key: one for key, one in found.neighbours.items() if key[0] != name},
        frozenset(one for one in found.forwarding if one[0] != name),
        tuple(one for one in found.routes if one.route.device != name),
    )


def _device(entry: Entry) -> str:
    return entry.route.device if isinstance(entry, (PutRoute, RemoveRoute)) else entry.device


def _removals(desired: Desired, found: Found, past: Past) -> List[Entry]:
    names = {device.name for device in desired.devices}
    foreign = {
        mac
        for key, mac in found.neighbours.items()
        if key not in desired.neighbours and not _inside(key[1], desired, past)
    }
    entries: List[Entry] = [
        RemoveAddress(device, address)
        for device, have in sorted(found.addresses.items())
        for address in sorted(have - desired.addresses.get(device, frozenset()))
        if device in names and _inside(address.split("/", maxsplit=1)[0], desired, past)
    ]
    entries += [
        RemoveRoute(one.route)
        for one in sorted(found.routes)
        if one.route.destination not in desired.routes and ours(one, desired, past)
    ]
    entries += [
        RemoveNeighbour(device, address, mac)
        for (device, address), mac in found.neighbours.items()
        if (device, address) not in desired.neighbours and _inside(address, desired, past)
    ]
    entries += [
        RemoveForwarding(device, mac, machine)
        for device, mac, machine in sorted(found.forwarding)
        if mac != NO_MAC and mac not in foreign and desired.forwarding.get((device, mac)) != machine
    ]
    return entries


def _used_by_a_route(entry: Entry, desired: Desired) -> bool:
    """Tell whether a removal can wait: a MAC that now stands for another machine is not to have both meanwhile."""
    if isinstance(entry, RemoveForwarding):
        return (entry.device, entry.mac) not in desired.forwarding
    return isinstance(entry, RemoveNeighbour)


def _additions(desired: Desired, found: Found, past: Past) -> List[Entry]:
    entries: List[Entry] = [
        AddAddress(device, address)
        for device, want in desired.addresses.items()
        for address in sorted(want - found.addresses.get(device, frozenset()))
    ]
    entries += [PutNeighbour(*key, mac) for key, mac in desired.neighbours.items() if found.neighbours.get(key) != mac]
    entries += [
        PutForwarding(*key, machine)
        for key, machine in desired.forwarding.items()
        if (*key, machine) not in found.forwarding
    ]
    there: Dict[str, FoundRoute] = {}
    for one in found.routes:
        there.setdefault(one.route.destination, one)  # of several the kernel takes the first
    for destination, route in desired.routes.items():
        have = there.get(destination)
        if have is None or have.route != route:
            replaces = have is not None and ours(have, desired, past)
            entries.append(PutRoute(route, replaces))
    return entries


def _inside(address: str, desired: Desired, past: Past) -> bool:
    return any(contains(network, address) for network in (*desired.ownership.networks.values(), *past.former))


def contains(network: Network, address: str) -> bool:
    """Tell whether an address in text lies within a network; of another IP version it does not."""
    parsed = ipaddress.ip_address(address)
    return parsed.version == network.version and parsed in network
