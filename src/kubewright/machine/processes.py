"""Processes of services and containers, found by their control groups and ended in bounded time."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Pattern

from . import files

_POLL_SECONDS = 0.1
# How long a process may take to be gone after SIGKILL; one that hangs in the kernel never is.
_KILL_SECONDS = 10.0
# From the root of this machine's groups, in slices only: below services and scopes they are those of others, as of a
# rootless Docker or machines in machines. Services of others have names that begin so, too: docker-registry.service.
PODS = re.compile(r"^/kubepods(?:\.slice)?(?:/|$)")
CONTAINERS = re.compile(
    PODS.pattern + r"|^/docker/(?:[0-9a-f]{64}|buildkit)(?:/|$)|^(?:/[^/]+\.slice)+/docker-[0-9a-f]{64}\.scope(?:/|$)"
)


def of_unit(unit: str, slice_: str) -> Pattern[str]:
    """The control group of a unit of this machine's systemd, and all below it. `slice_`: the unit's, empty: unknown."""
    parts = (slice_ or "system.slice").removesuffix(".slice").split("-")
    parents = [f"/{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)) if any(parts)]
    return re.compile(rf"^{re.escape(''.join(parents))}/{re.escape(unit)}(?:/|$)")


def within(group: Pattern[str], proc: str = "/proc") -> list[int]:
    """Processes in control groups that match from this machine's root, kernel threads and zombies apart."""
    # A machine that is a container itself may see the groups above its own.
    roots = {kind: path.removesuffix("/init.scope").rstrip("/") for kind, path in _groups(f"{proc}/1")}
    others = [int(name) for name in os.listdir(proc) if name.isdigit() and int(name) != os.getpid()]
    return sorted(pid for pid in others if _is_in(group, roots, f"{proc}/{pid}"))


def _groups(process: str) -> list[tuple[str, str]]:
    """(controllers, path) of each hierarchy that a process is in."""
    found = (line.split(":", 2)[1:] for line in files.read(f"{process}/cgroup").splitlines())
    return [(kind, path) for kind, path in found]


def _is_in(group: Pattern[str], roots: dict[str, str], process: str) -> bool:
    for kind, path in _groups(process):
        root = roots.get(kind, "")
        if path.startswith(f"{root}/") and group.search(path[len(root) :]):
            # A zombie holds nothing any more, and waits for its parent.
            return files.read(f"{process}/stat").rpartition(")")[2].split()[:1] != ["Z"]
    return False


def end(group: Pattern[str], grace: float) -> list[int]:
    """SIGTERM, after `grace` seconds SIGKILL; returns the processes that are there all the same."""
    if grace > 0:
        _signal(within(group), signal.SIGTERM)
        _await(group, grace)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        # Again and again: what is being killed may be starting others.
        left = within(group)
        if not left:
            return []
        _signal(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return within(group)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _await(group: Pattern[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while within(group) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
