from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kubewright import diagnose
from kubewright.matrix import Result

A = diagnose.Place("a", "192.0.2.1", "10.244.1.2", "10.244.1.0")
B = diagnose.Place("b", "192.0.2.2", "10.244.2.2", "10.244.2.0")
LOST = Result("pod a", "pod b", B.pod, "ping", ok=False)


def path(here: diagnose.Place, there: diagnose.Place, mac: str, their_mac: str) -> dict[str, Any]:
    return {
        "links": [
            {"ifname": "flannel.1", "flags": ["UP"], "address": mac, "linkinfo": {"info_data": {"id": 1, "port": 8472}}}
        ],
        "neighbours": [{"dst": there.flannel, "lladdr": their_mac}],
        "fdb": [{"mac": their_mac, "dst": there.address}],
        "routes": {
            here.pod: [{"dst": here.pod, "dev": "cni0"}],
            there.pod: [{"dst": there.pod, "gateway": there.flannel, "dev": "flannel.1"}],
        },
        "forwarding": "1",
        "forward": ["-P FORWARD DROP", "-A FORWARD -i docker0 -j ACCEPT", "-A FORWARD -s 10.244.0.0/16 -j ACCEPT"],
        "input": ["-P INPUT ACCEPT"],
        "services": {"10.0.0.7": True},
        "peers": {there.address: True},
    }


def direct(paths: dict[str, Any]) -> None:
    """As host-gw routes: no device, and the other machine is the gateway."""
    for name, there in (("a", B), ("b", A)):
        paths[name].update(links=[], neighbours=[], fdb=[])
        paths[name]["routes"][there.pod] = [{"dst": there.pod, "gateway": there.address, "dev": "eth0"}]


def explain(change: Callable[[dict[str, Any]], object], *, lost: set[tuple[str, str]] | None = None) -> str:
    paths = {"a": path(A, B, "aa", "bb"), "b": path(B, A, "bb", "aa")}
    change(paths)
    return diagnose.explain(LOST, {"a": A, "b": B}, paths, lost or set())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p["a"].update(links=[]), "a: runtime: there is no flannel device"),
        (
            lambda p: [direct(p), p["a"]["routes"].update({B.pod: [{"gateway": "192.0.2.9"}]})],
            "a: runtime: there is no",
        ),
        (lambda p: [direct(p), p["b"].update(forwarding="0")], "b: rule: net.ipv4.ip_forward is 0"),
        (lambda p: p["a"]["links"][0].update(flags=[]), "a: runtime: flannel.1 is down"),
        (lambda p: p["a"]["routes"].update({B.pod: []}), "a: route: ip route get 10.244.2.2 finds none"),
        (lambda p: p["a"]["routes"].update({B.pod: [{"dev": "eth0"}]}), "leads to eth0, not to flannel.1"),
        (lambda p: p["a"].update(neighbours=[]), "a: neighbour: flannel.1 has no entry for 10.244.2.0"),
        (lambda p: p["a"]["neighbours"][0].update(lladdr="cc"), "has cc on flannel.1, the device of b has bb"),
        (lambda p: p["a"].update(fdb=[]), "a: FDB: flannel.1 has no entry for bb, the device of b"),
        (lambda p: p["a"]["fdb"][0].update(dst="192.0.2.9"), "a: FDB: bb leads to 192.0.2.9, b is 192.0.2.2"),
        (lambda p: p["b"].update(fdb=[]), "b: FDB: flannel.1 has no entry for aa"),
        (lambda p: p["b"].update(forwarding="0"), "b: rule: net.ipv4.ip_forward is 0"),
        (lambda p: p["b"]["forward"].insert(1, "-A FORWARD -d 10.244.2.0/24 -j DROP"), "-d 10.244.2.0/24 -j DROP"),
        (lambda p: p["b"]["forward"].pop(), "b: rule: iptables drops it in FORWARD: -P FORWARD DROP"),
        (lambda p: p["b"]["routes"].update({B.pod: [{"dev": "host0"}]}), "b: route: ip route get 10.244.2.2 leads to"),
        (
            lambda p: p["b"]["input"].append("-A INPUT -p udp --dport 8472 -j DROP"),
            "drops it in INPUT: -A INPUT -p udp",
        ),
        (lambda p: p["a"]["peers"].update({B.address: False}), "a does not reach b (192.0.2.2) at all"),
        (lambda p: p.pop("b"), "b gave no answer about its part"),
        (dict, "look right on both machines; tcpdump"),
    ],
)
def test_the_broken_hop_is_named_and_shown(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert said in explain(change)


def test_a_pod_that_its_own_machine_does_not_reach() -> None:
    said = explain(dict, lost={("b", B.pod)})
    assert said.startswith("b: runtime: its own pod 10.244.2.2 does not answer")


def test_a_tunnel_that_swallows_everything() -> None:
    assert "is UDP port 8472 open" in explain(dict, lost={("a", B.flannel)})


def test_a_rule_for_other_addresses_is_not_blamed() -> None:
    said = explain(lambda p: p["a"]["forward"].insert(1, "-A FORWARD -d 10.9.0.0/16 -j DROP"))
    assert "look right" in said
    said = explain(lambda p: p["a"]["forward"].insert(1, "-A FORWARD ! -s 10.244.0.0/16 -j DROP"))
    assert "look right" in said


def test_a_service_without_rules() -> None:
    paths = {"a": path(A, B, "aa", "bb")}
    probe = Result("a", "service", "10.0.0.7", "http", ok=False)
    assert "a pod behind it is not reached" in diagnose.explain(probe, {"a": A, "b": B}, paths, set())
    paths["a"]["services"] = {}
    assert "a: rule: kube-proxy has none for 10.0.0.7" in diagnose.explain(probe, {"a": A, "b": B}, paths, set())
