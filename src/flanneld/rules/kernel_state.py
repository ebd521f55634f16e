"""Asks the kernel's packet filter whether chains have changed, without starting a program.

The answers are compared with earlier ones and mean nothing else. nf_tables has a generation number, which every change
of anything raises; it is asked for over netfilter's netlink protocol, and for the rules of single chains when it has
changed. The older ip_tables hands out a table as one block of memory, of which the chains in question are taken.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Hashable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from flanneld.net import wire

if TYPE_CHECKING:
    import ctypes


class Watched(NamedTuple):
    """A chain, and the built-in one that jumps to it (empty when none does), of a table of an IP version."""

    version: int
    table: str
    chain: str
    parent: str = ""


State = Optional[Hashable]
"""What is compared; None when the kernel cannot be asked."""

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN, _NEWRULE, _GETRULE, _GETGEN = 1, 4, 6, 7, 16
_CHANGING = {b"counter\0", b"quota\0", b"last\0"}
"""Expressions whose data every packet changes."""
_FAMILY = {4: 2, 6: 10}
_ANSWERS = 100_000  # of one dump; more is a loop
_SECONDS = 2.0


class NftablesState:
    """The state of chains in nf_tables: of nft's tables, and of iptables in its nft variant."""

    def __init__(self, chains: Sequence[Watched]) -> None:
        self._chains = chains
        self._socket: Optional[socket.socket] = None
        self._generation = -1
        self._state: State = None

    def read(self) -> State:
        """Return the state. While nothing at all has changed this is one question to the kernel."""
        try:
            generation = self._ask_generation()
            if generation != self._generation or self._state is None:
                self._state = tuple(self._chain(one) for one in self._chains)
                self._generation = generation
        except OSError:
            self.close()
            return None
        return self._state

    def has_table(self, version: int, table: str) -> bool:
        """Tell whether a table is there; raises OSError when the kernel cannot be asked."""
        return any(True for _ in self._request(_GETTABLE, _FAMILY[version], _text(1, table), 0))

    def close(self) -> None:
        """Close the socket; the next question opens a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._state = None, None

    def _ask_generation(self) -> int:
        for _, payload in self._request(_GETGEN, 0, b"", 0):
            return int.from_bytes(wire.attributes(payload).get(1, b""), "big")
        return -1

    def _chain(self, one: Watched) -> bytes:
        digest = hashlib.sha256()
        family = _FAMILY[one.version]
        if not one.parent:
            # A base chain of the daemon's own: its hook, policy and type.
            for _, payload in self._request(_GETCHAIN, family, _text(1, one.table) + _text(3, one.chain), 0):
                fields = wire.attributes(payload)
                digest.update(repr([fields.get(kind) for kind in (4, 5, 7)]).encode())
        for chain in filter(None, (one.chain, one.parent)):
            digest.update(chain.encode())
            for kind, payload in self._request(_GETRULE, family, _text(1, one.table) + _text(2, chain), wire.DUMP):
                if kind == _SUBSYSTEM | _NEWRULE:
                    digest.update(repr(_rule(payload)).encode())
                else:
                    digest.update(b"?")  # an interrupted dump, which equals no complete one
        return digest.digest()

    def _request(self, message: int, family: int, attributes: bytes, flags: int) -> Iterator[Tuple[int, bytes]]:
        """Yield (type, attributes) of each answer; nothing when there is no such thing."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._socket.settimeout(_SECONDS)
        body = struct.pack("=BBH", family, 0, 0) + attributes
        self._socket.send(wire.frame(_SUBSYSTEM | message, wire.REQUEST | flags, 0, body))
        seen = 0
        answers: List[Tuple[int, bytes]] = []
        while seen < _ANSWERS:
            for answer in wire.messages(self._socket.recv(1 << 16)):
                seen += 1
                if answer.flags & wire.INTERRUPTED:
                    answers.append((0, b""))
                if answer.kind == wire.ERROR:
                    number = wire.error_code(answer)
                    if number == errno.ENOENT:  # no such table or chain
                        return iter(())
                    raise OSError(number, "netfilter")
                if answer.kind == wire.DONE:
                    return iter(answers)
                answers.append((answer.kind, answer.body[4:]))
                if not flags & wire.DUMP:
                    return iter(answers)
        raise OSError("an endless dump")


def _text(kind: int, text: str) -> bytes:
    return wire.attribute(kind, text.encode() + b"\0")


def _rule(payload: bytes) -> List[Tuple[bytes, bytes]]:
    """Return a rule's expressions as (name, data), and its comment. Its number is no help: a replaced rule keeps it."""
    fields = wire.attributes(payload)
    found = [(b"", fields.get(7, b""))]
    for _, item in wire.listed(fields.get(4, b"")):
        expression = wire.attributes(item)
        name = expression.get(1, b"")
        found.append((name, b"" if name in _CHANGING else expression.get(2, b"")))
    return found


class _Layout(NamedTuple):
    """Where things are in ip_tables' entries: offsets in octets on 64-bit machines (linux/netfilter_*/ip*_tables.h)."""

    family: int
    level: int
    target: int
    next: int
    counters: int
    size: int


_LAYOUTS = {
    4: _Layout(socket.AF_INET, socket.IPPROTO_IP, 88, 90, 96, 112),
    6: _Layout(socket.AF_INET6, socket.IPPROTO_IPV6, 140, 142, 152, 168),
}
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
_TABLE_HEADER = 40
_ERROR_TARGET = 64
_HOOKS = {"FORWARD": 2, "POSTROUTING": 4}
_LARGEST = 64 << 20
_SHARE = 0.001
"""Part of a core that reading whole tables may take, where it takes more than _CHEAP seconds at once."""
_CHEAP = 0.005


class LegacyState:
    """The state of chains in ip_tables and ip6_tables: a digest of the rules in the chain and in its parent.

    The kernel gives a table only as a whole, which takes tens of milliseconds where it has tens of thousands of rules.
    Then it is asked for less often, as long as number and size of the rules stay the same.
    """

    def __init__(self, chains: Sequence[Watched]) -> None:
        self._chains = chains
        self._sizes: State = None
        self._state: State = None
        self._again = 0.0

    def read(self) -> State:
        """Return the state."""
        if sys.maxsize <= 1 << 32:
            return None  # the layout of 32-bit machines differs from one to the other
        try:
            sizes = tuple(_table(one.version, one.table) for one in self._chains)
            if sizes != self._sizes or time.monotonic() >= self._again:
                began = time.thread_time()
                self._state = tuple(self._chain(one, size) for one, size in zip(self._chains, sizes))
                self._sizes = sizes
                took = time.thread_time() - began
                self._again = time.monotonic() + (took / _SHARE if took > _CHEAP else 0)
        except (OSError, ImportError, ValueError, struct.error, IndexError):
            self.close()
            return None
        return self._state

    def close(self) -> None:
        """Forget what was read."""
        self._sizes, self._state = None, None

    @staticmethod
    def _chain(one: Watched, size: "_Table") -> bytes:
        layout = _LAYOUTS[one.version]
        blob = _entries(layout, one.table, size.size)
        hook = _HOOKS[one.parent]
        digest = hashlib.sha256()
        own: Optional[int] = None
        for at, following in _walk(blob, layout, size.first[hook], size.last[hook]):
            name = _jumps_to(blob, layout, at, following)
            entry = _content(blob, layout, at, following)
            if name is not None:
                # The target's position moves whenever any chain before it grows: its name does not.
                entry = entry[:-8] + name
                if name == one.chain.encode():
                    own = _verdict(blob, following)
            digest.update(b"%d:" % len(entry) + entry)
        if own is None:
            return b""
        for at, following in _walk(blob, layout, own, len(blob)):
            if _target_name(blob, layout, at) == b"ERROR":  # the head of the next chain, or the end of the table
                break
            entry = _content(blob, layout, at, following)
            digest.update(b"%d:" % len(entry) + entry)
        return digest.digest()


class _Table(NamedTuple):
    """First and last positions of the built-in chains by hook, and how many entries of how many octets there are."""

    first: Tuple[int, ...]
    last: Tuple[int, ...]
    entries: int
    size: int


def _table(version: int, table: str) -> _Table:
    """Ask for the size of a table. Raises OSError."""
    import ctypes  # noqa: PLC0415 - only this variant needs it

    info = ctypes.create_string_buffer(_INFO.size)
    struct.pack_into("=32s", info, 0, table.encode())
    _get(_LAYOUTS[version], _GET_INFO, info)
    fields = _INFO.unpack_from(info)
    return _Table(fields[2:7], fields[7:12], fields[12], fields[13])


def _entries(layout: _Layout, table: str, size: int) -> memoryview:
    """Ask for all entries of a table; refused with EAGAIN when the size has changed. Raises OSError."""
    import ctypes  # noqa: PLC0415 - as above

    if size > _LARGEST:
        raise OSError(errno.EFBIG, table)
    entries = ctypes.create_string_buffer(_TABLE_HEADER + size)
    struct.pack_into("=32sI", entries, 0, table.encode(), size)
    _get(layout, _GET_ENTRIES, entries)
    return memoryview(entries).cast("B")[_TABLE_HEADER:]


def _get(layout: _Layout, option: int, buffer: "ctypes.Array[ctypes.c_char]") -> None:
    """Call getsockopt with a buffer that is also read by the kernel, which the socket module cannot."""
    import ctypes  # noqa: PLC0415 - as above

    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_uint(len(buffer))
    with socket.socket(layout.family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as asking:
        if libc.getsockopt(asking.fileno(), layout.level, option, buffer, ctypes.byref(length)) < 0:
            raise OSError(ctypes.get_errno(), "getsockopt")


def _walk(blob: memoryview, layout: _Layout, start: int, end: int) -> Iterator[Tuple[int, int]]:
    """Yield position and end of the entries from `start` to the one at `end`."""
    at = start
    while at <= end and at + layout.size <= len(blob):
        following = at + int(struct.unpack_from("=H", blob, at + layout.next)[0])
        if following <= at:
            raise ValueError("a malformed table")
        yield at, following
        at = following


def _content(blob: memoryview, layout: _Layout, at: int, following: int) -> bytes:
    """Return an entry without what changes by itself: the kernel's scratch word and the counters after it."""
    return bytes(blob[at : at + layout.next + 2]) + bytes(blob[at + layout.size : following])


def _target_name(blob: memoryview, layout: _Layout, at: int) -> bytes:
    target = at + int(struct.unpack_from("=H", blob, at + layout.target)[0])
    return bytes(blob[target + 2 : target + 31]).split(b"\0", 1)[0]


def _verdict(blob: memoryview, following: int) -> int:
    return int(struct.unpack_from("=i", blob, following - 8)[0])


def _jumps_to(blob: memoryview, layout: _Layout, at: int, following: int) -> Optional[bytes]:
    """Return the name of the chain that an entry jumps to, None when it jumps to none."""
    if _target_name(blob, layout, at) != b"" or _verdict(blob, following) < 0:
        return None
    head = _verdict(blob, following) - _ERROR_TARGET + 32
    return bytes(blob[head : head + 30]).split(b"\0", 1)[0] if head >= 0 else None
