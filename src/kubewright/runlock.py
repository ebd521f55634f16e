"""One run at a time: a lock beside the inventory, and one on the machines for those on other controllers.

The process of ansible-playbook holds a file lock, which the kernel gives back however it ends. On machines a keeper
holds the lock: a process of the controller that waits for the end of the run, then takes the lock away, also after
SIGKILL, and is heard of in between, so that the lock of a controller that was lost ends by itself. When somebody has
taken the lock over, it tells the run, which stops (docs/adr/0009-who-holds-the-lock.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import select
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubewright.machine.lock import BEAT_SECONDS, KEYS, SILENCE_SECONDS

# Descriptors that only the process of the run may have: as long as a copy is open, the run is alive.
_own: list[int] = []

# The run of this process, which forked workers of Ansible see as well.
current: Run | None = None

# (message, hint) of a worker that outlived its run while it waited.
TOO_LATE = (
    "left as it was, because this run ended, or lost its lock, before its turn",
    "the same command again resumes the run",
)


def _forget() -> None:
    while _own:
        os.close(_own.pop())


os.register_at_fork(after_in_child=_forget)


def controller(inventory: Path) -> str:
    """This controller and inventory, in a text that no other host, container or boot has."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space = str(Path("/proc/self/ns/pid").readlink())
    return " ".join([socket.gethostname(), boot, space, str(inventory.resolve())])


def identity(now: float, pid: int) -> str:
    """Name of a run: when it began (UTC) and its process."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{pid}"


def described(holder: Mapping[str, Any], now: float) -> str:
    """Who runs what since when, in words."""
    if not holder:
        return "a run that has just begun"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder["since"]))
    ago = max(0, round(now - holder["since"]))
    age = f"{ago} s" if ago < 120 else f"{ago // 60} min"
    return f"{holder['who']} (pid {holder['pid']}), since {since} ({age} ago): {holder['command']}"


class Run:
    """A run of ansible-playbook that wants the lock beside its inventory, in `directory`.

    `holder`: the one who has it instead, `{}` when unknown, None when this run has it. `killed`: the run before, when
    it did not end by itself. `trouble`: why there can be no lock there.
    """

    def __init__(self, directory: Path, command: str, now: float) -> None:
        self.path = directory / "lock"
        self.me: dict[str, Any] = {
            "id": identity(now, os.getpid()),
            "who": caller(),
            "pid": os.getpid(),
            "since": now,
            "command": command,
            "controller": "",
        }
        self.holder: dict[str, Any] | None = None
        self.killed: dict[str, Any] = {}
        self.trouble = ""
        self._descriptor = -1
        # Workers get the end to read from; nobody but this process has the one to write to.
        self.alive, ours = os.pipe()
        _own.append(ours)
        # Keepers write to it who has taken the lock over.
        self._news, self.tell = os.pipe()
        os.set_blocking(self._news, False)
        try:
            self._take(directory)
        except OSError as error:
            self.trouble = f"{error.filename or self.path}: {error.strerror}"

    def _take(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.holder = read(self.path)
            os.close(descriptor)
            return
        _own.append(descriptor)
        self._descriptor = descriptor
        self.killed = read(self.path)
        self.me["controller"] = controller(directory.parent)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(self.me).encode(), 0)

    def lost_to(self) -> str:
        """Who has taken the lock over, in words; empty as long as nobody has."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._news, select.PIPE_BUF).decode(errors="replace").partition("\n")[0]
        return ""

    def is_over(self) -> bool:
        """Asked by workers, which outlive the run: whether it has ended, or somebody else has the lock."""
        return bool(select.select([self.alive, self._news], [], [], 0)[0])

    def end(self) -> None:
        """The run ends by itself: nothing is left for the next one to tell of."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)


def caller() -> str:
    """Who runs this, on which host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read(path: Path) -> dict[str, Any]:
    """Who is written into a lock; empty when nobody is."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and set(known) >= KEYS else {}


def is_held(path: Path) -> bool:
    """Whether a process holds the lock beside an inventory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def refused_here(holder: Mapping[str, Any], now: float) -> tuple[str, str]:
    """(message, hint): another run of this controller is under way."""
    return (
        f"another run is under way with this inventory: {described(holder, now)}",
        "wait for its end" + (f", or end it: kill {holder['pid']}" if holder else "") + "; nothing has been changed",
    )


def refused_there(held: Mapping[str, Mapping[str, Any]], now: float) -> tuple[str, str]:
    """(message, hint): runs of other controllers are under way. `held`: machine -> who holds its lock."""
    found: dict[str, list[str]] = {}
    for machine, holder in held.items():
        found.setdefault(str(holder["id"]), []).append(machine)
    who = {str(holder["id"]): described(holder, now) for holder in held.values()}
    lines = [f"{who[one]} (its lock is on {', '.join(machines)})" for one, machines in found.items()]
    return (
        f"another run is under way on this cluster: {'; '.join(lines)}",
        f"wait for its end. If its controller is gone, its lock ends {SILENCE_SECONDS // 60} minutes after it was last "
        f"heard of; if you know that nobody works there any more, break it: -e break_lock={next(iter(found))}",
    )


def places(members: Sequence[str], answering: Collection[str], asked: Collection[str]) -> list[str]:
    """Where a run with --limit leaves its lock besides, so that it meets all others at the first member that answers.

    `members`: of etcd, in inventory order. `asked`: the machines of the run, of which `answering` did.
    """
    found: list[str] = []
    for member in members:
        if member in answering:
            break
        found += [member] if member not in asked else []
    return found


def taken_over(locks: Mapping[str, Mapping[str, Any]], now: float) -> list[str]:
    """Locks that were not respected, in words. `locks`: machine -> answer of `machine.lock.take`.

    What ended on this controller is told by its own lock.
    """
    why = {"silent": f"had not been heard of for {SILENCE_SECONDS // 60} minutes", "broken": "was broken as asked for"}
    found: dict[str, list[str]] = {}
    for machine, lock in locks.items():
        if lock.get("why") in why:
            found.setdefault(f"{described(lock['void'], now)}, which {why[lock['why']]}", []).append(machine)
    return [f"this run takes the lock on {', '.join(machines)} from {run}" for run, machines in found.items()]


def lost(machine: str, taken: str, now: float) -> str:
    """One line that says who has the lock on a machine instead of this run. `taken`: the lock there."""
    try:
        holder = json.loads(taken)
        return f"{described(holder, now)} (its lock is on {machine})".replace("\n", " ")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"another run (its lock is on {machine})"


def keep(run: Run, beat: Callable[[], str], give_back: Callable[[], object]) -> None:
    """Start a process that calls `beat` as long as the run lives, and `give_back` when it has ended.

    `beat` returns who has taken the lock over, in one line; the run is told, and there is nothing more to keep.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _keep(run.alive, run.tell, beat, give_back)
    finally:
        # Never into the code of the worker that this process began as.
        os._exit(0)


def _keep(alive: int, tell: int, beat: Callable[[], str], give_back: Callable[[], object]) -> None:
    # Whoever reads what the run prints must not wait for this process.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in (0, 1, 2, alive, tell):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    while not select.select([alive], [], [], BEAT_SECONDS)[0]:
        with contextlib.suppress(Exception):
            if taken := beat():
                # No more than what a pipe takes at once.
                os.write(tell, f"{taken}\n".encode()[: select.PIPE_BUF])
                return
    give_back()
