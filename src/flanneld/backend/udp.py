"""The udp backend: every packet of the pod network goes through flanneld itself, as the payload of a UDP datagram.

The wire is the Go daemon's: a datagram is one IPv4 packet, sent to a machine's PublicIP and the own configured port. A
lease says nothing about the backend, so every lease with an IPv4 subnet is used.

Datagrams are taken from any address: machines behind NAT, or with a -public-ip that is not the address they send from,
have another one than their leases say. But only packets for the own subnet go further, as nothing else is ever sent
here, so that the port is no way into the machine's other networks.

The daemon holds the TUN and the socket, a child process moves the packets: `udp.child` says why. When it dies, device,
address and route stay, and the next child goes on. A thread here starts it again, opens a TUN anew that was deleted,
renamed or moved to another network namespace, and binds a socket whose address was not there yet.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Union

from flanneld.backend.base import Backend, Underlay
from flanneld.dataplane import Desired, Route, Tun
from flanneld.environment import for_programs
from flanneld.errors import ConfigError, NetworkError
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.subnet.config import NetworkConfig, number
from flanneld.subnet.lease import Lease
from flanneld.udp import port as ports
from flanneld.udp.child import MESSAGE, peers_messages
from flanneld.udp.tun import open_tun, tun_index, tun_name

OVERHEAD = 28
"""Octets of the outer IPv4 and UDP headers."""

_SMALLEST = 68  # MTU of IPv4
_LOOK = 1.0  # seconds between looks at the TUN and retries of what failed
_START = 5.0  # seconds for the child to come up
_STUCK = 2.0  # seconds after which a child that takes no message is replaced
_END = 2.0
_LOSSES = ("malformed", "stray", "unsent", "unwritten")


class UdpBackend(Backend):
    """The main thread's part is guarded by `_lock` against the thread that looks after TUN, socket and child."""

    type = "udp"
    program = "import sys; sys.path.insert(0, sys.argv[1]); from flanneld.udp.child import main; main(int(sys.argv[2]))"
    """What the child runs."""

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        super().__init__(config, underlay)
        self._check(config, underlay)
        if config.ipv6 is not None:
            logger.warning("the udp backend carries IPv4 only: %s is not connected", config.ipv6.network)
        self._lock = threading.Lock()
        self._lease: Optional[Lease] = None
        self._own = ""
        self._table: Dict[str, str] = {}
        self._tun, self._name, self._index = -1, "", 0
        self._socket: Optional[socket.socket] = None
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._control: Optional[socket.socket] = None
        self._started_at = 0.0
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._failures: Dict[str, str] = {}
        self._counted: Dict[str, int] = {}
        self._warnings = {part: Repeated() for part in ("device", "socket", "process", "losses")}

    def start(self, own: Lease) -> None:
        """Open socket and TUN, and start the child. Raises NetworkError; may be called again after that."""
        subnet = own.subnet(4)
        if subnet is None:
            raise NetworkError(f"the own lease {own.name} has no IPv4 subnet", "the udp backend needs one")
        self._lease = own
        with self._lock:
            self._own = str(subnet)
            if self._socket is None:
                self._socket = ports.bind(self._address, self._port)
            if self._tun < 0:
                self._tun, self._name = open_tun()
                self._index = tun_index(self._name)
                logger.info("opened the device %s, UDP port %d of %s", self._name, self._port, self._address)
            if self._control is None:
                self._spawn()
            else:
                self._tell(f"own {self._own}")
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_after, name="udp", daemon=True)
            self._thread.start()
        if not self._ready.wait(_START):
            raise NetworkError("the process of the udp backend does not start", "see its lines in the log")

    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return the TUN with its address, and the one route; what goes where behind it is for `update`."""
        del leases
        subnet, network = own.subnet(4), self.config.networks[4]
        if subnet is None or not self._name:
            return Desired(self.ownership())
        return Desired(
            self.ownership(),
            (Tun(self._name, self.mtu),),
            {self._name: frozenset({f"{subnet.network_address}/32"})},
            routes={str(network): Route(str(network), self._name)},
        )

    def update(self, leases: Iterable[Lease]) -> None:
        """Tell the child which machine has which subnet."""
        if self._lease is None:
            return
        table = {
            str(lease.subnet(4)): lease.attributes.public_ip
            for lease, _ in self.remembered(self._lease, leases, _usable)
        }
        with self._lock:
            gone = [subnet for subnet in self._table if subnet not in table]
            changed = {subnet: address for subnet, address in table.items() if self._table.get(subnet) != address}
            self._table = table
            self._tell_peers(changed, gone)

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Take over another address, port or MTU. What cannot be had now is tried again each second."""
        before = (self._address, self._port)
        self._check(config, underlay)
        super().follow(config, underlay)
        self.forget()
        with self._lock:
            if before == (self._address, self._port) or self._thread is None:
                return
            if before[1] != self._port:
                self._tell_peers(self._table, [])
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._bind()

    def trouble(self) -> str:
        """Return what keeps packets from moving."""
        with self._lock:
            return "; ".join(self._failures.values())

    def close(self) -> None:
        """End the child; the TUN vanishes with what the kernel has on it."""
        self._closed.set()
        with self._lock:
            self._stop()
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if self._tun >= 0:
                os.close(self._tun)
                self._tun, self._name = -1, ""
        if self._thread is not None:
            self._thread.join(_LOOK + _END)
            self._thread = None

    def _check(self, config: NetworkConfig, underlay: Underlay) -> None:
        if config.ipv4 is None:
            raise ConfigError(
                "the udp backend carries IPv4 only, and EnableIPv4 is false", 'use the Backend {"Type": "vxlan"}'
            )
        port = number(config.backend, "Port", 8285, 1, 65535)
        if 4 not in underlay.addresses:
            raise NetworkError(f"interface {underlay.name} has no IPv4 address", "choose another with -iface")
        if underlay.mtu - OVERHEAD < _SMALLEST:
            raise NetworkError(
                f"interface {underlay.name} has the MTU {underlay.mtu}", f"udp needs {_SMALLEST + OVERHEAD} or more"
            )
        self._port, self._address, self.mtu = port, underlay.addresses[4], underlay.mtu - OVERHEAD

    # From here on with the lock held.

    def _spawn(self) -> None:
        """Start the child and give it everything."""
        self._ready.clear()
        self._failures.setdefault("process", "the process of the udp backend is starting")
        self._started_at = time.monotonic()
        try:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._fail("process", f"the process of the udp backend cannot be told anything: {error.strerror}")
            return
        here.settimeout(_STUCK)
        # A directory, or the zip file that flanneld is run from.
        source = str(Path(__file__).parent.parent.parent)
        command = [sys.executable, "-I", "-S", "-c", self.program, source, str(there.fileno())]
        with there:
            try:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, env=for_programs(os.environ), pass_fds=[there.fileno()]
                )
            except OSError as error:
                here.close()
                self._fail("process", f"{sys.executable} cannot be run: {error.strerror}")
                return
        self._control = here
        self._counted = {}
        self._tell(f"own {self._own}")
        self._tell_peers(self._table, [])
        if self._tun >= 0:
            self._tell("tun", self._tun)
        if self._socket is not None:
            self._tell("socket", self._socket.fileno())

    def _stop(self) -> int:
        """End the child; returns its exit status."""
        status = 0
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            try:
                status = self._child.wait(_END)
            except subprocess.TimeoutExpired:
                self._child.kill()
                status = self._child.wait()
            self._child = None
        return status

    def _tell(self, message: str, *descriptors: int) -> None:
        if self._control is None:
            return
        try:
            socket.send_fds(self._control, [message.encode()], descriptors)
        except OSError as error:
            # The thread sees the end of the child, and starts another, which is told everything.
            logger.debug("the process of the udp backend takes no message: %s", error)
            if self._child is not None:
                self._child.kill()

    def _tell_peers(self, there: Mapping[str, str], gone: List[str]) -> None:
        for message in peers_messages(self._port, there, gone):
            self._tell(message)

    def _bind(self) -> None:
        try:
            self._socket = ports.bind(self._address, self._port)
        except NetworkError as error:
            self._fail("socket", str(error))
            return
        self._mend("socket", f"UDP port {self._port} of {self._address} is bound")
        self._tell("socket", self._socket.fileno())

    def _open(self) -> None:
        """Open the TUN anew, under the name that everything on it is programmed for."""
        if self._tun >= 0:
            os.close(self._tun)
            self._tun = -1
        try:
            self._tun, _ = open_tun(self._name)
            self._index = tun_index(self._name)
        except NetworkError as error:
            self._fail("device", str(error))
            return
        self._mend("device", f"opened the device {self._name} again")
        self._tell("tun", self._tun)

    def _fail(self, part: str, reason: str) -> None:
        self._failures[part] = reason
        self._warnings[part].warn(f"udp backend, trying again: {reason}")

    def _mend(self, part: str, text: str = "") -> None:
        self._failures.pop(part, None)
        self._warnings[part].clear(text)

    # The thread.

    def _look_after(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                control = self._control
            if control is None:
                self._closed.wait(_LOOK)
            elif control.fileno() >= 0:
                with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                    self._hear(control)
            with self._lock:
                if not self._closed.is_set():
                    self._repair()

    def _hear(self, control: socket.socket) -> None:
        """Wait for one message of the child and take it."""
        if not select.select([control], [], [], _LOOK)[0]:
            return
        data = control.recv(MESSAGE)
        head, *lines = data.decode().split("\n")
        kind, _, rest = head.partition(" ")
        with self._lock:
            if control is not self._control:
                return
            if not data:
                self._fail("process", f"the process of the udp backend has ended with status {self._stop()}")
                self._ready.clear()
            elif kind == "ready":
                self._mend("process", "the process of the udp backend works again")
                self._ready.set()
            elif kind == "lost":
                self._fail("device", f"the device {self._name} is gone ({rest})")
                self._open()
            elif kind == "counts":
                self._count(lines)

    def _repair(self) -> None:
        if self._control is None and time.monotonic() - self._started_at >= _LOOK:
            self._spawn()
        if self._socket is None:
            self._bind()
        now = tun_name(self._tun) if self._tun >= 0 else ""
        if now != self._name:
            where = f": it is called {now} now" if now else ""
        elif self._index and tun_index(now) == self._index:
            return
        else:
            where = ": it is in another network namespace now"
        self._fail("device", f"the device {self._name} is gone{where}")
        self._open()

    def _count(self, lines: List[str]) -> None:
        """Take the counts over into the figures, and say what is lost."""
        *counts, refused = lines
        reason = refused.partition(" ")[2]
        lost = []
        for line in counts:
            name, text = line.split(" ")
            more = int(text) - self._counted.get(name, 0)
            self._counted[name] = int(text)
            FIGURES.add("flannel_udp_packets_total", more, result=name)
            if more and name in _LOSSES:
                lost.append(name)
        if lost:
            words = ", ".join(lost) + (f": {reason}" if reason else "")
            self._warnings["losses"].warn(f"udp backend: packets are dropped ({words})")


def _usable(lease: Lease) -> Union[str, List[Lease]]:
    """Return why a lease has nothing that this backend could carry, or the lease as the one member of a list."""
    return [lease] if lease.subnet(4) is not None and lease.attributes.public_ip else "it has no IPv4 subnet"
