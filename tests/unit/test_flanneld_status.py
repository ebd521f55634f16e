from __future__ import annotations

import io
import ipaddress
import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld import console, drift, health, state, status
from flanneld import dataplane as dp
from flanneld.backend.base import Existing, Reach, Underlay
from flanneld.backend.registry import make_backend
from flanneld.errors import FlanneldError
from flanneld.metrics import Figures
from flanneld.options import InterfaceOptions
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Holding, Lease, parse_lease
from flanneld.subnet.manager import Picture

CONFIG = '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true, "MTU": 1400}}'
UNDERLAY = Underlay("eth0", 1500, {4: "192.168.60.1"}, (Reach(ipaddress.ip_network("192.168.60.0/24"), direct=False),))


def lease(number: int, backend: str = "vxlan") -> Lease:
    data = {"VNI": 1, "VtepMAC": f"2a:00:00:00:{number >> 8:02x}:{number & 255:02x}"}
    value = {"PublicIP": f"192.168.{60 + (number >> 8)}.{number & 255}", "BackendType": backend, "BackendData": data}
    found = parse_lease(f"10.{5 + (number >> 8)}.{number & 255}.0-24", json.dumps(value))
    assert found is not None
    return found


def daemon(*peers: Lease, config: str = CONFIG, **changes: Any) -> SimpleNamespace:
    parsed = parse_config(config)
    backend = make_backend(parsed, UNDERLAY)
    backend.prepare(Existing({"flannel.1": "2a:00:00:00:00:01"}, {}, UNDERLAY.addresses))
    own = lease(1)
    leases = {one.name: one for one in (own, *peers)}
    fields = {
        "options": SimpleNamespace(interface=InterfaceOptions(), ip_masq=True, forward_rules=True),
        "manager": SimpleNamespace(name="etcd v3", trouble="", held=lambda: None),
        "started": time.monotonic() - 60,
        "config": parsed,
        "underlay": UNDERLAY,
        "backend": backend,
        "holding": Holding(own, time.monotonic() + 3600.5),
        "picture": Picture(leases, config),
        "desired": backend.desired(own, leases.values()),
        "overlay": SimpleNamespace(trouble=""),
        "guard": SimpleNamespace(trouble=""),
        "trouble": lambda: "",
    }
    return SimpleNamespace(**{**fields, **changes})


def read(from_daemon: SimpleNamespace) -> tuple[state.State, dict[str, Any]]:
    return state.parse(json.dumps(state.report(from_daemon)))  # type: ignore[arg-type]


def test_the_document_says_everything() -> None:
    found, raw = read(daemon(lease(2), lease(3, "host-gw")))
    assert found.pid == os.getpid()
    assert raw["ready"] is True
    assert (found.interface, found.addresses, found.announced) == ("eth0", {4: "192.168.60.1"}, {4: "192.168.60.1"})
    assert found.own == (ipaddress.ip_network("10.5.1.0/24"),)
    assert found.expires == 3600
    assert found.config == parse_config(CONFIG), "the configuration is in the form in which it is written"
    assert found.mtu == 1350
    assert [(one.name, one.addresses, one.ignored) for one in found.peers] == [
        ("10.5.2.0/24", "192.168.60.2", ""),
        ("10.5.3.0/24", "192.168.60.3", "its backend is host-gw, not vxlan"),
    ]
    assert raw["peers"][0]["data"] == {"VNI": 1, "VtepMAC": "2a:00:00:00:00:02"}


def test_a_daemon_that_has_just_started_answers() -> None:
    starting = SimpleNamespace(
        options=SimpleNamespace(interface=InterfaceOptions(), ip_masq=False, forward_rules=True),
        manager=SimpleNamespace(name="etcd v3", trouble="refused", held=lambda: None),
        started=time.monotonic(),
        picture=None,
        desired=None,
        overlay=None,
        guard=None,
        trouble=lambda: "waiting for the network configuration",
    )
    found, raw = read(starting)
    assert not raw["ready"]
    text = "\n".join(status.overview(status.Look(found, raw, ()), None))
    assert "NOT ready: waiting for the network configuration" in text
    assert "etcd v3: refused" in text
    assert "lease      none yet" in text
    starting.manager.trouble = ""
    text = "\n".join(status.overview(status.Look(*read(starting), ()), None))
    assert "etcd v3: not read yet" in text


def test_the_lease_is_that_of_the_manager_where_it_says_it() -> None:
    renewed = Holding(lease(1), time.monotonic() + 86400.5)
    manager = SimpleNamespace(name="etcd v3", trouble="", held=lambda: renewed)
    assert read(daemon(manager=manager))[0].expires == 86400
    forever = SimpleNamespace(name="etcd v3", trouble="", held=lambda: Holding(lease(1), None))
    assert read(daemon(manager=forever))[0].expires is None


@st.composite
def desireds(draw: st.DrawFn) -> dp.Desired:
    versions = draw(st.sets(st.sampled_from([4, 6])))
    names = draw(st.lists(st.text("abc.1", min_size=1, max_size=8), unique=True, max_size=3))
    mac = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
    address = st.ip_addresses().map(str)
    port, flag = st.integers(0, 65535), st.booleans()

    def device(name: str) -> dp.Device:
        if draw(flag):
            return dp.Tun(name, draw(port))
        fields = (draw(port), draw(port), draw(st.text("xyz", max_size=5)), draw(address), draw(port), draw(mac))
        return dp.Vxlan(name, *fields, draw(flag), draw(flag))

    on = st.sampled_from(names or ["eth0"])
    networks = {4: ipaddress.ip_network("10.0.0.0/8"), 6: ipaddress.ip_network("fc00::/16")}
    prefixes = address.map(lambda one: str(ipaddress.ip_network(one)))
    routes = draw(st.lists(st.builds(dp.Route, prefixes, on, st.one_of(st.just(""), address), flag), max_size=5))
    return dp.Desired(
        dp.Ownership({one: networks[one] for one in versions}, draw(st.text(max_size=5)), dict.fromkeys(versions, 24)),
        tuple(device(name) for name in names),
        {name: draw(st.frozensets(prefixes, max_size=2)) for name in names},
        draw(st.dictionaries(st.tuples(on, address), mac, max_size=5)),
        draw(st.dictionaries(st.tuples(on, mac), address, max_size=5)),
        {route.destination: route for route in routes},
    )


@given(desireds())
def test_an_overlay_survives_json(desired: dp.Desired) -> None:
    assert state.desired_from(json.loads(json.dumps(state.desired_json(desired)))) == desired


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.sampled_from(sorted(state.report(daemon(lease(2))))), json_values)  # type: ignore[arg-type]
def test_another_document_is_refused_in_one_sentence(key: str, value: Any) -> None:
    raw = state.report(daemon(lease(2)))  # type: ignore[arg-type]
    raw[key] = value
    try:
        state.parse(json.dumps(raw))
    except FlanneldError as error:
        assert "is not understood" in error.message  # noqa: PT017 - most values are refused, some are not


def test_what_is_no_document_is_refused() -> None:
    for text in ("", "[]", "null", '{"version": "9.9"}', "\0", "[" * 100000):
        with pytest.raises(FlanneldError, match="is not understood"):
            state.parse(text)


def complete(desired: dp.Desired) -> dp.Found:
    devices = {
        one.name: dp.FoundDevice(7, "vxlan", one.mac, one.mtu, True, one.vni, True, one.local, one.port, False, False)
        for one in desired.devices
        if isinstance(one, dp.Vxlan)
    }
    forwarding = frozenset((*key, machine) for key, machine in desired.forwarding.items())
    routes = tuple(dp.FoundRoute(one, by_boot=True) for one in desired.routes.values())
    return dp.Found(devices, desired.addresses, desired.neighbours, forwarding, routes)


def test_differences_belong_to_the_peers_that_they_concern() -> None:
    found = read(daemon(lease(2), lease(3)))[0]
    desired = found.desired
    assert desired is not None
    there = complete(desired)
    assert drift.differences(desired, there) == []
    without = there._replace(routes=there.routes[:1], forwarding=frozenset())
    concerned = drift.Concerned(drift.differences(desired, without))
    assert [str(one) for one in concerned.of(desired, found.peers[0].subnets)] == [
        "forwarding of 2a:00:00:00:00:02 to 192.168.60.2 on flannel.1 is missing"
    ]
    assert [str(one) for one in concerned.of(desired, found.peers[1].subnets)] == [
        "forwarding of 2a:00:00:00:00:03 to 192.168.60.3 on flannel.1 is missing",
        "route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink is missing",
    ]
    nothing = drift.differences(desired, dp.Found())
    assert str(nothing[0]) == "flannel.1 is missing"
    assert len(drift.Concerned(nothing).of(desired, found.peers[0].subnets)) == 5, "device, address and three entries"


def test_a_tun_that_is_gone_is_a_difference() -> None:
    network = ipaddress.ip_network("10.5.0.0/16")
    desired = dp.Desired(
        dp.Ownership({4: network}, "eth0", {4: 24}),
        (dp.Tun("flannel0", 1472),),
        {"flannel0": frozenset({"10.5.1.0/32"})},
        routes={str(network): dp.Route(str(network), "flannel0")},
    )
    assert [str(one) for one in drift.differences(desired, dp.Found())] == ["flannel0 is missing"]
    assert str(drift.way(desired, ipaddress.ip_network("10.5.2.0/24"))) == "flannel0", "one route leads to all peers"


def test_entries_that_do_not_belong_are_said_to_be_so() -> None:
    desired = read(daemon(lease(2)))[0].desired
    assert desired is not None
    there = complete(desired)
    more = there._replace(
        neighbours={**there.neighbours, ("flannel.1", "10.5.9.0"): "2a:00:00:00:00:09"},
        forwarding=there.forwarding | {("flannel.1", "2a:00:00:00:00:09", "192.168.60.9")},
        routes=(*there.routes, dp.FoundRoute(dp.Route("10.5.9.0/24", "flannel.1", "10.5.9.0", onlink=True), True)),
    )
    assert [str(one) for one in drift.differences(desired, more)] == [
        "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink does not belong there",
        "neighbour 10.5.9.0 at 2a:00:00:00:00:09 on flannel.1 does not belong there",
        "forwarding of 2a:00:00:00:00:09 to 192.168.60.9 on flannel.1 does not belong there",
    ]


def overview(from_daemon: SimpleNamespace, found: dp.Found | None = None, shown: int | None = 50) -> str:
    answer, raw = read(from_daemon)
    assert answer.desired is not None
    differences = drift.differences(answer.desired, found or complete(answer.desired))
    return "\n".join(status.overview(status.Look(answer, raw, differences), shown))


def test_the_overview_is_what_a_person_needs() -> None:
    text = overview(daemon(lease(2), lease(3, "host-gw"))).splitlines()
    assert text[0].endswith(": ready")
    assert text[1:] == [
        "network    10.5.0.0/16, backend vxlan",
        "interface  eth0 with 192.168.60.1, MTU 1500",
        "lease      10.5.1.0/24, expires in 1h",
        "pods       MTU 1350 over flannel.1",
        "leases in  etcd v3: followed",
        "rules      as they should be",
        "repaired   0 things in the kernel, 0 times the rules",
        "kernel     as it should be",
        "",
        "2 peers, 1 of them ignored",
        "SUBNET       MACHINE       VIA                          STATE",
        "10.5.3.0/24  192.168.60.3  -                            ignored: its backend is host-gw, not vxlan",
        "10.5.2.0/24  192.168.60.2  flannel.1 2a:00:00:00:00:02  ok",
    ]


def figures(one: SimpleNamespace) -> list[str]:
    names = ("flannel_peers_programmed", "flannel_leases_ignored", "flannel_ready")
    lines = state.figures(one).splitlines()  # type: ignore[arg-type]
    return [line.partition("_")[2] for line in lines if line.startswith(names)]


def test_figures_are_those_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FIGURES", Figures())
    one = daemon(lease(2), lease(3, "host-gw"))
    expected = ['leases_ignored{reason="backend"} 1', "peers_programmed 1", "ready 1"]
    assert figures(one) == expected
    gone = Lease((ipaddress.ip_network("10.5.77.0/24"),), Attributes("192.168.60.77", "host-gw"))
    one.backend.ignore(gone, "it was there once")
    assert figures(one) == expected, "only what is there is counted"
    one.trouble = lambda: "the traffic rules are not set yet"
    assert figures(one)[-1] == "ready 0"
    starting = SimpleNamespace(picture=None, desired=None, trouble=lambda: "waiting")
    monkeypatch.setattr(state, "FIGURES", Figures())
    assert figures(starting) == ["ready 0"]


def test_peers_are_counted_by_machine_and_not_by_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FIGURES", Figures())
    networks = {4: ipaddress.ip_network("10.5.0.0/16"), 6: ipaddress.ip_network("fc00::/48")}
    both = [
        Lease((ipaddress.ip_network(f"10.5.{n}.0/24"), ipaddress.ip_network(f"fc00:0:0:{n}::/64")), Attributes("x"))
        for n in (1, 2, 3)
    ]
    routes = [dp.Route(str(subnet), "flannel.1") for one in both[1:] for subnet in one.subnets]
    dual = dp.Desired(dp.Ownership(networks), routes={one.destination: one for one in routes})
    picture = Picture({one.name: one for one in both}, CONFIG)
    assert "peers_programmed 2" in figures(daemon(picture=picture, desired=dual, holding=Holding(both[0], None)))
    # udp has one route for all, whether there are peers or not.
    whole = dp.Desired(dp.Ownership(networks), routes={"10.5.0.0/16": dp.Route("10.5.0.0/16", "flannel0")})
    assert "peers_programmed 0" in figures(daemon(desired=whole))
    assert "peers_programmed 2" in figures(daemon(lease(2), lease(4), desired=whole))
    # alloc programs nothing.
    assert "peers_programmed 0" in figures(daemon(lease(2), desired=dp.Desired(dp.Ownership({}))))


def test_an_expired_lease_is_told() -> None:
    text = overview(daemon(holding=Holding(lease(1), time.monotonic() - 118.8)))
    assert "lease      10.5.1.0/24, EXPIRED 1m 59s ago: another machine may take the subnet" in text
    assert not read(daemon(holding=Holding(lease(1), None)))[0].expired


def test_many_peers_are_cut_with_what_is_wrong_on_top() -> None:
    peers = [lease(number) for number in range(2, 102)]
    one = daemon(*peers)
    there = complete(one.desired)
    text = overview(one, there._replace(routes=there.routes[:-1])).splitlines()
    assert text[-1] == "and 50 more, all of them ok (-all shows them)"
    assert "10.5.101.0/24" in next(line for line in text if line.startswith("10.5."))
    assert overview(one, shown=None).count(" ok") == 100


def test_5000_peers_are_printed_fast() -> None:
    answer, raw = read(
        daemon(*(lease(number) for number in range(2, 5002)), config=CONFIG.replace("10.5.0.0/16", "10.0.0.0/8"))
    )
    assert answer.desired is not None
    found = complete(answer.desired)
    started = time.process_time()
    look = status.Look(answer, raw, drift.differences(answer.desired, found))
    status.overview(look, None)
    status.document(look)
    assert time.process_time() - started < 5, "measured: 0.15 s"


def test_json_says_the_way_to_each_peer() -> None:
    answer, raw = read(daemon(lease(2)))
    found = status.document(status.Look(answer, raw, ()))
    assert found["peers"][0]["ways"] == [
        {
            "subnet": "10.5.2.0/24",
            "destination": "10.5.2.0/24",
            "device": "flannel.1",
            "gateway": "10.5.2.0",
            "onlink": True,
            "mac": "2a:00:00:00:00:02",
            "machine": "192.168.60.2",
        }
    ]
    assert found["running"] is True


def test_no_socket_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(state.NotRunningError, match="there is no such file"):
        state.ask(tmp_path / "subnet.env")


def test_a_socket_of_a_killed_daemon_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "subnet.sock"))
    with pytest.raises(state.NotRunningError, match="Connection refused"):
        state.ask(tmp_path / "subnet.env")


def test_the_daemon_is_asked_over_its_socket(tmp_path: Path) -> None:
    one = daemon(lease(2))
    path = state.socket_path(tmp_path / "subnet.env")
    answer = health.Answer(200, "application/json", json.dumps(state.report(one)))  # type: ignore[arg-type]
    server = health.serve(path, {"/status": lambda: answer})
    try:
        assert state.ask(tmp_path / "subnet.env")[0].peers[0].name == "10.5.2.0/24"
    finally:
        server.close()


def test_the_subnet_file_is_read_with_what_is_wrong_in_it_left_out(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    assert state.read_env(file) is None
    file.write_text(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_IPV6_NETWORK=x\nFLANNEL_MTU=1450\n"
    )
    env = state.read_env(file)
    assert env is not None
    assert env.networks == {4: ipaddress.ip_network("10.5.0.0/16")}
    assert env.subnets == {4: ipaddress.ip_network("10.5.1.0/24")}
    file.write_bytes(b"\xff\0garbage")
    assert state.read_env(file) == state.Env({}, {}, "")


def test_columns_are_aligned_and_end_without_blanks() -> None:
    assert console.columns([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]
    assert console.columns([]) == []


def test_durations() -> None:
    assert [console.seconds(one) for one in (-5, 0, 59, 3600, 86399, 90061)] == [
        "0s", "0s", "59s", "1h", "23h 59m", "1d 1h",
    ]  # fmt: skip


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console.coloured("x", "red") == "x"
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    assert console.coloured("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.coloured("x", "red") == "x"


def test_output_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    console.write(["na\u00efve"])
    assert capsys.readouterr().out == "na\\xefve\n"


def test_an_unknown_attribute_of_a_lease_does_no_harm() -> None:
    strange = Lease((ipaddress.ip_network("10.5.7.0/24"),), Attributes("192.168.60.7", "vxlan", ["odd"]))
    assert read(daemon(strange))[0].peers[0].ignored == "its data for IPv4 holds no usable VtepMAC"
