"""The directory of what is paid for once per machine, and what a disk that refuses is told to a user as."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubewright.errors import UserError

_ROOM = "free some space, or set KUBEWRIGHT_CACHE to a directory on a larger disk; nothing half-written was left behind"
_RIGHTS = "make it writable for this user, or set KUBEWRIGHT_CACHE to a directory that is"
_PLACE = "move away what is there, or set KUBEWRIGHT_CACHE to another directory"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: _PLACE,
    errno.EEXIST: _PLACE,
    errno.EIO: "the disk fails: look at the kernel's log (dmesg)",
}


def cache_directory() -> Path:
    """`KUBEWRIGHT_CACHE`, or ~/.cache/kubewright, as an absolute path; it need not exist yet.

    A relative path counts from the directory in which the command runs.
    """
    chosen = os.environ.get("KUBEWRIGHT_CACHE") or "~/.cache/kubewright"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"KUBEWRIGHT_CACHE: {chosen!r}: {error}", "write the path in full") from error


def settle(path: Path) -> None:
    """Return when all that was written to the file system of `path` is on its disk, UserError when it refuses.

    Whoever then sets a mark or gives a name that says "complete" is right even after a loss of power.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a UserError with the path, the room that is left, and what to do."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if not remedy:
            raise
        if remedy is not _ROOM:
            raise UserError(f"{error.filename or path}: {error.strerror}", remedy) from error
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        raise UserError(f"{path}: {error.strerror} ({free >> 20} MiB free there)", remedy) from error
