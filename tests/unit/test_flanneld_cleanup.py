from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from flanneld import cleanup, state
from flanneld import dataplane as dp
from flanneld.errors import FlanneldError
from flanneld.net import wire
from flanneld.overlay import BLACKHOLE_PRIORITY

ENV = state.Env(
    {4: ipaddress.ip_network("10.5.0.0/16"), 6: ipaddress.ip_network("fc00::/48")},
    {4: ipaddress.ip_network("10.5.1.0/24"), 6: ipaddress.ip_network("fc00:0:0:1::/64")},
)
NONE = state.Env({}, {})


def test_only_docker_options_with_the_own_subnet_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_DOCKER_OPTIONS", tmp_path / "docker_opts.env")
    assert cleanup._docker_files(tmp_path / "subnet.env", ENV) == []
    (tmp_path / "docker").write_text("--bip=10.5.1.1/24 ")
    (tmp_path / "docker_opts.env").write_text("--bip=10.6.1.1/24 ")
    assert cleanup._docker_files(tmp_path / "subnet.env", ENV) == [tmp_path / "docker"]
    assert cleanup._docker_files(tmp_path / "subnet.env", None) == []


def link(index: int, name: str, kind: str = "", vni: int = 0) -> wire.Link:
    return wire.Link(index, name, dp.FoundDevice(index, kind, "", 1450, True, vni), 0)


def address(index: int, text: str) -> wire.Address:
    return wire.Address(index, 6 if ":" in text else 4, text, 32, True, 0)


def route(destination: str, oif: int, gateway: str = "", kind: int = wire.UNICAST, **more: int) -> wire.RouteEntry:
    version = 6 if ":" in destination else 4
    protocol, priority = more.get("protocol", wire.BOOT), more.get("priority", 1024 if version == 6 else 0)
    return wire.RouteEntry(version, destination, oif, gateway, False, protocol, kind, priority)


LINKS = [
    link(1, "lo"),
    link(2, "eth0"),
    link(3, "flannel.1", "vxlan", 1),
    link(4, "flannel-v6.1", "vxlan", 1),
    link(5, "flannel.2", "vxlan", 2),
    link(6, "flannel.3", "vxlan", 4),
    link(7, "flannel.5", "bridge"),
    link(8, "flannel0", "tun"),
    link(9, "flannel-wg", "wireguard"),
    link(10, "flannelchk", "vxlan", 99),
    link(11, "flannel9", "veth"),
]
ADDRESSES = [
    address(2, "192.168.60.1"),
    address(3, "10.5.1.0"),
    address(4, "fc00:0:0:1::"),
    address(5, "10.6.1.0"),
    address(6, "10.5.1.1"),
    address(7, "10.5.1.2"),
    address(8, "10.5.1.0"),
    address(9, "10.5.1.0"),
]
ROUTES = [
    route("0.0.0.0/0", 2, "192.168.60.254"),
    route("10.5.2.0/24", 3, "10.5.2.0"),
    route("10.5.3.0/24", 2, "192.168.60.3"),
    route("10.5.4.0/25", 2, "192.168.60.3"),
    route("10.5.5.0/24", 2, "192.168.60.3", protocol=4),
    route("10.6.3.0/24", 2, "192.168.60.3"),
    route("10.5.1.0/24", 2),
    route("fc00:0:0:2::/64", 2, "fe80::2"),
    route("10.5.1.0/24", 0, kind=wire.BLACKHOLE, priority=BLACKHOLE_PRIORITY),
    route("10.5.1.0/24", 0, kind=wire.BLACKHOLE, priority=0),
    route("10.5.9.0/24", 0, kind=wire.BLACKHOLE, priority=7),
    route("10.6.1.0/24", 0, kind=wire.BLACKHOLE, priority=BLACKHOLE_PRIORITY),
]


def test_only_what_is_this_networks_goes() -> None:
    made = frozenset({("10.5.3.0/24", "192.168.60.3"), ("10.5.4.0/25", "192.168.60.3")})
    found = cleanup.traces_of(LINKS, ADDRESSES, ROUTES, ENV, made, everything=False)
    assert found.devices == ("flannel.1", "flannel-v6.1", "flannel0", "flannel-wg", "flannelchk")
    assert [one.destination for one in found.routes] == ["10.5.3.0/24"]
    assert found.blackholes == (("10.5.1.0/24", BLACKHOLE_PRIORITY), ("10.5.1.0/24", 0))
    assert found.left == (
        "flannel.2: it has no address of 10.5.0.0/16 and fc00::/48 (-all removes it, too)",
        "route fc00:0:0:2::/64 via fe80::2 dev eth0, by whomever it was made (-all removes it, too)",
    )


def test_with_all_routes_that_nobody_recorded_go_too() -> None:
    found = cleanup.traces_of(LINKS, ADDRESSES, ROUTES, ENV, everything=True)
    assert [one.destination for one in found.routes] == ["10.5.3.0/24", "fc00:0:0:2::/64"]


def test_with_all_every_device_of_the_form_goes_and_no_other() -> None:
    found = cleanup.traces_of(LINKS, ADDRESSES, ROUTES, NONE, everything=True)
    assert found.devices == ("flannel.1", "flannel-v6.1", "flannel.2", "flannel0", "flannel-wg", "flannelchk")
    assert (found.routes, found.blackholes, found.left) == ((), (), ())


def test_without_a_subnet_file_nothing_but_a_trial_is_touched() -> None:
    found = cleanup.traces_of(LINKS, ADDRESSES, ROUTES, NONE, everything=False)
    assert found.devices == ("flannelchk",)
    assert found.routes == ()
    assert len(found.left) == 5
    assert "no subnet file names its network" in found.left[0]


def test_it_wants_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flanneld.net.trial.may_administer", lambda: False)
    with pytest.raises(FlanneldError, match="NET_ADMIN"):
        cleanup.run([f"-subnet-file={tmp_path}/subnet.env"], {})


def test_processes_called_flanneld_in_this_network_are_found(tmp_path: Path) -> None:
    for pid, name, namespace in (
        (11, "flanneld", "/proc/self/ns/net"),
        (12, "flanneld", "/dev/null"),
        (13, "sh", "/proc/self/ns/net"),
    ):
        (tmp_path / str(pid) / "ns").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        (tmp_path / str(pid) / "ns/net").symlink_to(namespace)
    (tmp_path / "14").mkdir()
    (tmp_path / "self").mkdir()
    assert list(cleanup.running_daemons(tmp_path)) == [11]
