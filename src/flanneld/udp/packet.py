"""IPv4 packets as bytes: their checksum, one hop less, and the ICMP messages that answer them. Pure.

Formats are those of RFC 791 and RFC 792; when an ICMP error may be sent is said in RFC 1122, section 3.2.2.
"""

from __future__ import annotations

import struct
from typing import Union

Buffer = Union[bytes, bytearray, memoryview]

HEADER = 20
"""Octets of the shortest IPv4 header."""

UNREACHABLE, TIME_EXCEEDED = 3, 11
"""Types of ICMP; code 0 means network unreachable and in transit."""

_ERRORS = frozenset({3, 4, 5, 11, 12})
_ICMP_TTL = 64
_QUOTED = 576 - HEADER - 8  # octets of the packet that an ICMP error returns, RFC 1812 section 4.3.2.3
_IP = struct.Struct("!BBHHHBBH4s4s")
_ICMP = struct.Struct("!BBHI")


def checksum(data: Buffer) -> int:
    """Return the Internet checksum (RFC 1071) of `data`."""
    # Adding words with end-around carry is arithmetic modulo 65535, which Python does for a whole packet at once.
    number = int.from_bytes(data, "big") << (len(data) % 2 * 8)
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def one_hop_less(check: int) -> int:
    """Return the header's checksum after its TTL, a high octet, was lowered by one (RFC 1624)."""
    check += 0x100
    return (check + (check >= 0xFFFF)) & 0xFFFF


def icmp_error(kind: int, source: bytes, packet: Buffer) -> bytes:
    """Return the ICMP error (code 0) with which `source` answers `packet`, empty when none may be sent."""
    if len(packet) < HEADER:
        return b""
    first, _, total, _, fragment, _, protocol, _, sender, target = _IP.unpack_from(packet)
    length = (first & 15) * 4
    if fragment & 0x1FFF or not _is_unicast(sender) or not _is_unicast(target):
        return b""
    if protocol == 1 and (len(packet) <= length or packet[length] in _ERRORS):
        return b""
    quoted = bytes(packet[: min(total, _QUOTED)])
    body = _ICMP.pack(kind, 0, 0, 0) + quoted
    body = _ICMP.pack(kind, 0, checksum(body), 0) + quoted
    # TOS 0xc0 (internetwork control), as RFC 1812 section 4.3.2.5 asks of errors.
    parts = (0x45, 0xC0, HEADER + len(body), 0, 0, _ICMP_TTL, 1)
    header = _IP.pack(*parts, 0, source, sender)
    return _IP.pack(*parts, checksum(header), source, sender) + body


def _is_unicast(address: bytes) -> bool:
    """Tell that an address can be one machine's: not of 0/8, not loopback, multicast, reserved or broadcast."""
    return address[0] not in {0, 127} and address[0] < 224
