"""Who answers for an IPv4 address on the wire, asked as RFC 5227 has it: a probe that fills nobody's cache."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time

from . import files

_ETHERTYPE = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sHHHBBH6s4s6s4s")
# RFC 5227 sends three within seconds; a switch or a machine answers at once, and three short ones do here.
_TRIES = 3
_WAIT_SECONDS = 0.3


def mac(interface: str) -> str:
    """Hardware address of an interface, empty when it has none."""
    return files.read(f"/sys/class/net/{interface}/address").strip()


def macs() -> list[str]:
    """Hardware addresses of all interfaces of this machine."""
    return sorted({found for name in os.listdir("/sys/class/net") if (found := mac(name))})


def request(own: bytes, address: str) -> bytes:
    """An Ethernet frame that asks who has `address`, without telling an address of the sender's."""
    target = ipaddress.IPv4Address(address).packed
    arp = (_ETHERTYPE, 1, 0x0800, 6, 4, _REQUEST)
    return _HEADER.pack(_BROADCAST, own, *arp, own, bytes(4), bytes(6), target)


def answer(frame: bytes, address: str) -> str:
    """The hardware address in a frame that says who has `address`; empty for every other frame."""
    if len(frame) < _HEADER.size:
        return ""
    _, _, kind, _, _, _, _, operation, sender, protocol, _, _ = _HEADER.unpack(frame[: _HEADER.size])
    if kind != _ETHERTYPE or operation != _REPLY or protocol != ipaddress.IPv4Address(address).packed:
        return ""
    return ":".join(f"{byte:02x}" for byte in sender)


def holder(interface: str, address: str) -> str:
    """Hardware address of whoever has `address` on the link of `interface`; empty when nobody answers in time."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE)) as link:
        link.bind((interface, _ETHERTYPE))
        own = bytes.fromhex(mac(interface).replace(":", ""))
        for _ in range(_TRIES):
            link.send(request(own, address))
            deadline = time.monotonic() + _WAIT_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                link.settimeout(left)
                with contextlib.suppress(socket.timeout):
                    found = answer(link.recv(2048), address)
                    if found:
                        return found
    return ""
