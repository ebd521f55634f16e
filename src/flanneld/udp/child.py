"""The process of the data path, and what is said between it and the daemon.

A process and not a thread: the control plane would hold the interpreter's lock for milliseconds, at each packet's
cost. A new program and not a fork: a fork of a daemon with threads inherits their locks and connections.

Messages are text in packets of a socket pair, the first word says the kind. From the daemon: `own SUBNET`;
`peers PORT` with lines `+SUBNET ADDRESS` and `-SUBNET`; `tun` and `socket`, each with a descriptor. To the daemon:
`ready` when there is all that is needed, `lost REASON` for the TUN, and `counts` with lines `NAME NUMBER` and, last,
`refused REASON`. The process ends when the daemon's end of the pair is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import Dict, Iterator, List, Mapping, Optional

from flanneld.udp.peers import prefix
from flanneld.udp.pump import Pump, TunLostError

MESSAGE = 1 << 16
"""Octets of the largest message."""

_LINES = 500  # of peers in one message
_NOBODY = 65534
_REPORT = 10.0  # seconds between reports of the counts


def peers_messages(port: int, there: Mapping[str, str], gone: List[str]) -> Iterator[str]:
    """Yield the messages that add the machines `there` by subnet, after removing the subnets `gone`."""
    lines = [f"-{subnet}" for subnet in gone] + [f"+{subnet} {address}" for subnet, address in there.items()]
    for at in range(0, len(lines), _LINES):
        yield "\n".join([f"peers {port}", *lines[at : at + _LINES]])


class Child:
    """The loop over the daemon's messages, the TUN and the socket."""

    def __init__(self, control: socket.socket, *, gather: bool) -> None:
        self._control = control
        self._gather = gather
        self._pump = Pump()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._ready = False
        self._reported: Dict[str, int] = {}
        self._report_at = 0.0

    def run(self) -> None:
        """Work until the daemon is gone."""
        pump = self._pump
        while True:
            for descriptor, _ in self._poll.poll(self._patience()):
                try:
                    if descriptor == pump.tun:
                        pump.send()
                    elif pump.socket is not None and descriptor == pump.socket.fileno():
                        pump.receive()
                    elif descriptor == self._control.fileno() and not self._listen():
                        return
                except TunLostError as lost:
                    self._drop_tun()
                    self._tell(f"lost {lost}")
            self._report()

    def _patience(self) -> Optional[int]:
        """Milliseconds until there is something to report; None when there is nothing."""
        if self._pump.counts == self._reported:
            return None
        return max(0, int((self._report_at - time.monotonic()) * 1000)) + 1

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._report_at or self._pump.counts == self._reported:
            return
        self._report_at = now + _REPORT
        self._reported = dict(self._pump.counts)
        lines = [f"{name} {number}" for name, number in self._reported.items()]
        self._tell("\n".join(["counts", *lines, f"refused {self._pump.refused}"]))
        self._pump.refused = ""

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # the daemon is gone or busy; the counts are sums and come again
            self._control.send(message.encode(), socket.MSG_DONTWAIT)

    def _listen(self) -> bool:
        """Take one message; False when the daemon is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE, 1)
        except OSError:
            return False
        if not data:
            return False
        head, *lines = data.decode().split("\n")
        kind, _, rest = head.partition(" ")
        pump = self._pump
        if kind == "own":
            pump.own(*prefix(rest))
        elif kind == "peers":
            there = dict(line[1:].split(" ") for line in lines if line[0] == "+")
            machines = {subnet: (address, int(rest)) for subnet, address in there.items()}
            pump.peers.change(machines, [line[1:] for line in lines if line[0] == "-"])
        elif kind == "tun":
            self._drop_tun()
            pump.tun = descriptors[0]
            self._poll.register(pump.tun, select.POLLIN)
        elif kind == "socket":
            if pump.socket is not None:
                self._poll.unregister(pump.socket)
            pump.use_socket(socket.socket(fileno=descriptors[0]), gather=self._gather)
            self._poll.register(descriptors[0], select.POLLIN)
        if not self._ready and pump.tun >= 0 and pump.socket is not None:
            self._ready = True
            self._tell("ready")
        return True

    def _drop_tun(self) -> None:
        if self._pump.tun >= 0:
            self._poll.unregister(self._pump.tun)
            os.close(self._pump.tun)
            self._pump.tun = -1


def main(descriptor: int, *, gather: bool = True) -> None:
    """Be the process of the data path. Signals are for the daemon, which ends this process by ending."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:  # noqa: PTH123 - pathlib costs memory
        comm.write("flanneld-udp")
    control = socket.socket(fileno=descriptor)
    _drop_privileges()
    Child(control, gather=gather).run()


def _drop_privileges() -> None:
    """Become nobody, where that is allowed: what reads from the network needs its descriptors and nothing else."""
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
