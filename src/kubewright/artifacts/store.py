"""The content store: files by their SHA-256, never a bad one, cheap to ask."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kubewright.artifacts.scratch import Scratch
from kubewright.cache import disk_errors
from kubewright.errors import UserError

_BLOCK = 1 << 20
_DAY_SECONDS = 86400


@dataclass(frozen=True)
class Artifact:
    """A verified file of the store. `kind`: binary or image; `image`: {reference, id} of an image archive, else None.

    `size` in bytes.
    """

    name: str
    version: str
    path: Path
    sha256: str
    size: int
    kind: str
    image: Mapping[str, str] | None = None


class WrongContentError(UserError):
    """Content that is not what it should be."""


@dataclass(frozen=True)
class Claim:
    """What content has to be: `what` names it to a user, `remedy` is what to do when it is something else."""

    sha256: str
    what: str
    remedy: str

    def check(self, seen: str) -> None:
        """WrongContentError when the SHA-256 `seen` is not the claimed one."""
        if seen != self.sha256:
            raise WrongContentError(f"{self.what}: the sha256 is {seen}, expected {self.sha256}", self.remedy)


class Store:
    """Files below `root`/artifacts; an index remembers what was verified, under which key, and when it was last used.

    `clock`: seconds since the epoch.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = root / "artifacts"
        self.scratch = Scratch(root / "tmp")
        self._clock = clock
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._index_path = self.root / "index.json"
        self.scratch.clean()

    def _index(self) -> dict[str, Any]:
        try:
            index: dict[str, Any] = json.loads(self._index_path.read_text())
        except (OSError, ValueError):
            return {}
        return index

    @contextmanager
    def _changed_index(self) -> Iterator[dict[str, Any]]:
        with disk_errors(self.root), (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = self._index()
            yield index
            with self.scratch.directory() as directory:
                temporary = directory / "index"
                temporary.write_text(json.dumps(index, indent=1, sort_keys=True))
                temporary.replace(self._index_path)

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
            if sha256_of(path) != known["sha256"]:
                path.unlink(missing_ok=True)
                return None
            # The same content came again under another key: good, and not to be hashed at every look.
            self._remember(key, known["sha256"], known["metadata"])
        return known["sha256"], known["metadata"]

    def add(
        self, key: str, source: IO[bytes], claim: Claim | None = None, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Copy a stream into the store and remember it under `key`; returns its SHA-256.

        WrongContentError when it is empty or not what the claim says, UserError when the disk refuses; the store is
        unchanged then.
        """
        with disk_errors(self.root), self.scratch.directory() as directory:
            temporary = directory / "content"
            digest = hashlib.sha256()
            with temporary.open("wb") as target:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            seen = digest.hexdigest()
            if claim:
                claim.check(seen)
            if not temporary.stat().st_size:
                raise WrongContentError(f"{claim.what if claim else key}: it is empty", "get it again, from elsewhere")
            path = self.path_of(seen)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.chmod(0o755)
            temporary.replace(path)
        self._remember(key, seen, dict(metadata or {}))
        return seen

    def name(self, key: str, sha256: str) -> None:
        """Remember content that the store has under one more key."""
        self._remember(key, sha256, {})

    def _remember(self, key: str, sha256: str, metadata: dict[str, Any]) -> None:
        info = self.path_of(sha256).stat()
        with self._changed_index() as index:
            index[key] = {
                "sha256": sha256,
                "stat": [info.st_size, info.st_mtime_ns, info.st_ino],
                "metadata": metadata,
                "used": int(self._clock()),
            }

    def use(self, keys: Collection[str]) -> None:
        """Remember that these were used now, to the day: more often the index is not written for it."""
        now = int(self._clock())
        index = self._index()
        if all(now - _last_use(index[key]) < _DAY_SECONDS for key in keys if key in index):
            return
        with self._changed_index() as index:
            for key in keys:
                if key in index:
                    index[key]["used"] = now

    def last_uses(self) -> dict[str, int]:
        """{key: when it was last used, in seconds since the epoch} of everything in the index."""
        return {key: _last_use(entry) for key, entry in self._index().items()}

    def sha256(self, key: str) -> str:
        """Digest of what was stored under a key of the index."""
        return str(self._index()[key]["sha256"])

    def files(self) -> list[Path]:
        """All content, sorted by digest."""
        return sorted(self.root.glob("sha256/*/*"))

    def verify(self) -> Iterator[tuple[Path, list[str], int, bool]]:
        """Hash every file again: (path, keys, size in bytes, is it good); a damaged one is removed."""
        keys: dict[str, list[str]] = {}
        for key, entry in self._index().items():
            keys.setdefault(entry["sha256"], []).append(key)
        for path in self.files():
            try:
                size, good = path.stat().st_size, sha256_of(path) == path.name
            except FileNotFoundError:
                continue
            if not good:
                path.unlink(missing_ok=True)
            yield path, sorted(keys.get(path.name, [])), size, good

    def forget(self, keys: Collection[str]) -> None:
        """Take keys out of the index; their content stays."""
        with self._changed_index() as index:
            for key in keys:
                index.pop(key, None)

    def unreferenced(self, without: Collection[str] = ()) -> list[Path]:
        """Content that no key leads to, as it would be without some keys."""
        kept = {entry["sha256"] for key, entry in self._index().items() if key not in without}
        return [path for path in self.files() if path.name not in kept]


def _last_use(entry: Mapping[str, Any]) -> int:
    # Entries of before last uses were recorded: when their file was written.
    return int(entry["used"] if "used" in entry else entry["stat"][1] // 10**9)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
