from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.backend.base import Reach
from flanneld.dataplane import PutForwarding, PutNeighbour, PutRoute, RemoveRoute, Route, Vxlan
from flanneld.errors import NetworkError
from flanneld.net import wire
from flanneld.net.interfaces import Machine, choose, overlapping
from flanneld.options import InterfaceOptions

NETWORKS = {4: ipaddress.ip_network("10.244.0.0/16")}
DUAL = {**NETWORKS, 6: ipaddress.ip_network("fd00::/48")}


def link(index: int, name: str, mtu: int = 1500) -> wire.Link:
    message = wire.Message(wire.NEWLINK, 0, 0, 0, struct.pack("=BxHiII", 0, 1, index, 1, 0))
    found = wire.parse_link(message).found
    return wire.Link(index, name, found._replace(mtu=mtu), 0)


def address(
    index: int, text: str, length: int = 24, flags: int = wire.MANUAL, *, universal: bool = True
) -> wire.Address:
    return wire.Address(index, wire.version_of(text), text, length, universal, flags)


def route(destination: str, oif: int, gateway: str = "", priority: int = 0, protocol: int = 2) -> wire.RouteEntry:
    return wire.RouteEntry(
        wire.version_of(destination), destination, oif, gateway, False, protocol, wire.UNICAST, priority
    )


MACHINE = Machine(
    {1: link(1, "lo", 65536), 2: link(2, "eth0"), 3: link(3, "eth1", 9000)},
    (
        address(1, "127.0.0.1", 8, universal=False),
        address(2, "169.254.7.7", 16),
        address(2, "192.168.60.9", flags=wire.MANUAL | wire.DEPRECATED),
        address(2, "192.168.60.1"),
        address(3, "10.0.2.15"),
        address(2, "fe80::1", 64, universal=False),
        address(2, "fd01::abcd", 64, flags=wire.TEMPORARY),
        address(2, "fd01::1", 64),
    ),
    (
        route("0.0.0.0/0", 3, "10.0.2.2", 100),
        route("0.0.0.0/0", 2, "192.168.60.254", 50),
        route("192.168.60.0/24", 2),
        route("10.0.2.0/24", 3),
        route("10.9.0.0/16", 2, "192.168.60.7"),
        route("::/0", 2, "fd01::fe", 1024),
    ),
)


def chosen(**options: object) -> tuple[str, object]:
    underlay = choose(MACHINE, InterfaceOptions(**options), NETWORKS)  # type: ignore[arg-type]
    return underlay.name, underlay.addresses[4]


def test_the_interface_of_the_best_default_route_and_its_best_address() -> None:
    underlay = choose(MACHINE, InterfaceOptions(), DUAL)
    assert (underlay.name, underlay.mtu, underlay.addresses) == ("eth0", 1500, {4: "192.168.60.1", 6: "fd01::1"})


def test_the_ways_to_choose() -> None:
    assert chosen(names=("eth7", "eth1")) == ("eth1", "10.0.2.15")
    assert chosen(names=("192.168.60.1",)) == ("eth0", "192.168.60.1")
    assert chosen(names=("eth7",), patterns=(r"^10\.0\.",)) == ("eth1", "10.0.2.15")
    assert chosen(patterns=("nothing", "h1$")) == ("eth1", "10.0.2.15")
    assert chosen(public={4: "10.0.2.15"}) == ("eth1", "10.0.2.15")
    reaching = choose(MACHINE._replace(reaching=3), InterfaceOptions(can_reach="10.0.2.9"), NETWORKS)
    assert reaching.name == "eth1"


@pytest.mark.parametrize(
    ("machine", "options", "words"),
    [
        (MACHINE, InterfaceOptions(names=("eth7",)), "no interface matches eth7 (this machine has eth0, eth1, lo)"),
        (MACHINE, InterfaceOptions(public={4: "203.0.113.1"}), "203.0.113.1 of -public-ip"),
        (MACHINE._replace(routes=()), InterfaceOptions(), "no default route for IPv4"),
        (MACHINE._replace(addresses=()), InterfaceOptions(), "interface eth0 has no IPv4 address"),
        (MACHINE._replace(links={2: link(2, "eth0", 0)}), InterfaceOptions(names=("eth0",)), "MTU 0"),
    ],
)
def test_what_is_wrong_is_said(machine: Machine, options: InterfaceOptions, words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        choose(machine, options, NETWORKS)
    assert words in str(caught.value)


def test_default_routes_that_part_need_a_choice() -> None:
    parted = MACHINE._replace(routes=(*MACHINE.routes[:5], route("::/0", 3, "fd02::1")))
    with pytest.raises(NetworkError, match=r"eth0 \(IPv4\) and eth1 \(IPv6\)"):
        choose(parted, InterfaceOptions(), DUAL)


def test_what_is_on_the_link() -> None:
    reach = choose(MACHINE, InterfaceOptions(), NETWORKS).reach
    assert reach[:2] == (
        Reach(ipaddress.ip_network("10.0.2.0/24"), direct=False),
        Reach(ipaddress.ip_network("192.168.60.0/24"), direct=True),
    )
    assert [one.direct for one in reach[2:]] == [False] * 3


def test_foreign_routes_within_the_pod_network_are_named() -> None:
    own = [ipaddress.ip_network("10.244.7.0/24")]
    routes = (
        *MACHINE.routes,
        route("10.244.7.0/24", 9),
        route("10.244.8.0/24", 4, "10.244.8.0", protocol=wire.BOOT),
        route("10.244.128.0/17", 3, "10.0.2.9"),
        route("10.0.0.0/8", 3),
    )
    found = overlapping(MACHINE._replace(routes=routes), NETWORKS, own, ["flannel.1"])
    assert found == ["10.244.128.0/17 via 10.0.2.9 dev eth1"]


def message(kind: int, body: bytes) -> wire.Message:
    return wire.Message(kind, 0, 0, 0, body)


def test_what_is_sent_is_what_the_kernel_reports() -> None:
    device = Vxlan("flannel-v6.7", 1430, 7, "eth0", "fd01::1", 4789, "2a:00:00:00:00:01", learning=True, gbp=True)
    parsed = wire.parse_link(message(wire.NEWLINK, wire.create_link(device, 3)))
    assert (parsed.name, parsed.parent, parsed.mtu) == (device.name, 3, 1430)
    found = parsed.found
    assert (found.kind, found.mac, found.vni, found.local, found.port) == ("vxlan", device.mac, 7, "fd01::1", 4789)
    assert (found.learning, found.gbp, found.group) == (True, True, False)
    entry = wire.parse_route(message(wire.NEWROUTE, wire.route(Route("10.5.7.0/24", "x", "10.5.7.0", onlink=True), 9)))
    assert entry == wire.RouteEntry(4, "10.5.7.0/24", 9, "10.5.7.0", True, wire.BOOT, wire.UNICAST, 0)
    hole = wire.parse_route(message(wire.NEWROUTE, wire.blackhole("fd00::/64", 7)))
    assert hole is not None
    assert (hole.destination, hole.kind, hole.priority, hole.oif) == ("fd00::/64", wire.BLACKHOLE, 7, 0)
    neighbour = wire.parse_neighbour(message(wire.NEWNEIGH, wire.neighbour("fd00::", "2a:00:00:00:00:02", 4)))
    assert neighbour == wire.Neighbour(socket.AF_INET6, 4, "fd00::", "2a:00:00:00:00:02", True, False)
    mine = wire.parse_address(message(wire.NEWADDR, wire.address("10.5.7.0/32", 4)))
    assert mine == wire.Address(4, 4, "10.5.7.0", 32, True, 0)


def test_a_foreign_route_is_never_overwritten() -> None:
    way = Route("10.5.7.0/24", "flannel.1", "10.5.7.0", onlink=True)
    assert wire.entry(PutRoute(way), 1)[1] & (wire.EXCL | wire.CREATE) == wire.EXCL | wire.CREATE
    assert wire.entry(PutRoute(way, replaces=True), 1)[1] & wire.REPLACE
    assert wire.entry(RemoveRoute(way), 1)[:2] == (wire.DELROUTE, wire.REQUEST | wire.ACK)
    assert wire.entry(PutNeighbour("flannel.1", "10.5.7.0", "2a:00:00:00:00:01"), 1)[0] == wire.NEWNEIGH
    assert wire.entry(PutForwarding("flannel.1", "2a:00:00:00:00:01", "192.168.60.1"), 1)[1] & wire.REPLACE


def test_messages_of_one_datagram() -> None:
    data = wire.pack([(18, 1, b"abc"), (22, 5, b"")], 7)
    found = list(wire.messages(data + b"\x10\0\0"))
    assert [(one.kind, one.flags, one.sequence, one.body) for one in found] == [(18, 1, 7, b"abc"), (22, 5, 8, b"")]


@given(st.binary(max_size=200))
def test_no_datagram_breaks_the_parser(data: bytes) -> None:
    list(wire.messages(data))


@given(st.binary(min_size=16, max_size=200))
def test_no_body_breaks_the_decoders(body: bytes) -> None:
    for parse in (wire.parse_link, wire.parse_address, wire.parse_route, wire.parse_neighbour):
        parse(message(0, body))
