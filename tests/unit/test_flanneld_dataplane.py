from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.dataplane import (
    AddAddress,
    CreateDevice,
    DeleteDevice,
    Desired,
    Found,
    FoundDevice,
    FoundRoute,
    Ownership,
    Past,
    PutForwarding,
    PutNeighbour,
    PutRoute,
    RemoveAddress,
    RemoveForwarding,
    RemoveNeighbour,
    RemoveRoute,
    Route,
    SetDevice,
    Step,
    Tun,
    Vxlan,
    delta,
    ours,
    plan,
)

DEVICE = Vxlan("flannel.1", 1450, 1, "eth0", "192.168.60.1", 8472, "2a:00:00:00:00:01")
NAME = DEVICE.name
OWNERSHIP = Ownership({4: ipaddress.ip_network("10.5.0.0/16")}, "eth0", {4: 24})
PEER_MAC, PEER = "2a:00:00:00:00:02", "192.168.60.2"
GATEWAY, SUBNET = "10.5.52.0", "10.5.52.0/24"
ROUTE = Route(SUBNET, NAME, GATEWAY, onlink=True)
DESIRED = Desired(
    OWNERSHIP,
    (DEVICE,),
    {NAME: frozenset({"10.5.66.0/32"})},
    {(NAME, GATEWAY): PEER_MAC},
    {(NAME, PEER_MAC): PEER},
    {SUBNET: ROUTE},
)
HAVE = FoundDevice(4, "vxlan", DEVICE.mac, 1450, up=True, vni=1, parent_matches=True, local=DEVICE.local, port=8472)
COMPLETE = Found(
    {NAME: HAVE},
    {NAME: frozenset({"10.5.66.0/32"})},
    {(NAME, GATEWAY): PEER_MAC},
    frozenset({(NAME, PEER_MAC, PEER)}),
    (FoundRoute(ROUTE, by_boot=True),),
)
PEER_STEPS = [PutNeighbour(NAME, GATEWAY, PEER_MAC), PutForwarding(NAME, PEER_MAC, PEER), PutRoute(ROUTE)]
REMOVALS = [RemoveRoute(ROUTE), RemoveNeighbour(NAME, GATEWAY, PEER_MAC), RemoveForwarding(NAME, PEER_MAC, PEER)]


def found_route(
    destination: str, device: str, gateway: str = "", *, onlink: bool = False, boot: bool = True
) -> FoundRoute:
    return FoundRoute(Route(destination, device, gateway, onlink), boot)


def test_nothing_to_do() -> None:
    assert plan(DESIRED, COMPLETE) == []
    assert delta(DESIRED, DESIRED) == []


def test_from_nothing_the_route_comes_last() -> None:
    assert plan(DESIRED, Found()) == [CreateDevice(DEVICE), AddAddress(NAME, "10.5.66.0/32"), *PEER_STEPS]


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
    steps = plan(DESIRED, COMPLETE._replace(devices={NAME: HAVE._replace(**change)}))
    assert isinstance(steps[0], DeleteDevice)
    assert steps[1:] == plan(DESIRED, Found())


@pytest.mark.parametrize("change", [{"mac": PEER_MAC}, {"mtu": 1400}, {"up": False}, {"learning": True}])
def test_a_changed_device_is_set_right_in_place(change: dict[str, object]) -> None:
    assert plan(DESIRED, COMPLETE._replace(devices={NAME: HAVE._replace(**change)})) == [SetDevice(DEVICE)]


def test_entries_of_a_departed_peer_go_route_first() -> None:
    gone = DESIRED._replace(neighbours={}, forwarding={}, routes={})
    assert plan(gone, COMPLETE) == REMOVALS
    assert delta(DESIRED, gone) == REMOVALS


def test_a_new_peer_costs_three_steps_without_a_look() -> None:
    assert delta(DESIRED._replace(neighbours={}, forwarding={}, routes={}), DESIRED) == PEER_STEPS


def test_a_peer_that_moved_is_followed() -> None:
    moved = DESIRED._replace(forwarding={(NAME, PEER_MAC): "192.168.60.8"})
    steps = [RemoveForwarding(NAME, PEER_MAC, PEER), PutForwarding(NAME, PEER_MAC, "192.168.60.8")]
    assert plan(moved, COMPLETE) == steps
    assert delta(DESIRED, moved) == steps


def test_a_route_of_ours_that_leads_elsewhere_is_replaced() -> None:
    direct = Route(SUBNET, "eth0", PEER)
    there = DESIRED._replace(routes={SUBNET: direct}, neighbours={}, forwarding={})
    # What the old one leads through is there until then: no packet is lost.
    assert plan(there, COMPLETE) == [PutRoute(direct, replaces=True), *REMOVALS[1:]]
    assert delta(DESIRED, there) == [*REMOVALS[1:], PutRoute(direct, replaces=True)]


def test_a_foreign_route_is_not_replaced() -> None:
    foreign = found_route(SUBNET, "eth0", PEER, boot=False)
    assert plan(DESIRED, COMPLETE._replace(routes=(foreign,))) == [PutRoute(ROUTE, replaces=False)]


def test_another_device_or_network_needs_a_look() -> None:
    assert delta(DESIRED, DESIRED._replace(devices=(DEVICE._replace(mtu=1400),))) is None
    wider = OWNERSHIP._replace(networks={4: ipaddress.ip_network("10.4.0.0/15")})
    assert delta(DESIRED, DESIRED._replace(ownership=wider)) is None


def test_foreign_things_stay() -> None:
    foreign = COMPLETE._replace(
        addresses={NAME: COMPLETE.addresses[NAME] | {"172.30.0.1/24"}},
        neighbours={**COMPLETE.neighbours, (NAME, "172.30.0.2"): PEER_MAC},
        forwarding=COMPLETE.forwarding | {(NAME, "00:00:00:00:00:00", "192.168.60.7")},
        routes=(
            *COMPLETE.routes,
            found_route("172.31.0.0/16", NAME),
            found_route("10.5.9.0/24", NAME, boot=False),
            found_route("10.5.9.0/25", "eth0", PEER),
            found_route("10.5.8.0/24", "eth0"),
            found_route("10.6.8.0/24", "eth0", PEER),
            found_route("0.0.0.0/0", "eth0", "192.168.60.254"),
        ),
    )
    assert plan(DESIRED, foreign) == []


def test_stale_things_of_ours_go() -> None:
    through_itself = found_route("10.9.1.0/24", NAME, "10.9.1.0", onlink=True)
    of_host_gw = found_route("10.5.7.0/24", "eth0", PEER)
    stale = COMPLETE._replace(
        addresses={NAME: COMPLETE.addresses[NAME] | {"10.5.9.0/32"}},
        routes=(*COMPLETE.routes, through_itself, of_host_gw),
    )
    past = Past(frozenset({("10.5.7.0/24", PEER)}), (ipaddress.ip_network("10.9.0.0/16"),))
    assert plan(DESIRED, stale) == [RemoveAddress(NAME, "10.5.9.0/32")], "without a record they may be anybody's"
    assert plan(DESIRED, stale, past) == [
        RemoveAddress(NAME, "10.5.9.0/32"),
        RemoveRoute(of_host_gw.route),
        RemoveRoute(through_itself.route),
    ]


def test_a_tun_is_waited_for_and_then_set_up() -> None:
    tun = Tun("flannel0", 1472)
    route = Route("10.5.0.0/16", "flannel0")
    desired = Desired(OWNERSHIP, (tun,), {"flannel0": frozenset({"10.5.66.0/32"})}, routes={route.destination: route})
    assert plan(desired, Found()) == []
    there = Found({"flannel0": FoundDevice(7, "tun", "", 1500, up=False)})
    assert plan(desired, there) == [SetDevice(tun), AddAddress("flannel0", "10.5.66.0/32"), PutRoute(route)]


@pytest.mark.parametrize(
    ("route", "owned"),
    [
        (found_route("10.5.7.0/24", NAME, "10.5.7.0", onlink=True), True),
        (found_route("10.9.7.0/24", NAME, "10.9.7.0", onlink=True), False),
        (found_route("10.5.7.0/24", "flannel.9", "10.5.7.0", onlink=True), True),
        (found_route("10.5.7.0/24", "eth0", PEER), False),
        (found_route(SUBNET, "eth0", PEER), True),
        (found_route(SUBNET, "eth0", "192.168.60.254"), False),
        (found_route("10.5.8.0/24", "eth0", "192.168.60.8"), True),
        (found_route("10.5.8.0/24", "eth1", "192.168.60.8"), True),
        (found_route("10.5.8.0/24", "eth0", "192.168.60.9"), False),
        (found_route("10.5.8.0/24", "eth0", "192.168.60.8", boot=False), False),
        (found_route("10.5.7.0/24", "eth1", PEER), False),
        (found_route("10.5.7.0/24", "cni0"), False),
        (found_route(SUBNET, "eth0", PEER, boot=False), False),
        (found_route("fd00::/64", "eth0", "fd01::1"), False),
    ],
)
def test_which_route_is_one_of_a_daemon(route: FoundRoute, *, owned: bool) -> None:
    assert ours(route, DESIRED, Past(frozenset({("10.5.8.0/24", "192.168.60.8")}))) is owned


def test_without_a_record_only_a_backend_of_plain_routes_takes_them_over() -> None:
    stale, reserved = found_route("10.5.7.0/24", "eth0", PEER), found_route("10.5.200.0/24", "eth0", "192.168.60.77")
    plain = DESIRED._replace(ownership=OWNERSHIP._replace(plain=True), unused=frozenset({"10.5.200.0/24"}))
    known = Past(frozenset())
    assert [ours(one, DESIRED, Past(None)) for one in (stale, reserved)] == [False, False]
    assert [ours(one, plain, Past(None)) for one in (stale, reserved)] == [True, False]
    assert [ours(one, plain, known) for one in (stale, reserved)] == [False, False]


def test_a_device_whose_interface_is_absent_is_left_alone() -> None:
    assert plan(DESIRED, COMPLETE._replace(underlay=False)) == []


def test_another_daemons_entries_on_the_same_device_stay() -> None:
    """Two daemons with one VNI and different networks share a device."""
    theirs = COMPLETE._replace(
        neighbours={**COMPLETE.neighbours, (NAME, "10.6.1.0"): "2a:00:00:00:00:61"},
        forwarding=COMPLETE.forwarding | {(NAME, "2a:00:00:00:00:61", PEER)},
        routes=(*COMPLETE.routes, found_route("10.6.1.0/24", NAME, "10.6.1.0", onlink=True)),
    )
    assert plan(DESIRED, theirs) == []


def test_a_leftover_device_goes_last() -> None:
    steps = plan(DESIRED, COMPLETE._replace(leftovers=("flannel.7",), routes=()))
    assert steps == [PutRoute(ROUTE), DeleteDevice("flannel.7", "it is a leftover of another backend")]


ADDRESSES = st.integers(0, 255)
PEERS = st.dictionaries(ADDRESSES, st.tuples(st.integers(1, 9), st.booleans()), max_size=6)


def desired_of(peers: dict[int, tuple[int, bool]]) -> Desired:
    neighbours, forwarding, routes = {}, {}, {}
    for third, (host, direct) in peers.items():
        first, mac, machine = f"10.5.{third}.0", f"2a:00:00:00:01:{third:02x}", f"192.168.60.{host}"
        if direct:
            routes[f"{first}/24"] = Route(f"{first}/24", "eth0", machine)
            continue
        neighbours[NAME, first] = mac
        forwarding[NAME, mac] = machine
        routes[f"{first}/24"] = Route(f"{first}/24", NAME, first, onlink=True)
    return DESIRED._replace(neighbours=neighbours, forwarding=forwarding, routes=routes)


def found_of(desired: Desired) -> Found:
    return Found(
        {NAME: HAVE},
        desired.addresses,
        desired.neighbours,
        frozenset((*key, machine) for key, machine in desired.forwarding.items()),
        tuple(FoundRoute(route, by_boot=True) for route in desired.routes.values()),
    )


def taken(found: Found, steps: list[Step]) -> Found:
    """What the kernel has after the steps."""
    neighbours, forwarding = dict(found.neighbours), set(found.forwarding)
    routes = {one.route.destination: one for one in found.routes}
    for step in steps:
        match step:
            case PutNeighbour(device, address, mac):
                neighbours[device, address] = mac
            case RemoveNeighbour(device, address, _):
                del neighbours[device, address]
            case PutForwarding():
                forwarding -= {one for one in forwarding if one[:2] == step[:2]}
                forwarding.add(tuple(step))
            case RemoveForwarding():
                forwarding.remove(tuple(step))
            case PutRoute(route, replaces):
                assert replaces or route.destination not in routes
                routes[route.destination] = FoundRoute(route, by_boot=True)
            case RemoveRoute(route):
                assert routes.pop(route.destination).route == route
            case _:
                pytest.fail(f"not expected here: {step}")
    return found._replace(neighbours=neighbours, forwarding=frozenset(forwarding), routes=tuple(routes.values()))


@given(PEERS, PEERS)
def test_from_any_overlay_to_any_other(before: dict[int, tuple[int, bool]], after: dict[int, tuple[int, bool]]) -> None:
    old, new = desired_of(before), desired_of(after)
    past = Past(frozenset((one.destination, one.gateway) for one in old.routes.values() if one.device == "eth0"))
    by_look = taken(found_of(old), plan(new, found_of(old), past))
    assert plan(new, by_look) == []
    steps = delta(old, new)
    assert steps is not None
    assert plan(new, taken(found_of(old), steps)) == []
