"""The extension backend: the user's own commands bring the network about, as with the Go daemon.

Keys of Backend, each a command line for `sh -c` (as up to the Go daemon's v0.28.1; later ones split it at blanks, which
broke its own samples). What a command needs is in its environment, never put into its text:

PreStartupCommand    before the lease, until it has succeeded once; what it prints, stripped, is announced as
                     BackendData, a JSON string
PostStartupCommand   NETWORK SUBNET IPV6SUBNET PUBLIC_IP PUBLIC_IPV6, once there is a lease
SubnetAddCommand     SUBNET PUBLIC_IP (and IPV6SUBNET PUBLIC_IPV6 where the peer has them); input: its BackendData
SubnetRemoveCommand  the same
ShutdownCommand      is not run, as with the Go daemon: in its samples it deletes the device, and a restart of the
                     daemon must not interrupt anybody

Whoever may write the network's configuration has commands run by root on every machine. So it is with the Go daemon;
a flag to permit it would break every unit file in use, so it is said in the log instead.

Commands run one after the other in a thread. What has to be done follows from comparing the peers there are with those
that were added: a peer whose data has changed is removed and added, a failing SubnetAddCommand is tried again at
lengthening intervals, a failing SubnetRemoveCommand is not (what it would remove may be gone with its device). A new
start adds all peers again.
"""

from __future__ import annotations

import threading
import time
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

from flanneld.backend import shell
from flanneld.backend.base import Backend, Existing, Underlay
from flanneld.dataplane import Desired, Ownership
from flanneld.errors import NetworkError
from flanneld.log import Repeated, logger
from flanneld.subnet.config import NetworkConfig, words
from flanneld.subnet.lease import Lease

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_PATIENCE = 2.0  # seconds that `close` waits for a running command
_NAMED = 10  # failing peers that are named in the log


class Commands(NamedTuple):
    """The command lines, empty where there is none."""

    pre: str
    post: str
    add: str
    remove: str
    shutdown: str


def parse_commands(config: NetworkConfig) -> Commands:
    """Return the commands of the configuration; raises ConfigError for one that is not a string."""
    names = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand", "ShutdownCommand")
    return Commands(*(words(config.backend, name).strip() for name in names))


class Call(NamedTuple):
    """What a command for a peer is given."""

    variables: Tuple[Tuple[str, str], ...]
    text: str


def peer_call(lease: Lease) -> Union[str, List[Call]]:
    """Return what the commands for a peer are given, as the one member of a list; or why the lease cannot be used."""
    data = lease.attributes.backend_data
    if data is not None and not isinstance(data, str):
        return "its BackendData is not a string"
    return [Call(_variables(lease), "" if data is None else f"{data}\n")]


def _variables(lease: Lease) -> Tuple[Tuple[str, str], ...]:
    """Return SUBNET and PUBLIC_IP, and their counterparts for IPv6, as far as the lease has them."""
    attributes = lease.attributes
    found = (
        ("SUBNET", str(lease.subnet(4) or "")),
        ("PUBLIC_IP", attributes.public_ip),
        ("IPV6SUBNET", str(lease.subnet(6) or "")),
        ("PUBLIC_IPV6", attributes.public_ipv6),
    )
    return tuple((name, value) for name, value in found if value)


class _Failure(NamedTuple):
    """A SubnetAddCommand that failed; `at` is monotonic time of the next attempt."""

    text: str
    pause: float
    at: float


class ExtensionBackend(Backend):
    """Runs the commands. `update` hands the peers over to the thread."""

    type = "extension"
    announced = "extension"

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        super().__init__(config, underlay)
        self.mtu = underlay.mtu
        self._commands = parse_commands(config)
        self._data: Optional[str] = None
        self._told = False
        self._own: Optional[Lease] = None
        self._worker: Optional[Worker] = None

    def prepare(self, existing: Existing) -> None:
        """Run PreStartupCommand, once: the daemon asks again while there is no lease. Raises NetworkError."""
        del existing
        if not self._told:
            self._told = True
            logger.warning(
                "the network configuration has this machine run commands: who may write it is root on every machine"
            )
            if self._commands.shutdown:
                logger.info("ShutdownCommand is not run: the network outlives the daemon")
        if not self._commands.pre or self._data is not None:
            return
        result = shell.run(self._commands.pre, {})
        if result.failure:
            raise NetworkError(f"PreStartupCommand {result.failure}", "run it by hand as root to see why")
        self._data = result.output.strip()

    def data(self, version: int) -> Optional[str]:
        """Return what PreStartupCommand has printed."""
        return self._data if version == 4 else None

    def start(self, own: Lease) -> None:
        """Run PostStartupCommand, then the commands for the peers, in a thread."""
        self._own = own
        variables = dict(_variables(own))
        networks = self.config.networks
        variables["NETWORK"] = str(networks.get(4) or networks.get(6) or "")
        for name in ("SUBNET", "IPV6SUBNET", "PUBLIC_IP", "PUBLIC_IPV6"):
            variables.setdefault(name, "")
        self._worker = Worker(self._commands, variables)
        self._worker.start()

    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return an overlay without anything: the kernel is the commands' affair."""
        del own, leases
        return Desired(self.ownership())

    def update(self, leases: Iterable[Lease]) -> None:
        """Have the commands run for peers that came, went or changed."""
        if self._own is None or self._worker is None:
            return
        found = self.remembered(self._own, leases, peer_call)
        self._worker.set_peers({lease.name: call for lease, (call,) in found})

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Use other commands from now on; those that were run stay run."""
        super().follow(config, underlay)
        self.forget()
        self.mtu = underlay.mtu
        self._commands = parse_commands(config)
        if self._worker is not None:
            self._worker.commands = self._commands

    def trouble(self) -> str:
        """Return which command fails or has still to be run before the daemon is ready."""
        return self._worker.trouble() if self._worker is not None else ""

    def close(self) -> None:
        """End the thread; a command that runs is left to its end."""
        if self._worker is not None:
            self._worker.stop()

    def ownership(self) -> Ownership:
        """Return that nothing is owned: routes within the network may be the commands'."""
        return Ownership({})


class Worker(threading.Thread):
    """Runs the commands one by one. `commands` may be replaced at any time."""

    def __init__(self, commands: Commands, own: Mapping[str, str]) -> None:
        super().__init__(name="extension", daemon=True)
        self.commands = commands
        self._own = own
        self._changed = threading.Condition()
        self._stopped = False
        self._wanted: Optional[Mapping[str, Call]] = None
        self._added: Dict[str, Call] = {}  # also where the command failed: it may have done a part
        self._failures: Dict[str, _Failure] = {}
        self._post_failure = "has not been run yet" if commands.post else ""
        self._settled = False
        self._repeated: Dict[str, Repeated] = {}

    def set_peers(self, calls: Mapping[str, Call]) -> None:
        """Say which peers there are."""
        with self._changed:
            if calls != self._wanted:
                self._wanted = dict(calls)
                self._changed.notify()

    def stop(self) -> None:
        """Run no further command."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.join(_PATIENCE)

    def trouble(self) -> str:
        """Return what is not as it should be."""
        with self._changed:
            if self._post_failure:
                return f"PostStartupCommand {self._post_failure}"
            for name, failure in sorted(self._failures.items()):
                more = f", and for {len(self._failures) - 1} more" if len(self._failures) > 1 else ""
                return f"SubnetAddCommand for {name} {failure.text}{more}"
            return "" if self._settled else "the commands for the peers have not all been run yet"

    def run(self) -> None:
        """Do what is next until stopped."""
        if not self._post_startup():
            return
        while True:
            with self._changed:
                job = self._next()
                while job is None and not self._stopped:
                    self._changed.wait(self._pause())
                    job = self._next()
                if self._stopped or job is None:
                    return
            self._do(*job)

    def _post_startup(self) -> bool:
        pause = _FIRST_PAUSE
        while self.commands.post:
            failure = shell.run(self.commands.post, self._own).failure
            with self._changed:
                self._post_failure = failure
                if not failure:
                    break
                self._warn("PostStartupCommand", f"PostStartupCommand {failure}; trying again")
                self._changed.wait_for(lambda: self._stopped, pause)
                if self._stopped:
                    return False
            pause = min(pause * 2, _LONGEST_PAUSE)
        return True

    def _next(self) -> Optional[Tuple[bool, str, Call]]:
        """Return (to be added, peer, call): removals first, so that a changed peer is removed before it is added."""
        if self._wanted is None:
            return None
        for name, call in self._added.items():
            if self._wanted.get(name) != call:
                return False, name, call
        now = time.monotonic()
        for name, call in self._wanted.items():
            failure = self._failures.get(name)
            if name not in self._added or (failure is not None and failure.at <= now):
                return True, name, call
        self._settled = True
        return None

    def _pause(self) -> Optional[float]:
        """Return the seconds until something failed is tried again, None when nothing is."""
        times: List[float] = [failure.at for failure in self._failures.values()]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _do(self, to_be_added: bool, name: str, call: Call) -> None:
        command, kind = (
            (self.commands.add, "SubnetAddCommand") if to_be_added else (self.commands.remove, "SubnetRemoveCommand")
        )
        failure = shell.run(command, dict(call.variables), call.text).failure if command else ""
        if not failure:
            logger.debug("%s for %s done", kind, name)
        elif name in self._failures or len(self._failures) < _NAMED:
            self._warn(name, f"{kind} for {name} {failure}" + ("; trying again" if to_be_added else ""))
        with self._changed:
            if failure and to_be_added:
                before = self._failures.get(name)
                pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
                self._failures[name] = _Failure(failure, pause, time.monotonic() + pause)
            else:
                self._failures.pop(name, None)
                self._repeated.pop(name, None)
            if to_be_added:
                self._added[name] = call
            else:
                del self._added[name]

    def _warn(self, about: str, text: str) -> None:
        self._repeated.setdefault(about, Repeated()).warn(text)
