"""The content store: files by their SHA-256, never a bad one, cheap to ask."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kubewright.errors import UserError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A verified file of the store. `image`: {reference, id} of an image archive, else None."""

    name: str
    version: str
    path: Path
    sha256: str
    size: int
    kind: str
    image: Mapping[str, str] | None = None


def cache_directory() -> Path:
    """`KUBEWRIGHT_CACHE`, or ~/.cache/kubewright."""
    return Path(os.environ.get("KUBEWRIGHT_CACHE") or Path.home() / ".cache" / "kubewright")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a message with the path and the room that is left."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        raise UserError(
            f"{path}: {error.strerror} ({free >> 20} MiB free there)",
            "free some space, or set KUBEWRIGHT_CACHE to a larger disk; nothing half-written was left behind",
        ) from error


class Store:
    """Files below `root`/artifacts; an index remembers what was verified, and under which key it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root / "artifacts"
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._index_path = self.root / "index.json"

    def _index(self) -> dict[str, Any]:
        try:
            index: dict[str, Any] = json.loads(self._index_path.read_text())
        except (OSError, ValueError):
            return {}
        return index

    def path_of(self, sha256: str) -> Path:
        """Where content of this digest lives."""
        return self.root / "sha256" / sha256[:2] / sha256

    def find(self, key: str) -> tuple[str, dict[str, Any]] | None:
        """(SHA-256, metadata) of what was stored under this key, if its file is still what was verified."""
        known = self._index().get(key)
        if not known:
            return None
        path = self.path_of(known["sha256"])
        try:
            info = path.stat()
        except OSError:
            return None
        if [info.st_size, info.st_mtime_ns, info.st_ino] != known["stat"]:
            if _digest(path) != known["sha256"]:
                path.unlink()
                return None
            # The same content came again under another key: good, and not to be hashed at every look.
            self._remember(key, known["sha256"], known["metadata"])
        return known["sha256"], known["metadata"]

    def add(self, key: str, source: BinaryIO, expected: str = "", metadata: Mapping[str, Any] | None = None) -> str:
        """Copy a stream into the store and remember it under `key`; returns its SHA-256.

        UserError when it is not the `expected` content or the disk is full; the store is unchanged then.
        """
        with disk_errors(self.root):
            handle, temporary = tempfile.mkstemp(dir=self.root, prefix=".incoming-")
            try:
                digest = hashlib.sha256()
                with os.fdopen(handle, "wb") as target:
                    while block := source.read(_BLOCK):
                        digest.update(block)
                        target.write(block)
                    target.flush()
                    os.fsync(target.fileno())
                seen = digest.hexdigest()
                _compare(key, seen, expected)
                path = self.path_of(seen)
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(temporary).chmod(0o755)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._remember(key, seen, dict(metadata or {}))
        return seen

    def _remember(self, key: str, sha256: str, metadata: dict[str, Any]) -> None:
        info = self.path_of(sha256).stat()
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = self._index()
            index[key] = {
                "sha256": sha256,
                "stat": [info.st_size, info.st_mtime_ns, info.st_ino],
                "metadata": metadata,
            }
            temporary = self._index_path.with_suffix(".new")
            temporary.write_text(json.dumps(index, indent=1, sort_keys=True))
            temporary.replace(self._index_path)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compare(key: str, seen: str, expected: str) -> None:
    if expected and seen != expected:
        raise UserError(
            f"{key}: the sha256 is {seen}, expected {expected}",
            "the file is damaged or not the one that was locked; it was thrown away",
        )
