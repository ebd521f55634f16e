from __future__ import annotations

import pytest

from flanneld.backend_vxlan import Underlay, VxlanBackend, random_mac
from flanneld.config import parse_config
from flanneld.dataplane import (
    AddAddress,
    Address,
    CreateDevice,
    DeleteDevice,
    Desired,
    Device,
    Found,
    FoundDevice,
    Interface,
    Network,
    PutForwarding,
    PutNeighbour,
    PutRoute,
    RemoveAddress,
    RemoveForwarding,
    RemoveNeighbour,
    RemoveRoute,
    Route,
    SetDevice,
    plan,
)
from flanneld.subnet import Attributes, Lease

DEVICE = Device("flannel.1", 1, "eth0", Address("192.168.60.1"), 8472, 1450, "2a:00:00:00:00:01")
PEER_MAC, PEER = "2a:00:00:00:00:02", Address("192.168.60.2")
GATEWAY, SUBNET = Address("10.5.52.0"), Network("10.5.52.0/24")
DESIRED = Desired(
    DEVICE,
    Network("10.5.0.0/16"),
    frozenset({Interface("10.5.66.0/32")}),
    {GATEWAY: PEER_MAC},
    {PEER_MAC: PEER},
    {SUBNET: GATEWAY},
)
HAVE = FoundDevice(4, "vxlan", DEVICE.mac, 1450, up=True, vni=1, parent_matches=True, local=DEVICE.local, port=8472)
COMPLETE = Found(
    HAVE,
    frozenset({Interface("10.5.66.0/32")}),
    {GATEWAY: PEER_MAC},
    frozenset({(PEER_MAC, PEER)}),
    frozenset({Route(SUBNET, GATEWAY, onlink=True, by_boot=True)}),
)
PEER_STEPS = [PutNeighbour(GATEWAY, PEER_MAC), PutForwarding(PEER_MAC, PEER), PutRoute(SUBNET, GATEWAY)]


def test_nothing_to_do() -> None:
    assert plan(DESIRED, COMPLETE) == []


def test_from_nothing_the_route_comes_last() -> None:
    assert plan(DESIRED, Found(None)) == [CreateDevice(DEVICE), AddAddress(Interface("10.5.66.0/32")), *PEER_STEPS]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dummy"},
        {"vni": 2},
        {"local": PEER},
        {"port": 4789},
        {"parent_matches": False},
        {"group": True},
        {"gbp": True},
    ],
)
def test_an_incompatible_device_is_made_anew_with_everything_on_it(change: dict[str, object]) -> None:
    steps = plan(DESIRED, COMPLETE._replace(device=HAVE._replace(**change)))
    assert isinstance(steps[0], DeleteDevice)
    assert steps[1:] == plan(DESIRED, Found(None))


@pytest.mark.parametrize("change", [{"mac": PEER_MAC}, {"mtu": 1400}, {"up": False}, {"learning": True}])
def test_a_changed_device_is_set_right_in_place(change: dict[str, object]) -> None:
    assert plan(DESIRED, COMPLETE._replace(device=HAVE._replace(**change))) == [SetDevice(DEVICE)]


def test_entries_of_a_departed_peer_go_route_first() -> None:
    gone = DESIRED._replace(neighbours={}, forwarding={}, routes={})
    assert plan(gone, COMPLETE) == [
        RemoveRoute(SUBNET, GATEWAY),
        RemoveNeighbour(GATEWAY, PEER_MAC),
        RemoveForwarding(PEER_MAC, PEER),
    ]


def test_a_peer_that_moved_is_followed() -> None:
    moved = DESIRED._replace(forwarding={PEER_MAC: Address("192.168.60.8")})
    assert plan(moved, COMPLETE) == [
        RemoveForwarding(PEER_MAC, PEER),
        PutForwarding(PEER_MAC, Address("192.168.60.8")),
    ]


def test_foreign_things_stay() -> None:
    foreign = COMPLETE._replace(
        addresses=COMPLETE.addresses | {Interface("172.30.0.1/24")},
        neighbours={**COMPLETE.neighbours, Address("172.30.0.2"): PEER_MAC},
        forwarding=COMPLETE.forwarding | {("00:00:00:00:00:00", Address("192.168.60.7"))},
        routes=COMPLETE.routes
        | {
            Route(Network("172.31.0.0/16"), None, onlink=False, by_boot=True),
            Route(Network("10.5.9.0/24"), None, onlink=False, by_boot=False),
        },
    )
    assert plan(DESIRED, foreign) == []


def test_stale_things_of_ours_go() -> None:
    stale = COMPLETE._replace(
        addresses=COMPLETE.addresses | {Interface("10.5.9.0/32")},
        routes=COMPLETE.routes | {Route(Network("10.9.1.0/24"), Address("10.9.1.0"), onlink=True, by_boot=True)},
    )
    assert plan(DESIRED, stale) == [
        RemoveAddress(Interface("10.5.9.0/32")),
        RemoveRoute(Network("10.9.1.0/24"), Address("10.9.1.0")),
    ]


def backend() -> VxlanBackend:
    config = parse_config('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')
    return VxlanBackend(config, Underlay("eth0", Address("192.168.60.1"), 1500))


def lease(number: int, mac: str, kind: str = "vxlan") -> Lease:
    data = {"VNI": 1, "VtepMAC": mac}
    return Lease(Network(f"10.5.{number}.0/24"), Attributes(Address(f"192.168.60.{number}"), kind, data), 1, 1)


def test_the_overlay_follows_from_the_leases() -> None:
    made = backend()
    made.choose_mac(DEVICE.mac, {}, DEVICE.local)
    leases = [lease(66, DEVICE.mac), lease(52, PEER_MAC.upper()), lease(53, "2a:00:00:00:00:03", "host-gw")]
    leases += [lease(54, PEER_MAC), lease(55, "nonsense")]
    desired = made.desired(Network("10.5.66.0/24"), leases)
    assert desired == DESIRED._replace(forwarding={PEER_MAC: Address("192.168.60.52")})
    assert (made.mtu, made.data()) == (1450, {"VNI": 1, "VtepMAC": DEVICE.mac})


def test_the_mac_is_kept_unless_another_machine_has_it() -> None:
    made, own = backend(), Address("192.168.60.66")
    leases = {"a": lease(66, DEVICE.mac), "b": lease(52, PEER_MAC)}
    made.choose_mac(None, leases, own)
    assert made.data()["VtepMAC"] == DEVICE.mac
    made.choose_mac(PEER_MAC, {"b": lease(52, PEER_MAC)}, own)
    assert made.data()["VtepMAC"] not in {PEER_MAC, DEVICE.mac}
    assert int(random_mac()[:2], 16) & 3 == 2
