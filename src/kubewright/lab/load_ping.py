"""Pods that ping each other: echo requests from within their own network namespaces, without a process in the pod."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubewright.errors import UserError

INTERVAL = 0.2
"""Seconds between two requests of a pair."""
_PATIENCE = 1.0  # seconds until a request without an answer is lost
_LOOK = 2.0  # seconds between looks for pods that were replaced
_CLONE_NEWNET = 0x40000000
_REQUEST, _REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")


def enter_network(path: Path) -> None:
    """Put this thread into the network namespace that a file stands for."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as opened:
        if libc.setns(opened.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request (RFC 792)."""
    bare = _HEADER.pack(_REQUEST, 0, 0, identifier, sequence)
    return _HEADER.pack(_REQUEST, 0, checksum(bare), identifier, sequence)


def answered(packet: bytes) -> tuple[int, int] | None:
    """(identifier, sequence) of an echo reply as a raw socket delivers it, with its IP header; None: something else."""
    start = (packet[0] & 0xF) * 4 if packet else 0
    if len(packet) < start + _HEADER.size:
        return None
    kind, _, _, identifier, sequence = _HEADER.unpack_from(packet, start)
    return (identifier, sequence) if kind == _REPLY else None


@dataclass
class Pair:
    """What became of the requests of one pod to another; times are monotonic. `identifier`: in its requests."""

    identifier: int = 0
    sent: int = 0
    lost: int = 0
    longest_gap: float = 0.0
    waiting: dict[int, float] = field(default_factory=dict)
    _last: float | None = None
    _lost_since: bool = False

    def send(self, now: float) -> int:
        """Count a request; returns its sequence number."""
        sequence = self.sent & 0xFFFF
        self.sent += 1
        self.waiting[sequence] = now
        return sequence

    def answer(self, sequence: int) -> None:
        """Count an answer; the gap is that between two requests that were answered, when others between were not."""
        begin = self.waiting.pop(sequence, None)
        if begin is None:
            return
        if self._lost_since and self._last is not None:
            self.longest_gap = max(self.longest_gap, begin - self._last)
        self._last, self._lost_since = begin, False

    def expire(self, now: float) -> None:
        """Count what was not answered in time as lost."""
        for sequence in [one for one, begin in self.waiting.items() if now - begin > _PATIENCE]:
            del self.waiting[sequence]
            self.lost += 1
            self._lost_since = True

    def figures(self) -> dict[str, float]:
        """What is reported."""
        return {"sent": self.sent, "lost": self.lost, "longest_gap_seconds": round(self.longest_gap, 2)}


@dataclass(frozen=True)
class Pod:
    """A pod on this host: the node's name, its address, a process of it and the number of its network namespace."""

    node: str
    address: str
    pid: int
    namespace: int


def pods(token: str, proc: Path = Path("/proc")) -> dict[str, Pod]:
    """Node -> the pod there whose processes have LOAD=token in their environment."""
    found: dict[str, Pod] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = dict(
                one.split("=", 1) for one in (entry / "environ").read_text(errors="replace").split("\0") if "=" in one
            )
            if environment.get("LOAD") != token:
                continue
            namespace = (entry / "ns/net").stat().st_ino
        except OSError:
            continue
        node, address = environment.get("NODE", ""), environment.get("POD_IP", "")
        if node and address:
            found[node] = Pod(node, address, int(entry.name), namespace)
    return found


class Pinger(threading.Thread):
    """Has every pod ping every other one until it is stopped."""

    def __init__(self, look: Callable[[], Mapping[str, Pod]]) -> None:
        super().__init__(daemon=True)
        self._look = look
        self._pods: dict[str, Pod] = {}
        self._sockets: dict[str, socket.socket] = {}
        self.pairs: dict[tuple[str, str], Pair] = {}
        self._identifiers: dict[int, tuple[str, str]] = {}
        self._ending = threading.Event()

    def stop(self) -> dict[str, object]:
        """End after the last answers; returns the figures."""
        self._ending.set()
        self.join(10)
        pairs = {f"{source}>{target}": pair.figures() for (source, target), pair in sorted(self.pairs.items())}
        return {
            "sent": sum(pair.sent for pair in self.pairs.values()),
            "lost": sum(pair.lost for pair in self.pairs.values()),
            "longest_gap_seconds": max((one["longest_gap_seconds"] for one in pairs.values()), default=0.0),
            "pairs": pairs,
        }

    def run(self) -> None:
        """Send, receive, and look for pods that were replaced."""
        home = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        with home.open("rb") as own:
            at_home = Path(f"/proc/self/fd/{own.fileno()}")
            looked = sending = 0.0
            while not self._ending.is_set():
                now = time.monotonic()
                if now - looked >= _LOOK:
                    self._follow(at_home)
                    looked = now
                if now - sending >= INTERVAL:
                    sending = now
                    self._send()
                self._receive()
                self._ending.wait(0.01)
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < end:
                self._receive()
                time.sleep(0.01)
            self._expire(end + _PATIENCE)

    def _follow(self, home: Path) -> None:
        """Take over the pods that are there now; one that went takes what it had not answered with it, as lost."""
        found = dict(self._look())
        for node in [node for node, pod in self._pods.items() if found.get(node) != pod]:
            self._sockets.pop(node).close()
            del self._pods[node]
        for node, pod in found.items():
            if node not in self._pods:
                try:
                    enter_network(Path(f"/proc/{pod.pid}/ns/net"))
                    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
                except OSError:
                    continue  # it went meanwhile
                finally:
                    enter_network(home)
                opened.setblocking(False)
                self._pods[node], self._sockets[node] = pod, opened

    def _send(self) -> None:
        for source, opened in self._sockets.items():
            for target, pod in self._pods.items():
                if source == target:
                    continue
                key = (source, target)
                if key not in self.pairs:
                    self.pairs[key] = Pair(len(self.pairs) + 1)
                    self._identifiers[len(self.pairs)] = key
                pair = self.pairs[key]
                sequence = pair.send(time.monotonic())
                try:
                    opened.sendto(request(pair.identifier, sequence), (pod.address, 0))
                except OSError:
                    continue  # no route, for example: it stays without an answer

    def _receive(self) -> None:
        for source, opened in self._sockets.items():
            while True:
                try:
                    found = answered(opened.recv(2048))
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an error that an earlier request has come back with
                if found is not None and self._identifiers.get(found[0], ("", ""))[0] == source:
                    self.pairs[self._identifiers[found[0]]].answer(found[1])
        self._expire(time.monotonic())

    def _expire(self, now: float) -> None:
        for pair in self.pairs.values():
            pair.expire(now)


def wait_for_pods(token: str, count: int, seconds: float) -> None:
    """Wait until pods run on so many nodes; `UserError` when they do not."""
    end = time.monotonic() + seconds
    while len(found := pods(token)) < count:
        if time.monotonic() > end:
            raise UserError(
                f"test pods run on {len(found)} of {count} nodes after {seconds:.0f} s: {', '.join(sorted(found))}",
                "kubectl --namespace kubewright-load get pods -o wide tells why",
            )
        time.sleep(0.2)
