"""Mounts below a directory, and trees that are removed without ever crossing one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from . import files

_SECONDS = 20


def points(table: str) -> list[str]:
    """All mount points of the text of /proc/self/mountinfo, which tells them without links."""
    return [_plain(line.split()[4]) for line in table.splitlines() if len(line.split()) > 4]


def below(root: str, table: str) -> list[str]:
    """Mount points below `root`, not itself, deepest first, also where a link leads there. `table` as for `points`."""
    resolved = os.path.realpath(root)
    # What lies over another mount at the same place comes later in the table, and goes first.
    inside = [point for point in reversed(points(table)) if point.startswith(f"{resolved}/")]
    return sorted(inside, key=len, reverse=True)


def _plain(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def now() -> str:
    """The mounts of this process."""
    return files.read("/proc/self/mountinfo")


def stays(path: str) -> bool:
    """Whether a directory is somebody's way to another disk, a mount point or a link: what is in it may go, not it."""
    return os.path.isdir(path) and (os.path.islink(path) or os.path.realpath(path) in points(now()))


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
        if reply.returncode == 0 or point not in points(now()):
            return
        said = reply.stderr.strip()
    raise OSError(f"{point} cannot be unmounted: {said}")


def remove_tree(root: str) -> None:
    """Remove a directory with all that is in it; of one that `stays` what is in it.

    Raises OSError where anything is mounted below it: that may be a volume with somebody's data.
    """
    inside = below(root, now())
    if inside:
        raise OSError(f"{root}: {inside[0]} is still mounted there; nothing of it was removed")
    if not stays(root):
        shutil.rmtree(root)
        return
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
