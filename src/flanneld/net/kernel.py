"""The door to the kernel's network: asks, changes, and listens to what others change."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from flanneld import dataplane as dp
from flanneld.errors import NetworkError
from flanneld.log import logger
from flanneld.net import wire

# Links, neighbours, addresses and routes of both IP versions (RTMGRP_* of linux/rtnetlink.h).
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
_SOL_NETLINK, _CAP_ACK, _GET_STRICT_CHECK = 270, 10, 12
_SO_RCVBUFFORCE = 33
_BATCH = 128
_BUFFER = 1 << 18
_EVENT_BUFFER = 32 << 20  # thousands of reports of one link flap; pages are taken only while they wait
_ASKED = {wire.GETLINK: "interfaces", wire.GETADDR: "addresses", wire.GETROUTE: "routes", wire.GETNEIGH: "neighbours"}
_GONE = {errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV}


class Reports(NamedTuple):
    """What others changed: something of the overlay, or something that the choice of the interface rests on."""

    overlay: bool = False
    underlay: bool = False


class Conflict(NamedTuple):
    """A route that could not be set, because another one to the same destination, `there`, is in its place.

    `connected`: the kernel has made it for an address of the machine.
    """

    step: dp.PutRoute
    there: Optional[dp.FoundRoute]
    via: str
    connected: bool = False


class Outcome(NamedTuple):
    """What became of steps: those refused, in words, and routes that are in the way."""

    failures: Tuple[str, ...] = ()
    conflicts: Tuple[Conflict, ...] = ()


class _RefusedError(NetworkError):
    """The kernel answered a request with an errno."""

    def __init__(self, code: int) -> None:
        self.errno = code
        self.strerror = os.strerror(code)
        super().__init__(f"the kernel refused a request: {self.strerror}")


class Kernel:
    """Reads and changes the network of this machine; every method raises NetworkError. Belongs to one thread."""

    def __init__(self) -> None:
        self._socket = self._open(0)
        self._port = int(self._socket.getsockname()[0])
        self._sequence = 0
        self.events = self._open(_GROUPS)
        self.events.setblocking(False)

    @staticmethod
    def _open(groups: int) -> socket.socket:
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            if groups:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENT_BUFFER)
                except OSError:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                for option in (_CAP_ACK, _GET_STRICT_CHECK):
                    with contextlib.suppress(OSError):  # kernels before 4.20: answers are longer, and filtered here
                        sock.setsockopt(_SOL_NETLINK, option, 1)
            sock.bind((0, groups))
        except OSError as error:
            raise NetworkError(
                f"the kernel's network cannot be used: no netlink socket: {error.strerror}",
                "does the unit's RestrictAddressFamilies, or the container's seccomp profile, leave out AF_NETLINK?",
            ) from None
        return sock

    def links(self) -> List[wire.Link]:
        """Return all interfaces."""
        return [wire.parse_link(one) for one in self._dump(wire.GETLINK, wire.link_query())]

    def addresses(self) -> List[wire.Address]:
        """Return all addresses, in the kernel's order."""
        parsed = map(wire.parse_address, self._dump(wire.GETADDR, wire.address_query()))
        return [one for one in parsed if one is not None]

    def routes(self, version: int, oif: int = 0) -> List[wire.RouteEntry]:
        """Return the routes of the main table, all or those through one interface."""
        parsed = map(wire.parse_route, self._dump(wire.GETROUTE, wire.route_query(version, oif)))
        return [one for one in parsed if one is not None and (not oif or one.oif == oif)]

    def route_to(self, address: str) -> Optional[wire.RouteEntry]:
        """Return the route that leads to an address, None when there is none."""
        try:
            answers = self._request([(wire.GETROUTE, wire.REQUEST, wire.route_get(address))])
        except _RefusedError:
            return None
        return next((found for found in map(wire.parse_route, answers) if found is not None), None)

    def find(self, desired: dp.Desired) -> dp.Found:
        """Return what the kernel has of the wanted devices, and the routes through them and the underlay."""
        links = {link.name: link for link in self.links()}
        underlay = links.get(desired.ownership.underlay)
        ours = [links[device.name] for device in desired.devices if device.name in links]
        parents = {device.name: device.parent for device in desired.devices if isinstance(device, dp.Vxlan)}
        devices = {}
        for link in ours:
            parent = links.get(parents.get(link.name, ""))
            matches = parent is None or link.parent == parent.ifindex
            devices[link.name] = link.found._replace(parent_matches=matches)
        names = {link.ifindex: link.name for link in ours}
        through = dict(names)
        if underlay is not None:
            through[underlay.ifindex] = underlay.name
        neighbours, forwarding = self._entries(desired, names)
        candidates = {link.ifindex: link.name for link in links.values() if _may_be_leftover(link, devices)}
        addresses = self._own_addresses({**names, **candidates})
        firsts = desired.firsts.union(*desired.addresses.values())
        return dp.Found(
            devices,
            {name: one for name, one in addresses.items() if name in devices},
            neighbours,
            forwarding,
            self._own_routes(desired, through),
            tuple(name for name in candidates.values() if not firsts.isdisjoint(addresses[name])),
            underlay is not None or not desired.ownership.underlay,
        )

    def _own_addresses(self, names: Mapping[int, str]) -> Dict[str, FrozenSet[str]]:
        found: Dict[str, Set[str]] = {name: set() for name in names.values()}
        if names:
            for one in self.addresses():
                if one.ifindex in names:
                    found[names[one.ifindex]].add(f"{one.address}/{one.length}")
        return {name: frozenset(addresses) for name, addresses in found.items()}

    def _entries(
        self, desired: dp.Desired, names: Mapping[int, str]
    ) -> Tuple[Dict[Tuple[str, str], str], FrozenSet[Tuple[str, str, str]]]:
        families = [socket.AF_INET if version == 4 else socket.AF_INET6 for version in desired.ownership.networks]
        neighbours: Dict[Tuple[str, str], str] = {}
        forwarding: Set[Tuple[str, str, str]] = set()
        tunnels = {device.name for device in desired.devices if isinstance(device, dp.Vxlan)}
        for index, name in names.items():
            if name not in tunnels:
                continue
            for family in families:
                for message in self._dump(wire.GETNEIGH, wire.neighbour_query(family, index)):
                    one = wire.parse_neighbour(message)
                    if one.ifindex == index and one.permanent and one.address:
                        neighbours[name, one.address] = one.mac
            for message in self._dump(wire.GETNEIGH, wire.neighbour_query(wire.AF_BRIDGE, index)):
                one = wire.parse_neighbour(message)
                if one.ifindex == index and one.permanent and one.own and one.address:
                    forwarding.add((name, one.mac, one.address))
        return neighbours, frozenset(forwarding)

    def _own_routes(self, desired: dp.Desired, through: Mapping[int, str]) -> Tuple[dp.FoundRoute, ...]:
        found: List[dp.FoundRoute] = []
        for version in desired.ownership.networks:
            for index, name in through.items():
                routes = self.routes(version, index)
                found += [_found_route(one, name) for one in routes if one.kind == wire.UNICAST and one.usual]
        return tuple(found)

    def apply(self, steps: Sequence[dp.Step]) -> Outcome:
        """Take the steps in order, all of them even when some are refused. Removing what is gone is no failure."""
        failures: List[str] = []
        refused: List[dp.PutRoute] = []
        indexes: Dict[str, int] = {}
        batch: List[Tuple[int, int, bytes]] = []
        entries: List[dp.Entry] = []

        def flush() -> None:
            if batch:
                self._send_batch(batch, entries, failures, refused)
                batch.clear()
                entries.clear()

        for step in steps:
            if isinstance(step, (dp.CreateDevice, dp.DeleteDevice, dp.SetDevice)):
                flush()
                failures.extend(self._device_step(step))
                indexes.clear()
                continue
            name = step.route.device if isinstance(step, (dp.PutRoute, dp.RemoveRoute)) else step.device
            index = indexes.get(name) or indexes.setdefault(name, _index(name))
            if not index:
                continue  # what it stands on could not be made, which is a failure already, or has just gone
            if isinstance(step, dp.AddAddress) and wire.version_of(step.address) == 6:
                _set_ipv6(name, "disable_ipv6")  # else it has no address
            batch.append(wire.entry(step, index))
            entries.append(step)
            if len(batch) == _BATCH:
                flush()
        flush()
        return Outcome(tuple(failures), self._conflicts(refused) if refused else ())

    def _send_batch(
        self,
        batch: Sequence[Tuple[int, int, bytes]],
        entries: Sequence[dp.Entry],
        failures: List[str],
        refused: List[dp.PutRoute],
    ) -> None:
        for place, code in self._exchange(batch)[1]:
            step = entries[place]
            if not code or (code in _GONE and batch[place][0] in {wire.DELADDR, wire.DELNEIGH, wire.DELROUTE}):
                continue
            if code == errno.EEXIST and isinstance(step, dp.PutRoute):
                refused.append(step)
            elif code != errno.EEXIST:
                failures.append(f"the kernel refused to {step}: {os.strerror(code)}")

    def _conflicts(self, refused: Sequence[dp.PutRoute]) -> Tuple[Conflict, ...]:
        """Return the routes that are in the way; a step whose very route is there meanwhile has none."""
        names = {link.ifindex: link.name for link in self.links()}
        versions = {wire.version_of(step.route.destination) for step in refused}
        there: Dict[str, wire.RouteEntry] = {}
        for version in versions:
            for one in self.routes(version):
                if one.usual:
                    there.setdefault(one.destination, one)
        found = []
        for step in refused:
            entry = there.get(step.route.destination)
            if entry is None:
                continue
            device = names.get(entry.oif, "")
            route = _found_route(entry, device) if entry.kind == wire.UNICAST else None
            if route is None or route.route != step.route:
                connected = entry.protocol == wire.KERNEL and not entry.gateway
                found.append(Conflict(step, route, _in_words(entry, device), connected))
        return tuple(found)

    def set_blackhole(self, destination: str, priority: int) -> None:
        """Have packets to `destination` dropped that no other route takes; raises NetworkError."""
        body = wire.blackhole(destination, priority)
        try:
            self._request([(wire.NEWROUTE, wire.REQUEST | wire.ACK | wire.CREATE | wire.EXCL, body)])
        except _RefusedError as error:
            if error.errno != errno.EEXIST:
                raise NetworkError(f"no blackhole route to {destination} can be set: {error.strerror}") from None

    def remove_blackhole(self, destination: str, priority: int) -> bool:
        """Remove a blackhole route; False when there was none."""
        try:
            self._request([(wire.DELROUTE, wire.REQUEST | wire.ACK, wire.blackhole(destination, priority))])
        except _RefusedError as error:
            if error.errno in _GONE:
                return False
            raise NetworkError(f"the blackhole route to {destination} cannot be removed: {error.strerror}") from None
        return True

    def _device_step(self, step: dp.Step) -> Iterator[str]:
        if isinstance(step, dp.DeleteDevice):
            try:
                self._request([(wire.DELLINK, wire.REQUEST | wire.ACK, wire.delete_link(_index(step.name)))])
            except _RefusedError as error:
                if error.errno != errno.ENODEV:
                    yield f"{step.name} cannot be removed: {error.strerror}"
            return
        assert isinstance(step, (dp.CreateDevice, dp.SetDevice))  # noqa: S101 - narrows the type
        device = step.device
        try:
            if isinstance(step, dp.CreateDevice):
                parent = _index(step.device.parent)
                if not parent:
                    yield f"{device.name} waits for the interface {step.device.parent}, which is not there"
                    return
                flags = wire.REQUEST | wire.ACK | wire.CREATE | wire.EXCL
                self._request([(wire.NEWLINK, flags, wire.create_link(step.device, parent))])
                _set_ipv6(device.name, "accept_ra")
            self._request([(wire.NEWLINK, wire.REQUEST | wire.ACK, wire.set_link(_index(device.name), device))])
        except _RefusedError as error:
            hint = ""
            if error.errno == errno.EEXIST:
                hint = (
                    " (another vxlan device has this VNI and port, or it was moved to another network namespace: look"
                    " with `ip -d link show type vxlan`, and in the others with `ip -all netns exec` before it)"
                )
            if error.errno == errno.EPERM:
                hint = " (flanneld needs the capability NET_ADMIN)"
            yield f"{device.name} cannot be set up: {error.strerror}{hint}"

    def drain(self, desired: dp.Desired, underlay: str, ifindex: int = 0) -> Reports:
        """Read what the kernel reported and tell what of it matters.

        `ifindex`: that of the underlay, by which it is known when it gets another name. The daemon's own changes do not
        matter, nor do those of other interfaces: pods come and go all the time.
        """
        overlay = changed = False
        names = {device.name for device in desired.devices}
        indexes = {index: name for name in names if (index := _index(name))}
        below = _index(underlay) or ifindex
        while True:
            try:
                data = self.events.recv(1 << 16)
            except BlockingIOError:
                return Reports(overlay, changed)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetworkError(f"the kernel's reports cannot be read: {error.strerror}") from None
                overlay = changed = True  # reports were lost: look at everything
                continue
            for message in wire.messages(data):
                if message.port == self._port:
                    continue
                if message.kind in {wire.NEWLINK, wire.DELLINK}:
                    link = wire.parse_link(message)
                    beneath = link.name == underlay or link.ifindex in {below, ifindex}
                    overlay |= link.name in names or beneath
                    changed |= beneath
                elif message.kind in {wire.NEWADDR, wire.DELADDR}:
                    address = wire.parse_address(message)
                    overlay |= address is not None and address.ifindex in indexes
                    changed |= address is not None and address.ifindex == below
                elif message.kind in {wire.NEWROUTE, wire.DELROUTE}:
                    route = wire.parse_route(message)
                    if route is None:
                        continue
                    ours = route.oif in indexes or route.destination in desired.routes
                    ours |= message.kind == wire.DELROUTE and route.kind == wire.BLACKHOLE
                    overlay |= ours
                    # A default route over another interface decides which one is chosen.
                    changed |= not ours and (route.oif in {below, 0} or route.destination.endswith("/0"))
                elif message.kind in {wire.NEWNEIGH, wire.DELNEIGH}:
                    overlay |= _contradicts(message, indexes, desired)

    def _dump(self, kind: int, body: bytes) -> List[wire.Message]:
        for _ in range(3):
            answers, codes, interrupted = self._exchange_raw([(kind, wire.REQUEST | wire.DUMP, body)])
            if not interrupted:
                break
        for _place, code in codes:
            if code:
                raise NetworkError(f"the kernel does not list its {_ASKED[kind]}: {os.strerror(code)}")
        return answers

    def _request(self, requests: Sequence[Tuple[int, int, bytes]]) -> List[wire.Message]:
        answers, codes = self._exchange(requests)
        for _place, code in codes:
            if code:
                raise _RefusedError(code)
        return answers

    def _exchange(self, requests: Sequence[Tuple[int, int, bytes]]) -> Tuple[List[wire.Message], List[Tuple[int, int]]]:
        answers, codes, _interrupted = self._exchange_raw(requests)
        return answers, codes

    def _exchange_raw(
        self, requests: Sequence[Tuple[int, int, bytes]]
    ) -> Tuple[List[wire.Message], List[Tuple[int, int]], bool]:
        try:
            return self._converse(requests)
        except OSError as error:
            raise NetworkError(f"the kernel's network cannot be used: {error.strerror}") from None

    def _converse(
        self, requests: Sequence[Tuple[int, int, bytes]]
    ) -> Tuple[List[wire.Message], List[Tuple[int, int]], bool]:
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(wire.pack(requests, first))
        answers: List[wire.Message] = []
        codes: List[Tuple[int, int]] = []
        open_requests = set(range(first, self._sequence + 1))
        interrupted = False
        while open_requests:
            for message in wire.messages(self._socket.recv(_BUFFER)):
                if message.sequence not in open_requests:
                    continue
                interrupted |= bool(message.flags & wire.INTERRUPTED)
                if message.kind in {wire.ERROR, wire.DONE}:
                    codes.append((message.sequence - first, wire.error_code(message)))
                    open_requests.discard(message.sequence)
                    continue
                answers.append(message)
                if not message.flags & wire.MULTI:  # not a part of a dump: the one answer of a get
                    open_requests.discard(message.sequence)
        return answers, codes, interrupted


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _found_route(one: wire.RouteEntry, device: str) -> dp.FoundRoute:
    return dp.FoundRoute(dp.Route(one.destination, device, one.gateway, one.onlink), one.protocol == wire.BOOT)


def _in_words(one: wire.RouteEntry, device: str) -> str:
    kind = "a blackhole" if one.kind == wire.BLACKHOLE else ""
    way = " ".join(filter(None, [f"via {one.gateway}" if one.gateway else "", f"dev {device}" if device else ""]))
    return kind or way or "of another kind"


def _contradicts(message: wire.Message, indexes: Mapping[int, str], desired: dp.Desired) -> bool:
    """Tell whether a report of a neighbour or forwarding entry is not what is wanted."""
    one = wire.parse_neighbour(message)
    name = indexes.get(one.ifindex)
    if name is None:
        return False
    gone = message.kind == wire.DELNEIGH
    if one.family == wire.AF_BRIDGE:
        wanted = desired.forwarding.get((name, one.mac))
        return (wanted == one.address) if gone else (one.permanent and wanted != one.address)
    mac = desired.neighbours.get((name, one.address))
    if mac is None:
        return not gone and one.permanent
    return gone or one.mac != mac or not one.permanent


def _may_be_leftover(link: wire.Link, wanted: Mapping[str, dp.FoundDevice]) -> bool:
    """Tell whether an interface has the form of the vxlan backend's devices, and is not wanted."""
    match = re.fullmatch(r"flannel(?:-v6)?\.(\d+)", link.name)
    return (
        match is not None and link.found.kind == "vxlan" and str(link.found.vni) == match[1] and link.name not in wanted
    )


def _set_ipv6(name: str, setting: str) -> None:
    """Switch a setting of an own device off."""
    try:
        Path(f"/proc/sys/net/ipv6/conf/{name}/{setting}").write_text("0")
    except OSError as error:
        logger.debug("%s of %s stays as it is: %s", setting, name, error)
