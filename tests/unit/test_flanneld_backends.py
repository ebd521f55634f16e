from __future__ import annotations

import ipaddress
import logging

import pytest

from flanneld.backend.base import Existing, Reach, Underlay
from flanneld.backend.hostgw import HostGatewayBackend
from flanneld.backend.registry import make_backend
from flanneld.backend.vxlan import VxlanBackend, random_mac, settings
from flanneld.dataplane import Route, Vxlan
from flanneld.errors import ConfigError, NetworkError
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Lease

LINK = Reach(ipaddress.ip_network("192.168.60.0/24"), direct=True)
FAR = Reach(ipaddress.ip_network("0.0.0.0/0"), direct=False)
LINK6 = Reach(ipaddress.ip_network("fd01::/64"), direct=True)
UNDERLAY = Underlay("eth0", 1500, {4: "192.168.60.1"}, (LINK, FAR))
DUAL = Underlay("eth0", 1500, {4: "192.168.60.1", 6: "fd01::1"}, (LINK6, LINK, FAR))
MACS = {name: f"2a:00:00:00:00:{number:02x}" for number, name in enumerate(["own", "a", "b", "c"], 1)}


def config(settings: str = '"Type":"vxlan"', more: str = "") -> str:
    return f'{{"Network":"10.5.0.0/16"{more},"Backend":{{{settings}}}}}'


def lease(third: int, machine: str, mac: str = "", kind: str = "vxlan", **more: object) -> Lease:
    data = {"VNI": 1, "VtepMAC": mac} if mac else None
    subnets = (ipaddress.ip_network(f"10.5.{third}.0/24"),)
    return Lease(subnets, Attributes(machine, kind, data)._replace(**more))


OWN = lease(66, "192.168.60.1", MACS["own"])


def vxlan(text: str = config(), underlay: Underlay = UNDERLAY, *leases: Lease) -> VxlanBackend:
    made = make_backend(parse_config(text), underlay)
    assert isinstance(made, VxlanBackend)
    made.prepare(Existing({}, {str(one.name): one for one in (OWN, *leases)}, underlay.addresses))
    return made


def test_the_overlay_of_two_machines() -> None:
    backend = vxlan()
    desired = backend.desired(OWN, [OWN, lease(52, "192.168.60.2", MACS["a"])])
    assert desired.devices == (Vxlan("flannel.1", 1450, 1, "eth0", "192.168.60.1", 8472, MACS["own"]),)
    assert desired.addresses == {"flannel.1": frozenset({"10.5.66.0/32"})}
    assert desired.neighbours == {("flannel.1", "10.5.52.0"): MACS["a"]}
    assert desired.forwarding == {("flannel.1", MACS["a"]): "192.168.60.2"}
    assert desired.routes == {"10.5.52.0/24": Route("10.5.52.0/24", "flannel.1", "10.5.52.0", onlink=True)}
    assert backend.data(4) == {"VNI": 1, "VtepMAC": MACS["own"]}
    assert (backend.data(6), backend.mtu) == (None, 1450)


def test_leases_that_cannot_be_used_are_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    backend = vxlan()
    odd = [
        lease(1, "192.168.60.2", kind="host-gw"),
        lease(2, "192.168.60.3"),
        lease(3, "192.168.60.4", MACS["own"]),
        lease(4, "192.168.60.5", MACS["a"]),
        lease(5, "192.168.60.6", MACS["a"]),
        lease(6, "192.168.60.7", "no MAC"),
        lease(66, "192.168.60.8", MACS["b"])._replace(subnets=(ipaddress.ip_network("10.5.66.0/25"),)),
    ]
    for _ in range(2):
        assert list(backend.desired(OWN, [OWN, *odd]).routes) == ["10.5.4.0/24"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == 6
    assert any("10.5.66.0/25 of 192.168.60.8: it overlaps the own subnet 10.5.66.0/24" in one for one in said)
    assert any("10.5.1.0/24 of 192.168.60.2: its backend is host-gw, not vxlan" in one for one in said)
    assert len(backend.ignored) == 6


@pytest.mark.parametrize(
    ("machine", "mac", "reason"),
    [
        ("192.168.60.9", "01:00:5e:00:00:01", "no usable VtepMAC"),
        ("192.168.60.9", "ff:ff:ff:ff:ff:ff", "no usable VtepMAC"),
        ("192.168.60.9", "00:00:00:00:00:00", "no usable VtepMAC"),
        ("192.168.60.255", MACS["a"], "the broadcast address of 192.168.60.0/24 on eth0"),
        ("192.168.60.0", MACS["a"], "the network address of 192.168.60.0/24 on eth0"),
        ("192.168.60.1", MACS["a"], "it announces 192.168.60.1, this machine's own address"),
        ("203.0.113.1", MACS["a"], "it announces 203.0.113.1, this machine's own address"),
        ("0.0.0.0", MACS["a"], "which is no machine's address"),  # noqa: S104 - a lease's
        ("224.0.0.1", MACS["a"], "which is no machine's address"),
    ],
)
def test_a_lease_that_no_kernel_can_serve_is_ignored(machine: str, mac: str, reason: str) -> None:
    backend = vxlan()
    own = lease(66, "203.0.113.1", MACS["own"])
    assert backend.desired(own, [lease(9, machine, mac)]).routes == {}
    assert reason in backend.ignored["10.5.9.0/24"]


def test_a_lease_with_an_own_ipv6_address_is_ignored() -> None:
    backend = make_backend(
        parse_config(config('"Type":"host-gw"', ',"EnableIPv6":true,"IPv6Network":"fd00::/48"')), DUAL
    )
    peer = lease(9, "192.168.60.9", kind="host-gw", public_ipv6="fd01::1")
    assert backend.desired(OWN, [peer]).routes == {}
    assert "fd01::1, this machine's own address" in backend.ignored["10.5.9.0/24"]


def test_a_lease_outside_of_the_network_is_ignored() -> None:
    backend = vxlan()
    outside = lease(9, "192.168.60.9", MACS["a"])._replace(subnets=(ipaddress.ip_network("192.168.60.0/24"),))
    desired = backend.desired(OWN, [outside])
    assert desired.routes == {}
    assert backend.ignored == {"192.168.60.0/24": "it lies outside of the network 10.5.0.0/16"}
    assert desired.unused == {"192.168.60.0/24"}


def test_what_is_ignored_is_forgotten_when_it_is_used_or_gone() -> None:
    backend = vxlan()
    backend.desired(OWN, [lease(number, f"192.168.61.{number}", kind="host-gw") for number in range(1, 60)])
    assert len(backend.ignored) == 59
    backend.desired(OWN, [lease(9, "192.168.60.9", MACS["a"])])
    assert backend.ignored == {}


def test_the_own_lease_is_the_own_one_whatever_address_it_has(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    backend = vxlan()
    assert backend.desired(OWN, [lease(66, "192.168.60.200", MACS["own"])]).routes == {}
    assert (backend.ignored, caplog.records) == ({}, [])


def test_an_mtu_that_the_interface_has_not_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    backend = vxlan(config('"Type":"vxlan","MTU":9000'))
    assert (backend.mtu, backend.desired(OWN, []).devices[0].mtu) == (1450, 1450)
    assert "Backend.MTU is 9000, more than the 1500 of eth0" in caplog.records[0].getMessage()


def test_an_underlay_that_will_not_do_changes_nothing() -> None:
    backend = vxlan()
    before = backend.desired(OWN, [])
    with pytest.raises(NetworkError):
        backend.follow(backend.config, UNDERLAY._replace(name="eth1", mtu=100))
    assert (backend.underlay, backend.desired(OWN, [])) == (UNDERLAY, before)


def test_a_lease_is_judged_again_when_it_changes() -> None:
    backend = vxlan()
    before = lease(52, "192.168.60.2", MACS["a"])
    after = lease(52, "192.168.60.9", MACS["b"])
    assert backend.desired(OWN, [before]).forwarding == {("flannel.1", MACS["a"]): "192.168.60.2"}
    assert backend.desired(OWN, [after]).forwarding == {("flannel.1", MACS["b"]): "192.168.60.9"}


def test_direct_routing_takes_the_tunnel_only_where_a_gateway_is_between() -> None:
    backend = vxlan(config('"Type":"vxlan","DirectRouting":true'))
    near, far = lease(52, "192.168.60.2", MACS["a"]), lease(53, "192.168.61.2", MACS["b"])
    desired = backend.desired(OWN, [near, far])
    assert desired.routes == {
        "10.5.52.0/24": Route("10.5.52.0/24", "eth0", "192.168.60.2"),
        "10.5.53.0/24": Route("10.5.53.0/24", "flannel.1", "10.5.53.0", onlink=True),
    }
    assert list(desired.neighbours) == [("flannel.1", "10.5.53.0")]


def test_dual_stack_has_two_devices() -> None:
    text = config(more=',"EnableIPv6":true,"IPv6Network":"fd00::/48"')
    six = ipaddress.ip_network("fd00:0:0:7::/64")
    own = Lease((*OWN.subnets, ipaddress.ip_network("fd00:0:0:1::/64")), OWN.attributes._replace(public_ipv6="fd01::1"))
    peer = lease(52, "192.168.60.2", MACS["a"], public_ipv6="fd01::2", backend_v6_data={"VNI": 1, "VtepMAC": MACS["b"]})
    backend = vxlan(text, DUAL)
    desired = backend.desired(own, [peer._replace(subnets=(*peer.subnets, six))])
    four, second = desired.devices
    assert (second.name, second.mtu, second.local) == ("flannel-v6.1", 1430, "fd01::1")  # type: ignore[union-attr]
    assert (four.mtu, backend.mtu) == (1450, 1430)
    assert desired.addresses["flannel-v6.1"] == {"fd00:0:0:1::/128"}
    assert desired.neighbours["flannel-v6.1", "fd00:0:0:7::"] == MACS["b"]
    assert desired.routes["fd00:0:0:7::/64"] == Route("fd00:0:0:7::/64", "flannel-v6.1", "fd00:0:0:7::", onlink=True)
    assert backend.data(6)["VtepMAC"] != backend.data(4)["VtepMAC"]


def test_the_mac_of_the_device_wins_over_the_announced_one_unless_it_is_taken() -> None:
    backend = vxlan()
    announced = {"own": OWN, "a": lease(52, "192.168.60.2", MACS["a"])}
    for existing, expected in (({"flannel.1": MACS["c"]}, MACS["c"]), ({}, MACS["own"])):
        backend.prepare(Existing(existing, announced, UNDERLAY.addresses))
        assert backend.data(4)["VtepMAC"] == expected
    backend.prepare(Existing({"flannel.1": MACS["a"]}, {"a": announced["a"]}, UNDERLAY.addresses))
    fresh = backend.data(4)["VtepMAC"]
    assert fresh not in MACS.values()
    assert int(fresh[:2], 16) & 3 == 2


def test_random_macs_are_local_unicast_and_differ() -> None:
    macs = {random_mac() for _ in range(50)}
    assert len(macs) == 50
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


def test_the_underlay_is_followed_with_the_same_mac() -> None:
    backend = vxlan()
    mac = backend.data(4)["VtepMAC"]
    backend.follow(backend.config, Underlay("eth1", 9000, {4: "192.168.70.1"}))
    device = backend.desired(OWN, []).devices[0]
    assert device == Vxlan("flannel.1", 8950, 1, "eth1", "192.168.70.1", 8472, mac)


@pytest.mark.parametrize(
    "wrong",
    [{"VNI": 0}, {"VNI": "1"}, {"Port": 70000}, {"MTU": 100}, {"Learning": "no"}, {"DirectRouting": 1}, {"GBP": "x"}],
)
def test_wrong_settings_of_vxlan(wrong: dict[str, object]) -> None:
    keys = {key.lower(): value for key, value in wrong.items()}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        settings(parse_config(config())._replace(backend={"type": "vxlan", **keys}))


def test_defaults_of_vxlan() -> None:
    assert settings(parse_config(config())) == (1, 8472, None, False, False, False)
    wide = vxlan(config('"type":"VXLAN","vni":7,"MTU":1400,"PORT":4789,"GBP":true,"learning":true')).desired(OWN, [])
    assert wide.devices[0] == Vxlan(
        "flannel.7", 1350, 7, "eth0", "192.168.60.1", 4789, MACS["own"], learning=True, gbp=True
    )


def test_an_interface_too_small_for_a_tunnel() -> None:
    with pytest.raises(NetworkError, match="MTU 100"):
        vxlan(config(), UNDERLAY._replace(mtu=100))


def test_host_gw_routes_to_the_machines_themselves() -> None:
    backend = make_backend(parse_config(config('"Type":"Host-GW"')), UNDERLAY)
    assert isinstance(backend, HostGatewayBackend)
    backend.prepare(Existing({}, {}, {4: "192.168.60.1"}))
    near, far = lease(52, "192.168.60.2", kind="host-gw"), lease(53, "192.168.61.2", kind="host-gw")
    desired = backend.desired(OWN, [near, far, lease(54, "192.168.60.4", kind="udp")])
    assert desired.routes == {"10.5.52.0/24": Route("10.5.52.0/24", "eth0", "192.168.60.2")}
    assert "192.168.61.2 is not on the link of eth0" in backend.ignored["10.5.53.0/24"]
    assert (desired.devices, backend.mtu, backend.data(4)) == ((), 1500, None)


def test_vxlan_with_direct_routing_and_host_gw_understand_each_other_on_a_link() -> None:
    direct = vxlan(config('"Type":"vxlan","DirectRouting":true'))
    gateway = make_backend(parse_config(config('"Type":"host-gw"')), UNDERLAY)
    route = {"10.5.52.0/24": Route("10.5.52.0/24", "eth0", "192.168.60.2")}
    for peer in (lease(52, "192.168.60.2", kind="host-gw"), lease(52, "192.168.60.2", MACS["a"])):
        assert direct.desired(OWN, [peer]).routes == gateway.desired(OWN, [peer]).routes == route
    assert direct.desired(OWN, [lease(53, "192.168.61.2", kind="host-gw")]).routes == {}
    assert direct.ignored == {"10.5.53.0/24": "its backend is host-gw, not vxlan"}


def test_host_gw_refuses_an_address_that_is_not_its_own() -> None:
    backend = make_backend(parse_config(config('"Type":"host-gw"')), UNDERLAY)
    with pytest.raises(NetworkError, match=r"203\.0\.113\.7 differs from 192\.168\.60\.1"):
        backend.prepare(Existing({}, {}, {4: "203.0.113.7"}))


def test_an_unknown_backend_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vxlan'"):
        make_backend(parse_config(config('"Type":"vxlam"')), UNDERLAY)
