"""The only door to the kernel's network: pyroute2's rtnetlink messages over plain sockets.

The messages come from pyroute2; its IPRoute object does not, for two measured reasons: importing it costs more than
the whole rest of the start (120 ms against 30), and it runs an asyncio loop per object, while the daemon wants one
descriptor to select on and hundreds of requests in one send.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, Union

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flanneld import dataplane as dp
from flanneld.backend_vxlan import Underlay
from flanneld.errors import NetworkError
from flanneld.log import logger
from flanneld.options import InterfaceOptions

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE, _EXCL = 1, 4, 0x300, 0x100, 0x400, 0x200
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_GROUPS = (1 << 0) | (1 << 2) | (1 << 4) | (1 << 6)  # link, neighbour, IPv4 address, IPv4 route
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
_IFF_UP, _PERMANENT, _NTF_SELF, _ONLINK, _MAIN, _PROTO_BOOT = 1, 0x80, 2, 4, 254, 3
_AF_BRIDGE = 7
_BATCH = 64
_GONE = {errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV}
_HEADER = struct.Struct("=IHHII")


class _Link(nlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """rtnetlink's link message, with only what is used here: pyroute2's own loads sixteen plugins."""

    prefix = "IFLA_"
    fields = (("family", "H"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (18, "IFLA_LINKINFO", "linkinfo"),
    )

    class linkinfo(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds the class by the name above
        prefix = "IFLA_"
        nla_map = ((1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "vxlan"))

        class vxlan(nla):  # type: ignore[misc]  # noqa: N801 - as above
            prefix = "IFLA_VXLAN_"
            nla_map = (
                (1, "IFLA_VXLAN_ID", "uint32"),
                (2, "IFLA_VXLAN_GROUP", "ip4addr"),
                (3, "IFLA_VXLAN_LINK", "uint32"),
                (4, "IFLA_VXLAN_LOCAL", "ip4addr"),
                (7, "IFLA_VXLAN_LEARNING", "uint8"),
                (15, "IFLA_VXLAN_PORT", "be16"),
                (23, "IFLA_VXLAN_GBP", "flag"),
            )


class Link(NamedTuple):
    """An interface."""

    ifindex: int
    name: str
    mtu: int
    up: bool
    found: dp.FoundDevice
    parent: int


_ANSWERS: Dict[int, Type[Any]] = {
    _NEWLINK: _Link,
    _NEWADDR: ifaddrmsg,
    _NEWROUTE: rtmsg,
    _NEWNEIGH: ndmsg,
}


class _RefusedError(OSError):
    """The kernel answered a request with an errno."""


class Kernel:
    """Reads and changes the network of this machine. Belongs to one thread."""

    def __init__(self) -> None:
        self._socket = self._open(0)
        self._sequence = 0
        self.events = self._open(_GROUPS)
        self.events.setblocking(False)

    @staticmethod
    def _open(groups: int) -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if not groups:
            sock.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
        sock.bind((0, groups))
        return sock

    def drain_events(self, index: int) -> bool:
        """Read what the kernel reported; True when it may concern the overlay, whose device has `index`.

        Neighbours and routes of other interfaces change all the time and do not count.
        """
        relevant = False
        while True:
            try:
                data = self.events.recv(1 << 16)
            except BlockingIOError:
                return relevant
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                relevant = True  # reports were lost: look at everything
                continue
            for kind, _flags, _seq, body in _messages(data):
                if kind in {_NEWNEIGH, _DELNEIGH}:
                    relevant |= struct.unpack_from("=i", body, 4)[0] == index
                else:
                    relevant = True

    def links(self) -> List[Link]:
        """Return all interfaces."""
        message = _Link()
        message["family"] = 0
        return [_link(raw) for raw in self._dump(message, _GETLINK)]

    def addresses(self) -> List[Tuple[int, ipaddress.IPv4Interface, bool]]:
        """Return (interface index, address, whether of global scope) of all IPv4 addresses, in the kernel's order."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET
        found = []
        for raw in self._dump(message, _GETADDR):
            text = raw.get_attr("IFA_LOCAL") or raw.get_attr("IFA_ADDRESS")
            if text:
                address = ipaddress.IPv4Interface(f"{text}/{raw['prefixlen']}")
                found.append((int(raw["index"]), address, raw["scope"] == 0))
        return found

    def default_interface(self) -> Optional[int]:
        """Return the index of the interface of the default route with the lowest metric."""
        routes = [raw for raw in self._routes(None) if raw["dst_len"] == 0 and raw.get_attr("RTA_OIF")]
        routes.sort(key=lambda raw: raw.get_attr("RTA_PRIORITY") or 0)
        return int(routes[0].get_attr("RTA_OIF")) if routes else None

    def interface_to(self, address: str) -> Optional[int]:
        """Return the index of the interface that leads to `address`."""
        message = rtmsg()
        message["family"], message["dst_len"] = socket.AF_INET, 32
        message["attrs"] = [("RTA_DST", address)]
        try:
            answers = self._request([(message, _GETROUTE, _REQUEST)])
        except _RefusedError:
            return None
        return next((int(raw.get_attr("RTA_OIF")) for raw in answers if raw.get_attr("RTA_OIF")), None)

    def find(self, device: dp.Device) -> dp.Found:
        """Return what the kernel has of the overlay on `device`."""
        links = {link.name: link for link in self.links()}
        link = links.get(device.name)
        if link is None:
            return dp.Found(None)
        parent = links.get(device.parent)
        seen = link.found._replace(parent_matches=parent is not None and link.parent == parent.ifindex)
        addresses = frozenset(address for index, address, _ in self.addresses() if index == link.ifindex)
        neighbours = {
            ipaddress.IPv4Address(raw.get_attr("NDA_DST")): str(raw.get_attr("NDA_LLADDR"))
            for raw in self._neighbours(socket.AF_INET, link.ifindex)
            if raw["state"] & _PERMANENT and raw.get_attr("NDA_DST")
        }
        forwarding = frozenset(
            (str(raw.get_attr("NDA_LLADDR")), ipaddress.IPv4Address(raw.get_attr("NDA_DST")))
            for raw in self._neighbours(_AF_BRIDGE, link.ifindex)
            if raw["flags"] & _NTF_SELF and raw["state"] & _PERMANENT and raw.get_attr("NDA_DST")
        )
        return dp.Found(seen, addresses, neighbours, forwarding, frozenset(map(_route, self._routes(link.ifindex))))

    def apply(self, device: str, steps: Sequence[dp.Step]) -> None:
        """Take the steps in order; raises NetworkError for the first that the kernel refuses, after trying all.

        Removing what is gone already is no failure.
        """
        index = self._index(device)
        failures: List[str] = []
        batch: List[Tuple[Any, int, int]] = []
        labels: List[dp.Step] = []

        def flush() -> None:
            if batch:
                failures.extend(self._batch(batch, labels))
                batch.clear()
                labels.clear()

        for step in steps:
            if isinstance(step, (dp.CreateDevice, dp.DeleteDevice, dp.SetDevice)):
                flush()
                failures.extend(self._device_step(step))
                index = self._index(device)
            elif index:
                batch.append(_message(step, index))
                labels.append(step)
                if len(batch) == _BATCH:
                    flush()
        flush()
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise NetworkError(failures[0] + more)

    def _device_step(self, step: dp.Step) -> Iterator[str]:
        if isinstance(step, dp.DeleteDevice):
            logger.warning("%s is made anew: %s", step.name, step.reason)
            message = _Link()
            message["index"] = self._index(step.name)
            try:
                self._request([(message, _DELLINK, _REQUEST | _ACK)])
            except _RefusedError as error:
                if error.errno != errno.ENODEV:
                    yield f"{step.name} cannot be removed: {error.strerror}"
            return
        assert isinstance(step, (dp.CreateDevice, dp.SetDevice))  # noqa: S101 - narrows the type
        device = step.device
        try:
            if isinstance(step, dp.CreateDevice):
                parent = self._index(device.parent)
                if not parent:
                    yield f"{device.name} waits for the interface {device.parent}, which is not there"
                    return
                self._request([(_create(device, parent), _NEWLINK, _REQUEST | _ACK | _CREATE | _EXCL)])
                logger.info("created %s over %s with MAC %s", device.name, device.parent, device.mac)
                self._no_router_advertisements(device.name)
            message = _Link()
            message["index"] = self._index(device.name)
            message["flags"] = message["change"] = _IFF_UP
            message["attrs"] = [("IFLA_ADDRESS", device.mac), ("IFLA_MTU", device.mtu)]
            self._request([(message, _NEWLINK, _REQUEST | _ACK)])
            if isinstance(step, dp.SetDevice):
                logger.info("set %s to MAC %s, MTU %d, up", device.name, device.mac, device.mtu)
        except _RefusedError as error:
            hint = " (is another vxlan device using this VNI and port?)" if error.errno == errno.EEXIST else ""
            yield f"{device.name} cannot be set up over {device.parent}: {error.strerror}{hint}"

    @staticmethod
    def _no_router_advertisements(name: str) -> None:
        try:
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
        except OSError as error:
            logger.debug("accept_ra of %s stays as it is: %s", name, error)

    def _batch(self, batch: List[Tuple[Any, int, int]], steps: List[dp.Step]) -> Iterator[str]:
        for number, code in self._exchange(batch)[1]:
            removing = batch[number][1] in {_DELADDR, _DELNEIGH, _DELROUTE}
            done_already = code == errno.EEXIST or (removing and code in _GONE)
            if code and not done_already:
                yield f"the kernel refused {steps[number]}: {os.strerror(code)}"

    def _index(self, name: str) -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError:
            return 0

    def _routes(self, index: Optional[int]) -> List[Any]:
        message = rtmsg()
        message["family"], message["table"] = socket.AF_INET, _MAIN
        message["attrs"] = [("RTA_TABLE", _MAIN)] + ([("RTA_OIF", index)] if index else [])
        found = self._dump(message, _GETROUTE)
        return [
            raw
            for raw in found
            if raw["type"] == 1 and raw["table"] == _MAIN and (index is None or raw.get_attr("RTA_OIF") == index)
        ]

    def _neighbours(self, family: int, index: int) -> List[Any]:
        message = ndmsg()
        message["family"] = family
        if family == _AF_BRIDGE:
            message["ifindex"] = index
        else:
            message["attrs"] = [("NDA_IFINDEX", index)]
        return [raw for raw in self._dump(message, _GETNEIGH) if raw["ifindex"] == index]

    def _dump(self, message: Any, kind: int) -> List[Any]:
        for _ in range(3):
            answers, _codes, interrupted = self._exchange_raw([(message, kind, _REQUEST | _DUMP)])
            if not interrupted:
                break
        return answers

    def _request(self, requests: List[Tuple[Any, int, int]]) -> List[Any]:
        answers, codes = self._exchange(requests)
        for _number, code in codes:
            if code:
                raise _RefusedError(code, os.strerror(code))
        return answers

    def _exchange(self, requests: List[Tuple[Any, int, int]]) -> Tuple[List[Any], List[Tuple[int, int]]]:
        answers, codes, _interrupted = self._exchange_raw(requests)
        return answers, codes

    def _exchange_raw(self, requests: List[Tuple[Any, int, int]]) -> Tuple[List[Any], List[Tuple[int, int]], bool]:
        first = self._sequence + 1
        data = b""
        for message, kind, flags in requests:
            self._sequence += 1
            message["header"]["type"] = kind
            message["header"]["flags"] = flags
            message["header"]["sequence_number"] = self._sequence
            message.encode()
            data += bytes(message.data) + b"\0" * (-len(message.data) % 4)
        self._socket.send(data)
        answers: List[Any] = []
        codes: List[Tuple[int, int]] = []
        open_requests = set(range(first, self._sequence + 1))
        interrupted = False
        while open_requests:
            for kind, flags, sequence, body in _messages(self._socket.recv(1 << 18)):
                if sequence not in open_requests:
                    continue
                interrupted |= bool(flags & 0x10)  # NLM_F_DUMP_INTR
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    codes.append((sequence - first, code))
                    open_requests.discard(sequence)
                    continue
                parser = _ANSWERS.get(kind)
                if parser is not None:
                    raw = parser(_HEADER.pack(len(body) + 16, kind, flags, sequence, 0) + body)
                    raw.decode()
                    answers.append(raw)
                if not flags & 2:  # not a part of a dump: the one answer of a get
                    open_requests.discard(sequence)
        return answers, codes, interrupted


def _messages(data: bytes) -> Iterator[Tuple[int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _link(raw: Any) -> Link:
    info = raw.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    data = info.get_attr("IFLA_INFO_DATA") if info and kind == "vxlan" else None

    def value(name: str) -> Any:
        return data.get_attr(f"IFLA_VXLAN_{name}") if data else None

    local = value("LOCAL")
    mtu = int(raw.get_attr("IFLA_MTU") or 0)
    up = bool(raw["flags"] & _IFF_UP)
    found = dp.FoundDevice(
        raw["index"],
        kind,
        str(raw.get_attr("IFLA_ADDRESS") or ""),
        mtu,
        up,
        int(value("ID") or 0),
        parent_matches=False,
        local=ipaddress.IPv4Address(local) if local else None,
        port=int(value("PORT") or 0),
        learning=bool(value("LEARNING")),
        gbp=value("GBP") is not None,
        group=value("GROUP") is not None,
    )
    return Link(raw["index"], str(raw.get_attr("IFLA_IFNAME")), mtu, up, found, int(value("LINK") or 0))


def _route(raw: Any) -> dp.Route:
    destination = raw.get_attr("RTA_DST") or "0.0.0.0"  # noqa: S104 - the default route's destination
    gateway = raw.get_attr("RTA_GATEWAY")
    return dp.Route(
        ipaddress.IPv4Network(f"{destination}/{raw['dst_len']}"),
        ipaddress.IPv4Address(gateway) if gateway else None,
        bool(raw["flags"] & _ONLINK),
        raw["proto"] == _PROTO_BOOT,
    )


def _create(device: dp.Device, parent: int) -> Any:
    message = _Link()
    data: List[Tuple[str, Any]] = [
        ("IFLA_VXLAN_ID", device.vni),
        ("IFLA_VXLAN_LINK", parent),
        ("IFLA_VXLAN_LOCAL", str(device.local)),
        ("IFLA_VXLAN_PORT", device.port),
        ("IFLA_VXLAN_LEARNING", int(device.learning)),
    ]
    if device.gbp:
        data.append(("IFLA_VXLAN_GBP", True))
    message["attrs"] = [
        ("IFLA_IFNAME", device.name),
        ("IFLA_ADDRESS", device.mac),
        ("IFLA_MTU", device.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]}),
    ]
    return message


def _message(step: dp.Step, index: int) -> Tuple[Any, int, int]:
    if isinstance(step, (dp.AddAddress, dp.RemoveAddress)):
        message, new, delete = _address_message(step.address, index), _NEWADDR, _DELADDR
    elif isinstance(step, (dp.PutRoute, dp.RemoveRoute)):
        message, new, delete = _route_message(step, index), _NEWROUTE, _DELROUTE
    else:
        assert not isinstance(step, (dp.CreateDevice, dp.DeleteDevice, dp.SetDevice))  # noqa: S101 - narrows the type
        message, new, delete = _neighbour_message(step, index), _NEWNEIGH, _DELNEIGH
    if isinstance(step, (dp.AddAddress, dp.PutRoute, dp.PutNeighbour, dp.PutForwarding)):
        return message, new, _REQUEST | _ACK | _CREATE | _REPLACE
    return message, delete, _REQUEST | _ACK


def _address_message(address: dp.Interface, index: int) -> Any:
    message = ifaddrmsg()
    message["family"], message["prefixlen"] = socket.AF_INET, address.network.prefixlen
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    return message


def _route_message(step: Union[dp.PutRoute, dp.RemoveRoute], index: int) -> Any:
    message = rtmsg()
    message["family"], message["dst_len"] = socket.AF_INET, step.destination.prefixlen
    message["table"], message["proto"], message["type"] = _MAIN, _PROTO_BOOT, 1
    message["flags"] = _ONLINK if isinstance(step, dp.PutRoute) else 0
    attributes: List[Tuple[str, Any]] = [("RTA_DST", str(step.destination.network_address)), ("RTA_OIF", index)]
    if step.gateway is not None:
        attributes.append(("RTA_GATEWAY", str(step.gateway)))
    message["attrs"] = attributes
    return message


def _neighbour_message(
    step: Union[dp.PutNeighbour, dp.RemoveNeighbour, dp.PutForwarding, dp.RemoveForwarding], index: int
) -> Any:
    message = ndmsg()
    message["ifindex"], message["state"] = index, _PERMANENT
    if isinstance(step, (dp.PutNeighbour, dp.RemoveNeighbour)):
        message["family"], target = socket.AF_INET, step.address
    else:
        message["family"], message["flags"], target = _AF_BRIDGE, _NTF_SELF, step.machine
    message["attrs"] = [("NDA_DST", str(target)), ("NDA_LLADDR", step.mac)]
    return message


def choose_interface(kernel: Kernel, options: InterfaceOptions) -> Underlay:
    """Return the interface towards the other machines, by the options or the default route.

    Raises NetworkError when none matches, is down in a way that shows (MTU 0), or has no IPv4 address.
    """
    links = {link.ifindex: link for link in kernel.links()}
    addresses: Dict[int, List[ipaddress.IPv4Address]] = {}
    # Addresses that are valid everywhere come first, the kernel's order is kept among equals.
    for index, address, _ in sorted(kernel.addresses(), key=lambda one: (not one[2], one[1].is_link_local)):
        addresses.setdefault(index, []).append(address.ip)
    index, wanted = _select(kernel, options, links.values(), addresses)
    link = links[index]
    own = addresses.get(index, [])
    if not own:
        raise NetworkError(f"interface {link.name} has no IPv4 address", "give it one, or choose with -iface")
    if not link.mtu:
        raise NetworkError(f"interface {link.name} has the MTU 0")
    return Underlay(link.name, wanted or own[0], link.mtu)


def _select(
    kernel: Kernel,
    options: InterfaceOptions,
    links: Iterable[Link],
    addresses: Dict[int, List[ipaddress.IPv4Address]],
) -> Tuple[int, Optional[ipaddress.IPv4Address]]:
    by_name = {link.name: link.ifindex for link in links}
    for wanted in options.names:
        found = _by_name(wanted, by_name, addresses)
        if found:
            return found
    for pattern in options.patterns:
        found = _by_pattern(pattern, by_name, addresses)
        if found:
            return found
    reaching = kernel.interface_to(options.can_reach) if options.can_reach else None
    if reaching is not None:
        return reaching, None
    asked = [*options.names, *options.patterns, *filter(None, [options.can_reach])]
    if asked:
        there = ", ".join(sorted(by_name))
        raise NetworkError(f"no interface matches {', '.join(asked)}", f"this machine has {there}")
    if options.public_ip is not None:
        found = _by_name(str(options.public_ip), {}, addresses)
        if found is None:
            raise NetworkError(
                f"no interface has the address {options.public_ip} of -public-ip",
                "name the interface with -iface when the address is not the machine's own",
            )
        return found
    default = kernel.default_interface()
    if default is None:
        raise NetworkError("this machine has no default route", "choose the interface with -iface")
    return default, None


_Selected = Optional[Tuple[int, Optional[ipaddress.IPv4Address]]]


def _by_name(
    wanted: str, by_name: Mapping[str, int], addresses: Mapping[int, List[ipaddress.IPv4Address]]
) -> _Selected:
    if wanted in by_name:
        return by_name[wanted], None
    holders = ((index, one) for index, own in addresses.items() for one in own if str(one) == wanted)
    return next(holders, None)


def _by_pattern(
    pattern: str, by_name: Mapping[str, int], addresses: Mapping[int, List[ipaddress.IPv4Address]]
) -> _Selected:
    for index, own in addresses.items():
        for address in own:
            if re.search(pattern, str(address)):
                return index, address
    return next(((index, None) for name, index in by_name.items() if re.search(pattern, name)), None)
