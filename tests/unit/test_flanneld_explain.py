from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import pytest
from test_flanneld_status import complete, daemon, lease, read

from flanneld import dataplane as dp
from flanneld import drift, explain, status
from flanneld.errors import UsageError
from flanneld.net import probe, wire
from flanneld.net.lookup import Way

UDP_CONFIG = json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9999}})


class Kernel:
    """Answers as a kernel with these routes, own addresses and neighbours."""

    def __init__(
        self,
        ways: Mapping[str, Way],
        own: Mapping[str, str] | None = None,
        neighbours: Mapping[str, str] | None = None,
        obstacle: str = "",
    ) -> None:
        self._obstacle = obstacle
        self._ways = {ipaddress.ip_network(prefix): way for prefix, way in ways.items()}
        self._own, self._neighbours = own or {}, neighbours or {}

    def holder(self, address: str) -> str:
        return self._own.get(address, "")

    def way(self, address: str) -> Way | None:
        parsed = ipaddress.ip_address(address)
        holding = [one for one in self._ways if parsed in one]
        return self._ways[max(holding, key=lambda one: one.prefixlen)] if holding else None

    def obstacle(self, _address: str, _wanted: dp.Route) -> str:
        return self._obstacle

    def neighbours(self, _device: str, _version: int) -> list[wire.Neighbour]:
        return [wire.Neighbour(2, 3, address, mac, False, False) for address, mac in self._neighbours.items()]


class Network:
    """Machines of which only some answer."""

    def __init__(self, *answering: str) -> None:
        self.answering = answering
        self.asked: list[probe.Target] = []

    def ask(self, targets: list[probe.Target], timeout: float = 1.0) -> list[probe.Answer]:
        self.asked += targets
        assert timeout == 1.0
        return [
            probe.Answer(
                one, one.address in self.answering, 0.0012, "" if one.address in self.answering else "no answer"
            )
            for one in targets
        ]


DEFAULT = {"0.0.0.0/0": Way("eth0", "192.168.60.254")}
PEER = {**DEFAULT, "10.5.2.0/24": Way("flannel.1", "10.5.2.0")}


def facts(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    kernel: Kernel,
    *answering: str,
    found: dp.Found | None = None,
    probing: bool = True,
    **changes: Any,
) -> tuple[explain.Facts, Network]:
    answer, raw = read(daemon(lease(2), lease(3, "host-gw"), **changes))
    assert answer.desired is not None
    look = status.Look(answer, raw, drift.differences(answer.desired, found or complete(answer.desired)))
    network = Network(*answering)
    monkeypatch.setattr(probe, "ask", network.ask)
    return explain.explain(look, kernel, address, probing=probing), network  # type: ignore[arg-type]


def test_a_pod_of_a_peer_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, network = facts(monkeypatch, "10.5.2.7", Kernel(PEER), "10.5.2.0", "192.168.60.2", "10.5.2.7")
    assert (found.reachable, found.verdict) == (True, "Reachable.")
    assert found.who == "10.5.2.7 lies in 10.5.2.0/24, leased by 192.168.60.2"
    assert [
        (label, seen, wrong) for label, seen, wrong in found.lines if label in {"route", "neighbour", "forwarding"}
    ] == [
        ("route", "10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink", ""),
        ("neighbour", "10.5.2.0 at 2a:00:00:00:00:02", ""),
        ("forwarding", "2a:00:00:00:00:02 to 192.168.60.2", ""),
    ]
    assert network.asked == [
        probe.Target("10.5.2.0", "10.5.1.0"),
        probe.Target("192.168.60.2"),
        probe.Target("10.5.2.7"),
    ]


@pytest.mark.parametrize(
    ("answering", "expected"),
    [
        (
            ["10.5.2.0", "192.168.60.2"],
            "The machine 192.168.60.2 is reached through the overlay, but 10.5.2.7 does not",
        ),
        (["192.168.60.2"], "Is UDP port 8472 allowed between the machines"),
        ([], "neither the overlay nor the machine 192.168.60.2 answers (no answer)"),
    ],
)
def test_a_pod_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, answering: list[str], expected: str) -> None:
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(PEER), *answering)
    assert found.reachable is False
    assert expected in found.verdict


def test_what_is_missing_in_the_kernel_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    desired = read(daemon(lease(2)))[0].desired
    assert desired is not None
    without = complete(desired)._replace(neighbours={})
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(PEER), "192.168.60.2", found=without)
    assert ("neighbour", "10.5.2.0 at 2a:00:00:00:00:02", "is missing") in found.lines
    assert found.verdict.startswith("Not reachable: the neighbour 10.5.2.0 at 2a:00:00:00:00:02 is missing.")
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(PEER), found=without, probing=False)
    assert found.reachable is None
    assert found.verdict.startswith("Wrong: ")


def test_what_takes_precedence_is_named_and_not_said_to_be_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    better = {**PEER, "10.5.2.7/32": Way("tun0", "")}
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(better, obstacle="the route X; remove that"))
    assert ("way", "dev tun0", "should be dev flannel.1 via 10.5.2.0") in found.lines
    assert found.verdict == (
        "Not reachable: what this machine has of its own takes precedence: the route X; remove that."
    )
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(better), probing=False)
    assert "`ip route show table all`" in found.verdict


def test_a_missing_route_is_repaired_although_packets_leave_by_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    desired = read(daemon(lease(2)))[0].desired
    assert desired is not None
    without = complete(desired)._replace(routes=())
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(DEFAULT), found=without)
    assert found.verdict.endswith("is missing. flanneld should repair that within seconds; its log says what keeps it.")


def test_an_ignored_lease_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found, network = facts(monkeypatch, "10.5.3.7", Kernel(PEER))
    assert found.verdict == (
        "Not reachable: this machine does not use that lease, because its backend is host-gw, not vxlan."
    )
    assert network.asked == []


def test_nobodys_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    found, network = facts(monkeypatch, "10.5.9.7", Kernel(PEER))
    assert found.verdict == "Not reachable: the subnet 10.5.9.0/24 is leased to nobody."
    assert network.asked == []
    found, _ = facts(monkeypatch, "10.5.0.7", Kernel(PEER))
    assert found.verdict.endswith("is leased to nobody, and lies outside of SubnetMin to SubnetMax.")


def test_addresses_outside_are_not_asked_unless_they_are_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found, network = facts(monkeypatch, "8.8.8.8", Kernel(PEER))
    assert found.reachable is False
    assert found.verdict == "It is no pod's address: the pod network is 10.5.0.0/16."
    assert network.asked == []
    found, network = facts(monkeypatch, "192.168.60.2", Kernel(PEER), "192.168.60.2")
    assert found.who == "192.168.60.2 is the machine that has leased 10.5.2.0/24"
    assert found.reachable is True
    found, _ = facts(monkeypatch, "192.168.60.1", Kernel(PEER, {"192.168.60.1": "eth0"}))
    assert found.who == "192.168.60.1 is this machine's own, on eth0"


def test_where_others_lead_there_only_probes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = dp.Desired(dp.Ownership({}))
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel(DEFAULT), "10.5.2.7", found=dp.Found(), desired=empty)
    assert (found.reachable, found.lines[0]) == (True, ("way", "dev eth0 via 192.168.60.254", ""))
    assert found.verdict == "Reachable; flanneld programs no way there: the vxlan backend leaves routes to others."
    found, _ = facts(monkeypatch, "10.5.2.7", Kernel({}), found=dp.Found(), desired=empty)
    assert (found.reachable, found.lines[0]) == (False, ("way", "none", ""))


def test_own_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = {**PEER, "10.5.1.0/24": Way("cni0", "")}
    mac = {"10.5.1.7": "02:00:00:00:00:07"}
    cases = [
        (Kernel(bridge, neighbours=mac), ["10.5.1.7"], True, "Reachable: the pod answers."),
        (Kernel(bridge, neighbours=mac), [], False, "but it drops what we send"),
        (Kernel(bridge), [], False, "nobody on cni0 has this address now"),
        (Kernel(PEER), [], False, "no bridge of this machine has the subnet 10.5.1.0/24"),
        (Kernel(bridge, {"10.5.1.7": "cni0"}), [], True, "It is this machine's own, on cni0."),
    ]
    for kernel, answering, reachable, expected in cases:
        found, _ = facts(monkeypatch, "10.5.1.7", kernel, *answering)
        assert found.reachable is reachable
        assert expected in found.verdict


def test_without_a_device_the_bridge_of_the_peer_is_asked() -> None:
    answer = read(daemon(lease(2)))[0]
    assert answer.desired is not None
    plain = answer._replace(desired=answer.desired._replace(devices=()))
    assert explain.overlay_target(plain, ipaddress.ip_network("10.5.2.0/24")) == probe.Target("10.5.2.1")


def test_ports() -> None:
    answer = read(daemon(lease(2)))[0]
    assert explain.tunnel_port(answer) == 8472
    assert answer.config is not None
    udp = answer.config._replace(backend_type="udp", backend={"type": "udp", "port": 9999})
    assert explain.udp_port(udp) == 9999
    assert explain.udp_port(udp._replace(backend={"type": "udp"})) == 8285
    assert explain.udp_port(answer.config) == 0


@pytest.mark.parametrize(
    "words", [[], ["10.5.2"], ["10.5.2.7x"], ["-json"], ["fe80::1%eth0"], ["host"], ["10.5.2.7", "x"]]
)
def test_what_is_no_address_is_a_mistake(words: list[str]) -> None:
    with pytest.raises(UsageError):
        explain.run(words, {})


def test_no_daemon_is_status_3(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.run(["-subnet-file", str(tmp_path / "subnet.env"), "127.0.0.2"], {}) == 3
    printed = capsys.readouterr()
    assert "Is it running?" in printed.err
    assert explain.run(["-json", "-subnet-file", str(tmp_path / "subnet.env"), "127.0.0.2"], {}) == 3
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert (found["running"], found["reachable"]) == (False, None)
    assert found["verdict"] == "the kernel sends packets to 127.0.0.2 dev lo"
