"""The lock of the cluster, on a machine: who works on it, and since when nobody has heard of them.

A file on a tmpfs, so a machine that starts anew is free. Beside it lies its heartbeat: the machine's uptime, which no
correction of the clock changes, when the run was last heard of.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from . import files

LOCK = "/run/kubewright/lock"
BEAT = "/run/kubewright/lock.beat"
# What is told of a run.
KEYS = {"id", "who", "pid", "since", "command", "controller"}
# How often a run is heard of, and after how long its lock is worth nothing. Some beats may get lost.
BEAT_SECONDS = 30
SILENCE_SECONDS = 180
# Exit status of the heartbeat when the lock is another's; it prints the lock then.
TAKEN = 75


def _uptime() -> float:
    return float(files.read("/proc/uptime").split()[0])


def _silence(beat: str) -> float:
    try:
        return _uptime() - float(files.read(beat).split()[0])
    except (IndexError, ValueError):
        # Just being written, or never.
        return 0.0


def _why_void(holder: dict[str, Any], wanted: dict[str, Any], broken: str, silence: float) -> str:
    """Why a lock need not be respected; empty when it must be."""
    if holder["id"] == broken:
        return "broken"
    # Who asks holds the lock of that controller and inventory, so the run before has ended.
    if wanted.get("controller") and holder.get("controller") == wanted["controller"]:
        return "ended"
    return "silent" if silence > SILENCE_SECONDS else ""


def _open(path: str) -> int:
    """The file, held against others who look at it at the same time."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        # Given back between the two: what was opened is no file any more.
        os.close(descriptor)


def _read(path: str) -> dict[str, Any]:
    known = files.read_json(path)
    return known if isinstance(known, dict) and set(known) >= KEYS else {}


def look(path: str = LOCK, beat: str = BEAT) -> dict[str, Any]:
    """Who holds the lock: {holder: empty when nobody does}."""
    holder = _read(path)
    return {"holder": {} if holder and _silence(beat) > SILENCE_SECONDS else holder}


def take(wanted: dict[str, Any], broken: str = "", path: str = LOCK, beat: str = BEAT) -> dict[str, Any]:
    """Take the lock for a run, or say who holds it.

    `wanted`: {id, who, pid, since, command, controller}. `broken`: id of a run whose lock is not to be respected.
    Returns {holder: of somebody else, new: whether it was taken now, void: the holder before, why: of that}.
    Raises OSError when it cannot be written.
    """
    descriptor = _open(path)
    try:
        holder = _read(path)
        if holder.get("id") == wanted["id"]:
            return {"holder": {}, "new": False, "void": {}, "why": ""}
        why = _why_void(holder, wanted, broken, _silence(beat)) if holder else ""
        if holder and not why:
            return {"holder": holder, "new": False, "void": {}, "why": ""}
        files.write_atomic(beat, files.read("/proc/uptime").encode(), 0o600)
        os.fchmod(descriptor, 0o600)
        content = json.dumps(wanted).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        return {"holder": {}, "new": True, "void": holder, "why": why}
    finally:
        os.close(descriptor)


def upkeep(identity: str, path: str = LOCK, beat: str = BEAT) -> tuple[str, str]:
    """Shell commands (heartbeat, return) for the holder of that id; they change nothing where the lock is another's.

    Nobody takes the lock while they look. `path`, `beat`: without anything that a shell would read.
    """
    mine = f'grep -qF \\"{identity}\\" {path}'
    look = f"[ ! -s {path} ] || flock {path} sh -c"
    heartbeat = f"if {mine}; then cat /proc/uptime > {beat}; else cat {path}; exit {TAKEN}; fi"
    return f"{look} '{heartbeat}'", f"{look} '! {mine} || rm -f {path} {beat}'"
