from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.backend.base import Reach, Underlay
from flanneld.dataplane import PutForwarding, PutNeighbour, PutRoute, RemoveRoute, Route, Vxlan
from flanneld.errors import NetworkError
from flanneld.net import wire
from flanneld.net.interfaces import Machine, Overlap, choose, look, overlapping
from flanneld.net.kernel import Kernel
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
        route("10.244.8.0/24", 4, "10.244.8.0", protocol=wire.BOOT)._replace(onlink=True),
        route("10.244.128.0/17", 3, "10.0.2.9"),
        route("10.0.0.0/8", 3),
    )
    machine = MACHINE._replace(routes=routes, links={**MACHINE.links, 4: link(4, "flannel.2")})
    found = overlapping(machine, NETWORKS, own, ["flannel.1"])
    assert found == [
        Overlap(
            "this machine has a route of its own within the pod network, which may hide pods: "
            "10.244.128.0/17 via 10.0.2.9 dev eth1",
            "remove it with `ip route del 10.244.128.0/17 via 10.0.2.9 dev eth1`, "
            "or give the pod network other addresses",
        )
    ]


def test_a_route_made_by_hand_is_named_and_one_of_the_daemon_is_not() -> None:
    by_hand = route("10.244.64.0/18", 2, "192.168.60.254", protocol=wire.BOOT)
    of_host_gw = route("10.244.9.0/24", 2, "192.168.60.2", protocol=wire.BOOT)
    connected = route("10.244.9.0/30", 3, protocol=wire.KERNEL)
    machine = MACHINE._replace(routes=(by_hand, of_host_gw, connected))
    found = overlapping(machine, NETWORKS, (), [], [("10.244.9.0/24", "192.168.60.2")])
    assert ["10.244.64.0/18" in one.what for one in found] == [True, False]
    assert "10.244.9.0/30 dev eth1" in found[1].what
    assert "ip route del" not in found[1].todo, "it would take the machine off its network"


def test_a_machine_within_the_pod_network_is_told_so_once() -> None:
    machine = MACHINE._replace(
        addresses=(*MACHINE.addresses, address(3, "10.244.9.7"), address(9, "10.244.7.1")),
        routes=(*MACHINE.routes, route("10.244.9.0/24", 3, protocol=wire.KERNEL)),
    )
    found = overlapping(machine, NETWORKS, [ipaddress.ip_network("10.244.7.0/24")], [])
    assert [one.what for one in found] == [
        "this machine's own address 10.244.9.7/24 of eth1 lies within the pod network 10.244.0.0/16"
    ]


def kept(machine: Machine, options: InterfaceOptions = InterfaceOptions()) -> dict[int, str]:  # noqa: B008 - a tuple
    present = choose(MACHINE, InterfaceOptions(), DUAL)
    return dict(choose(machine, options, DUAL, present).addresses)


def test_an_address_that_serves_is_kept_when_others_come() -> None:
    newer = (address(2, "192.168.60.200", 32), address(2, "fd01::100", 64))
    lasting = MACHINE._replace(addresses=(*newer, *MACHINE.addresses))
    assert choose(lasting, InterfaceOptions(), DUAL).addresses == {4: "192.168.60.200", 6: "fd01::100"}
    assert kept(lasting) == {4: "192.168.60.1", 6: "fd01::1"}
    assert kept(lasting, InterfaceOptions(names=("192.168.60.200",))) == {4: "192.168.60.200", 6: "fd01::1"}
    assert kept(lasting, InterfaceOptions(patterns=(r"^192\.168\.60\.",)))[4] == "192.168.60.1"
    without = tuple(one for one in lasting.addresses if one.address != "192.168.60.1")
    assert kept(MACHINE._replace(addresses=without))[4] == "192.168.60.200"
    old = tuple(one._replace(flags=wire.DEPRECATED) if one.address == "fd01::1" else one for one in lasting.addresses)
    assert kept(MACHINE._replace(addresses=old))[6] == "fd01::100"


def test_a_renamed_interface_is_the_same_one() -> None:
    present = choose(MACHINE, InterfaceOptions(), NETWORKS)
    assert present.ifindex == 2
    renamed = MACHINE._replace(links={**MACHINE.links, 2: link(2, "ens9")})
    assert choose(renamed, InterfaceOptions(), NETWORKS, present) == present._replace(name="ens9")


class Changing:
    """A kernel whose interface 7 has gone after the interfaces were asked for."""

    def links(self) -> list[wire.Link]:
        return list(MACHINE.links.values())

    def addresses(self) -> list[wire.Address]:
        return [*MACHINE.addresses, address(7, "192.168.70.1")]

    def routes(self, version: int) -> list[wire.RouteEntry]:
        hole = route("10.244.9.0/24", 0)
        return [
            one for one in (*MACHINE.routes, hole, route("0.0.0.0/0", 7, "192.168.70.254")) if one.version == version
        ]

    def route_to(self, target: str) -> wire.RouteEntry:
        return route("0.0.0.0/0", 7, target)


def test_an_interface_that_goes_between_two_questions_is_passed_over() -> None:
    options = InterfaceOptions(can_reach="192.168.70.9")
    found = look(Changing(), options, NETWORKS)  # type: ignore[arg-type]
    assert found.reaching == 0
    assert {one.oif for one in found.routes} == {0, 2, 3}
    assert {one.ifindex for one in found.addresses} == {1, 2, 3}
    assert choose(found, InterfaceOptions(), NETWORKS).name == "eth0"


def test_a_kernel_that_cannot_be_asked_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    kernel = Kernel()
    monkeypatch.setattr("socket.socket", refuse)
    with pytest.raises(NetworkError, match=r"no netlink socket: Address family not supported .*AF_NETLINK"):
        Kernel()
    kernel._socket.close()
    for ask in (
        kernel.links,
        lambda: kernel.apply([RemoveRoute(Route("10.5.7.0/24", "lo"))]),
        lambda: kernel.routes(4),
    ):
        with pytest.raises(NetworkError, match="cannot be used: Bad file descriptor"):
            ask()


def test_a_kernel_before_4_20_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(socket.socket):
        def setsockopt(self, level: int, option: int, *value: object) -> None:  # type: ignore[override]
            if (level, option) == (270, 12):
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(level, option, *value)  # type: ignore[call-overload]

    monkeypatch.setattr("flanneld.net.kernel.socket.socket", Old)
    kernel = Kernel()
    assert {one.name for one in kernel.links()} >= {"lo"}
    assert all(one.oif == 1 for one in kernel.routes(4, 1))


def test_of_equal_default_routes_the_present_one_is_kept() -> None:
    equal = MACHINE._replace(routes=(route("0.0.0.0/0", 3, "10.0.2.2", 50), *MACHINE.routes))
    assert choose(equal, InterfaceOptions(), NETWORKS).name == "eth1"
    assert choose(equal, InterfaceOptions(), NETWORKS, Underlay("eth0", 1500, {}, ifindex=2)).name == "eth0"


def message(kind: int, body: bytes) -> wire.Message:
    return wire.Message(kind, 0, 0, 0, body)


def test_what_is_sent_is_what_the_kernel_reports() -> None:
    device = Vxlan("flannel-v6.7", 1430, 7, "eth0", "fd01::1", 4789, "2a:00:00:00:00:01", learning=True, gbp=True)
    parsed = wire.parse_link(message(wire.NEWLINK, wire.create_link(device, 3)))
    assert (parsed.name, parsed.parent, parsed.mtu) == (device.name, 3, 1430)
    found = parsed.found
    assert (found.kind, found.mac, found.vni, found.local, found.port) == ("vxlan", device.mac, 7, "fd01::1", 4789)
    assert (found.learning, found.gbp, found.group) == (True, True, False)
    way6 = Route("fd00:0:0:7::/64", "x", "fd00:0:0:7::", onlink=True)
    six = wire.parse_route(message(wire.NEWROUTE, wire.route(way6, 9)))
    assert six is not None
    assert (six.priority, six.usual, six._replace(priority=100).usual) == (1024, True, False)
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
