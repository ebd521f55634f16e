"""Moves packets between the TUN and the UDP socket, both without blocking.

On the wire a datagram is one IPv4 packet, nothing else. Each direction takes one hop off, as the Go daemon does.

What makes it fast: neighbouring packets of one size for one machine leave in a single system call (UDP_SEGMENT), and
arrive in one (UDP_GRO); the kernel cuts and joins them. Where it cannot, every packet goes by itself. Reading TCP
segments of 64 KB from the TUN and cutting them here was tried, and took more time for the checksums than it saved.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import Dict, List, Optional, Tuple

from flanneld.udp import packet
from flanneld.udp.peers import Machine, Peers

_UDP_SEGMENT, _UDP_GRO = 103, 104
_SEGMENTS = 64  # of one system call, the limit of kernels before 6.9
_DATAGRAM = 65000  # octets of one system call; the kernel's limit includes headers
_TURN = 128  # packets or calls of one direction before the other one has its turn
_ANCILLARY = socket.CMSG_SPACE(4)
_BURST, _RATE = 20, 50  # ICMP errors at once, and in a second
_DRAIN_MS = 50  # that a full socket is waited for
_ALIVE = {errno.EAGAIN, errno.EINTR}

_OUT = struct.Struct("!BBH4xI")  # from the TTL on: TTL, protocol, checksum, destination
_TTL = struct.Struct("!BBH")
_IN = struct.Struct("!BxH4xBBH4xI")  # version and length, total length, TTL, protocol, checksum, destination


class TunLostError(Exception):
    """The TUN is gone, or not usable any more."""


class Limit:
    """At most `burst` at once and `rate` a second: a token bucket."""

    def __init__(self, burst: int, rate: int) -> None:
        self._burst, self._rate = burst, rate
        self._left = float(burst)
        self._at = 0.0

    def permits(self, now: float) -> bool:
        """Tell whether one more is allowed at this monotonic time, and count it."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Pump:
    """The data path between one TUN and one socket, which can be exchanged. `counts`: what happened, by name.

    Names: sent and received (packets), malformed, stray (not for the own subnet), unroutable (no lease), expired
    (TTL), unsent and unwritten (refused by the kernel, the reason in `refused`).
    """

    def __init__(self) -> None:
        self.tun = -1
        self.socket: Optional[socket.socket] = None
        self.peers = Peers()
        self.counts: Dict[str, int] = {}
        self.refused = ""
        self._own, self._mask, self._first = 0, 0xFFFFFFFF, b""
        self._gather = True
        self._waited = False
        self._out = bytearray(_DATAGRAM + 65536)
        self._out_view = memoryview(self._out)
        self._in = bytearray(65536)
        self._in_view = memoryview(self._in)
        self._limit = Limit(_BURST, _RATE)

    def own(self, address: int, mask: int) -> None:
        """Take packets for this subnet, and answer as its first address."""
        self._own, self._mask = address, mask
        self._first = address.to_bytes(4, "big")

    def use_socket(self, sock: socket.socket, *, gather: bool = True) -> None:
        """Send and receive through `sock`, which is bound; `gather`: several packets at a time where possible."""
        sock.setblocking(False)
        self._gather = gather and _accepts(sock, _UDP_SEGMENT, 0)
        if gather:
            _accepts(sock, _UDP_GRO, 1)
        if self.socket is not None:
            self.socket.close()
        self.socket = sock

    def send(self) -> None:
        """Carry what the TUN has to the machines, as many packets as are a turn; raises TunLostError."""
        buffer, view, tun = self._out, self._out_view, self.tun
        answers, find, readv = self.peers.answers, self.peers.find, os.readv
        self._waited = False
        start = at = size = number = 0
        to: Optional[Machine] = None
        for _ in range(_TURN):
            try:
                length = readv(tun, (view[at:],))
            except OSError as error:
                if error.errno in _ALIVE:
                    break
                raise TunLostError(error.strerror) from None
            if length < packet.HEADER or buffer[at] >> 4 != 4:
                continue  # IPv6 that the kernel sends on every device: neighbour discovery and the like
            ttl, protocol, check, target = _OUT.unpack_from(buffer, at + 8)
            try:
                machine = answers[target]
            except KeyError:
                machine = find(target)
            if machine is None or ttl <= 1:
                self._refuse(view[at : at + length], target)
                continue
            _TTL.pack_into(buffer, at + 8, ttl - 1, protocol, packet.one_hop_less(check))
            if number and (machine != to or length > size or number == _SEGMENTS or at + length - start > _DATAGRAM):
                self._transmit(view[start:at], size, number, to)
                start, number = at, 0
            if not number:
                start, size, to = at, length, machine
            at += length
            number += 1
            if length < size or at > _DATAGRAM:
                self._transmit(view[start:at], size, number, to)
                start = at = number = 0
        if number:
            self._transmit(view[start:at], size, number, to)

    def receive(self) -> None:
        """Carry what machines sent into the TUN, as many datagrams as are a turn; raises TunLostError."""
        sock = self.socket
        if sock is None:
            return
        for _ in range(_TURN):
            try:
                length, ancillary, _, _ = sock.recvmsg_into((self._in,), _ANCILLARY)
            except OSError as error:
                if error.errno not in _ALIVE:  # an ICMP error for an earlier datagram
                    self._failed("unsent", error)
                    continue
                return
            size = length
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
                    size = struct.unpack_from("=i", value)[0]
            self._deliver(length, max(size, 1))

    def _deliver(self, length: int, size: int) -> None:
        """Write the packets of one call, `size` octets each and the last one perhaps shorter, into the TUN."""
        buffer, view, own, mask = self._in, self._in_view, self._own, self._mask
        number = 0
        for at in range(0, length or 1, size):
            octets = min(size, length - at)
            if octets < packet.HEADER:
                self._count("malformed")
                continue
            first, total, ttl, protocol, check, target = _IN.unpack_from(buffer, at)
            if first >> 4 != 4 or not packet.HEADER <= (first & 15) * 4 <= total <= octets:
                self._count("malformed")
                continue
            if target & mask != own:
                self._count("stray")
                continue
            if ttl <= 1:
                self._expired(view[at : at + total])
                continue
            _TTL.pack_into(buffer, at + 8, ttl - 1, protocol, packet.one_hop_less(check))
            number += self._write(view[at : at + total])
        self._count("received", number)

    def _refuse(self, view: memoryview, target: int) -> None:
        """Answer a packet of this machine that is not sent: nobody has its destination, or its TTL is used up.

        An answer with an own address as its source, which is what the Go daemon sends, is dropped by the kernel as
        spoofed. One that is behind the TUN passes, reverse path filter or not: that of the other machine's TUN, and
        where there is no other machine, the address that nobody has.
        """
        first = self.peers.first(target)
        if first is None:
            self._count("unroutable")
            kind, source = packet.UNREACHABLE, target
        else:
            self._count("expired")
            kind, source = packet.TIME_EXCEEDED, first
        answer = self._permitted(packet.icmp_error(kind, source.to_bytes(4, "big"), view))
        if answer:
            self._write(answer)

    def _expired(self, view: memoryview) -> None:
        """Answer a packet of another machine whose TTL is used up here."""
        self._count("expired")
        answer = self._permitted(packet.icmp_error(packet.TIME_EXCEEDED, self._first, view))
        machine = self.peers.find(int.from_bytes(answer[16:20], "big")) if answer else None
        if machine is not None:
            self._transmit(memoryview(answer), len(answer), 1, machine)

    def _permitted(self, answer: bytes) -> bytes:
        return answer if answer and self._limit.permits(time.monotonic()) else b""

    def _write(self, data: packet.Buffer) -> bool:
        try:
            os.write(self.tun, data)
        except OSError as error:
            self._failed("unwritten", error)
            if error.errno == errno.EBADFD:
                raise TunLostError(error.strerror) from None
            return False
        return True

    def _transmit(self, view: memoryview, size: int, number: int, to: Optional[Machine]) -> None:
        """Send `number` packets of `size` octets, the last one perhaps shorter, in one call where possible."""
        sock = self.socket
        if sock is None:
            return
        if number > 1 and self._gather:
            try:
                self._patiently(sock, view, [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size))], to)
                self._count("sent", number)
                return
            except OSError as error:
                # EIO: the interface cannot compute checksums. EINVAL and EMSGSIZE: larger than the path's MTU.
                if error.errno == errno.EIO:
                    self._gather = False
                elif error.errno not in {errno.EINVAL, errno.EMSGSIZE}:
                    self._failed("unsent", error, number)
                    return
        for at in range(0, len(view), size):
            try:
                self._patiently(sock, view[at : at + size], [], to)
                self._count("sent")
            except OSError as error:
                self._failed("unsent", error)

    def _patiently(
        self, sock: socket.socket, view: memoryview, ancillary: List[Tuple[int, int, bytes]], to: Optional[Machine]
    ) -> None:
        """Send; when the socket's buffer is full, wait a moment: meanwhile the TUN's queue tells senders to slow.

        That is done once in a turn, so that an interface which takes nothing holds nobody else up.
        """
        try:
            sock.sendmsg((view,), ancillary, 0, to)
        except BlockingIOError:
            if self._waited:
                raise
            room = select.poll()
            room.register(sock, select.POLLOUT)
            self._waited = not room.poll(_DRAIN_MS)
            sock.sendmsg((view,), ancillary, 0, to)

    def _count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def _failed(self, name: str, error: OSError, number: int = 1) -> None:
        self._count(name, number)
        self.refused = error.strerror or str(error)


def _accepts(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_UDP, option, value)
    except OSError:
        return False
    return True
