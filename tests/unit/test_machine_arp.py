"""Who has an address: the frames, and the facts that are made of the answers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import jinja2

from kubewright.machine import arp, facts

ROLE = Path(__file__).parents[2] / "roles/loadbalancer/templates"

OWN = bytes.fromhex("020000000001")


def _reply(operation: int, sender: str, address: bytes) -> bytes:
    peer = bytes.fromhex(sender)
    return arp._HEADER.pack(OWN, peer, 0x0806, 1, 0x0800, 6, 4, operation, peer, address, OWN, bytes(4))


def test_a_probe_tells_nobody_an_address_of_ours() -> None:
    frame = arp.request(OWN, "192.0.2.9")
    assert len(frame) == 42
    assert frame[:6] == b"\xff" * 6
    assert frame[28:32] == bytes(4)
    assert frame[38:42] == bytes([192, 0, 2, 9])


def test_only_an_answer_for_that_address_counts() -> None:
    wanted = bytes([192, 0, 2, 9])
    assert arp.answer(_reply(2, "02000000002a", wanted), "192.0.2.9") == "02:00:00:00:00:2a"
    assert arp.answer(_reply(1, "02000000002a", wanted), "192.0.2.9") == ""
    assert arp.answer(_reply(2, "02000000002a", bytes([192, 0, 2, 8])), "192.0.2.9") == ""
    assert arp.answer(b"short", "192.0.2.9") == ""


def test_the_interface_of_an_address_is_that_of_the_narrowest_network() -> None:
    routes = [("wide", "192.0.0.0/16"), ("lan", "192.0.2.0/24"), ("other", "198.51.100.0/24")]
    assert facts.interface_of("192.0.2.9", routes) == "lan"
    assert facts.interface_of("192.0.3.9", routes) == "wide"
    assert facts.interface_of("203.0.113.1", routes) == ""


def keepalived(*peers: str) -> str:
    loader = jinja2.Environment(loader=jinja2.FileSystemLoader(ROLE), trim_blocks=True, autoescape=True)
    values: dict[str, Any] = {
        "cluster": {"lb_interfaces": {"lb01": "lan"}, "api_vip": "192.0.2.9", "api_vip_router_id": 51},
        "loadbalancer_machine": {"address": "192.0.2.31"},
        "loadbalancer_peers": list(peers),
        "inventory_hostname": "lb01",
    }
    return loader.get_template("opt/kubernetes/lb/keepalived.conf.j2").render(values)


def test_a_load_balancer_without_others_does_not_talk_to_everybody() -> None:
    # keepalived goes over to multicast when the block is missing or empty.
    assert "unicast_peer {\n        127.0.0.1\n    }" in keepalived()
    assert facts.partners(keepalived()) == []
    assert facts.partners(keepalived("192.0.2.32", "192.0.2.33")) == ["192.0.2.32", "192.0.2.33"]
    assert facts.partners("") == []


def test_partners_are_those_that_still_accept_connections(tmp_path: Path, monkeypatch: Any) -> None:
    config = tmp_path / "keepalived.conf"
    config.write_text(keepalived("127.0.0.2", "127.0.0.3"))
    monkeypatch.setattr(facts, "_VIP_CONFIG", str(config))
    with socket.create_server(("127.0.0.2", 0)) as server:
        found = facts._vip("192.0.2.9", server.getsockname()[1], [("lan", "192.0.2.0/24")])
    assert found == {"interface": "lan", "holder": "", "partners": ["127.0.0.2"]}
