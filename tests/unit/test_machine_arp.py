"""Who has an address: the frames, and the facts that are made of the answers."""

from __future__ import annotations

from kubewright.machine import arp, facts

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
