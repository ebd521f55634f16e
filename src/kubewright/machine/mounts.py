"""Mounts below a directory, and trees that are removed without ever crossing one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from . import files

_SECONDS = 20


def below(root: str, mountinfo: str) -> list[str]:
    """Mount points below `root`, not itself, deepest first. `mountinfo`: the text of /proc/self/mountinfo."""
    points = [_plain(line.split()[4]) for line in mountinfo.splitlines() if len(line.split()) > 4]
    # What lies over another mount at the same place comes later in the table, and goes first.
    return sorted((point for point in reversed(points) if point.startswith(f"{root}/")), key=len, reverse=True)


def _plain(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def now() -> str:
    """The mounts of this process."""
    return files.read("/proc/self/mountinfo")


def unmount(point: str) -> None:
    """Unmount; what is busy or whose server does not answer is detached. Raises OSError."""
    said = "no answer"
    for options in ((), ("-l",)):
        try:
            reply = subprocess.run(
                ["umount", *options, point], capture_output=True, text=True, check=False, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            continue
        if reply.returncode == 0 or point not in below(os.path.dirname(point), now()):
            return
        said = reply.stderr.strip()
    raise OSError(f"{point} cannot be unmounted: {said}")


def remove_tree(root: str) -> None:
    """Remove a directory with all that is in it; of one that is itself a mount point what is in it.

    Raises OSError where anything is mounted below it: that may be a volume with somebody's data.
    """
    table = now()
    inside = below(root, table)
    if inside:
        raise OSError(f"{root}: {inside[0]} is still mounted there; nothing of it was removed")
    if root not in [_plain(line.split()[4]) for line in table.splitlines()]:
        shutil.rmtree(root)
        return
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
