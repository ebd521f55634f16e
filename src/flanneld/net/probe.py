"""Asks other machines whether they are there, with UDP datagrams to ports that nobody uses.

The answer is the other machine's ICMP "port unreachable", which every kernel sends and which needs no privilege to
receive: it proves both directions. An ICMP error of anybody else tells who dropped the datagram, and why.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Union

FIRST_PORT = 33434
"""Where traceroute's ports begin, which firewalls let through more often than others."""

AT_ONCE = 64
ATTEMPTS = 3

# linux/in.h, linux/in6.h and linux/errqueue.h; the socket module has names for some of them in new versions only.
_RECVERR = {socket.AF_INET: (socket.SOL_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_MTU_DISCOVER = {socket.AF_INET: (socket.SOL_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_MTU = {socket.AF_INET: (socket.SOL_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
_DO = 2
_MSG_ERRQUEUE = 0x2000
_EXTENDED = struct.Struct("=IBBBBII")
_BY_ICMP = {2, 3}
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}


class Target(NamedTuple):
    """Whom to ask, and from which own address (empty = the kernel's choice). `size`: of the whole IP packet, 0 = small.

    A packet of a given size must arrive in one piece.
    """

    address: str
    source: str = ""
    size: int = 0


class Answer(NamedTuple):
    """What came of a target. `reached`: it answered, within `seconds`. `trouble`: else why not, in words.

    `mtu`: the largest packet that the way takes, when the kernel knows that the one sent was too large.
    """

    target: Target
    reached: bool
    seconds: float = 0.0
    trouble: str = ""
    mtu: int = 0


class _Query:
    """One target being asked."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        self.socket = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.begun = self.sent = time.monotonic()
        self.attempts = 0
        self.told = ""
        try:
            self.socket.setsockopt(*_RECVERR[self.family], 1)
            if target.size:
                self.socket.setsockopt(*_MTU_DISCOVER[self.family], _DO)
            if target.source:
                self.socket.bind((target.source, 0))
        except BaseException:
            self.socket.close()
            raise

    def send(self) -> Optional[Answer]:
        """Send the next datagram; returns the answer when the kernel has one at once."""
        size = max(0, self.target.size - _HEADERS[self.family])
        try:
            # Another port each time: somebody may listen, in silence, on one of them.
            self.socket.connect((self.target.address, FIRST_PORT + os.getpid() % 64 + self.attempts))
            self.attempts += 1
            self.sent = time.monotonic()
            self.socket.send(b"\0" * size)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._failed(error)
        return None

    def receive(self) -> Optional[Answer]:
        """Read what came; returns the answer when it settles the matter."""
        now = time.monotonic()
        try:
            _data, ancillary, _flags, _address = self.socket.recvmsg(64, 512, _MSG_ERRQUEUE)
        except OSError:
            ancillary = []
        for _level, _kind, content in ancillary:
            if len(content) >= _EXTENDED.size:
                return self._judge(content, now)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return None
        except OSError as error:
            return None if error.errno == errno.ECONNREFUSED else self._failed(error)
        return Answer(self.target, reached=True, seconds=now - self.sent)  # somebody listens there, and answers

    def _judge(self, content: bytes, now: float) -> Optional[Answer]:
        number, origin, _kind, _code, _pad, info, _data = _EXTENDED.unpack_from(content)
        if origin not in _BY_ICMP:
            return self._failed(OSError(number, os.strerror(number)))
        offender = _offender(content[_EXTENDED.size :])
        if number == errno.EMSGSIZE:
            return Answer(self.target, reached=False, trouble=f"{offender} takes no packet larger", mtu=info)
        if offender == self.target.address:
            return Answer(self.target, reached=True, seconds=now - self.sent)
        own = offender == self.socket.getsockname()[0]
        said = f"{offender} says: {os.strerror(number).lower()}"
        self.told = "no machine on the link has this address" if own else said
        return None

    def _failed(self, error: OSError) -> Optional[Answer]:
        if error.errno == errno.EMSGSIZE:
            try:
                mtu = self.socket.getsockopt(*_MTU[self.family])
            except OSError:
                mtu = 0
            return Answer(self.target, reached=False, trouble="the way takes no packet larger", mtu=mtu)
        if error.errno in {errno.EHOSTUNREACH, errno.ECONNREFUSED}:
            return None  # who says so is in the error queue, or came before
        text = {
            errno.ENETUNREACH: "this machine has no route to it",
            errno.EPERM: "this machine's own firewall drops it",
            errno.EACCES: "this machine's own routes prohibit it",
            errno.EINVAL: "this machine's own routes drop it",
        }.get(error.errno or 0, (error.strerror or str(error)).lower())
        return Answer(self.target, reached=False, trouble=text)

    def given_up(self) -> Answer:
        """Return the answer when the time is over."""
        return Answer(self.target, reached=False, trouble=self.told or "no answer")


def ask(targets: Sequence[Target], timeout: float = 1.0) -> List[Answer]:
    """Ask all targets, many at once, and return what came of them in their order. Each has `timeout` seconds."""
    found: Dict[int, Answer] = {}
    waiting = list(enumerate(targets))[::-1]
    running: Dict[int, _Query] = {}
    with selectors.DefaultSelector() as selector:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                place, target = waiting.pop()
                begun = _begin(target)
                if isinstance(begun, Answer):
                    found[place] = begun
                    continue
                running[place] = begun
                selector.register(begun.socket, selectors.EVENT_READ, place)
            ready = [key.data for key, _ in selector.select(timeout / 20)] if running else []
            now = time.monotonic()
            for place, query in list(running.items()):
                answer = query.receive() if place in ready else None
                if answer is None and now - query.begun >= timeout:
                    answer = query.given_up()
                elif answer is None and now - query.begun >= query.attempts * timeout / ATTEMPTS:
                    answer = query.send()
                if answer is not None:
                    found[place] = answer
                    selector.unregister(query.socket)
                    query.socket.close()
                    del running[place]
    return [found[place] for place in range(len(targets))]


def _begin(target: Target) -> Union[Answer, _Query]:
    try:
        query = _Query(target)
    except OSError as error:
        trouble = f"this machine has no address {target.source}" if target.source else str(error.strerror or error)
        return Answer(target, reached=False, trouble=trouble)
    answer = query.send()
    if answer is not None:
        query.socket.close()
        return answer
    return query


def _offender(address: bytes) -> str:
    """Return the address of a sockaddr_in or sockaddr_in6, empty for anything else."""
    family = struct.unpack_from("=H", address)[0] if len(address) >= 8 else 0
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, address[4:8])
    if family == socket.AF_INET6 and len(address) >= 24:
        return socket.inet_ntop(socket.AF_INET6, address[8:24])
    return ""
