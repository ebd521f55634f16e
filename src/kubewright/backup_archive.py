"""The file of a backup: a snapshot of etcd, the PKI directory and the inventory's secrets, encrypted.

Inside is a compressed tar: `manifest.json` first, then `etcd/snapshot.db`, `pki/...`, `secrets/...`. The manifest is
  {format: 1, cluster, created (RFC 3339), etcd: {member, cluster, version, revision, hash, keys, size},
   cas: [SHA-256 of each CA certificate], parts: {name: {sha256, size, mode}}}
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kubewright.envelope import DamagedError, Reader, Writer
from kubewright.errors import UserError
from kubewright.machine.etcd_snapshot import is_whole

SNAPSHOT = "etcd/snapshot.db"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Opened:
    """A backup that was read to its end: every part has the SHA-256 of the manifest."""

    path: Path
    manifest: Mapping[str, Any]
    directory: Path

    @property
    def snapshot(self) -> Path:
        """The snapshot of etcd."""
        return self.directory / SNAPSHOT


def write(
    target: Path, secret: str, facts: Mapping[str, Any], snapshot: Path, trees: Mapping[str, Path]
) -> dict[str, Any]:
    """Write a backup to `target` (0600) and return its manifest.

    `facts`: cluster, created, etcd, cas. `trees`: prefix such as `pki` -> directory, whose files are taken along,
    also those that it links to.
    """
    parts = [(SNAPSHOT, snapshot), *(entry for prefix, tree in trees.items() for entry in _tree(prefix, tree))]
    described: dict[str, dict[str, Any]] = {
        name: {"sha256": digest(path), "size": path.stat().st_size, "mode": path.stat().st_mode & 0o777}
        for name, path in parts
    }
    manifest = {"format": 1, **facts, "parts": described}
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        envelope = Writer(stream, secret)
        with (
            gzip.GzipFile(fileobj=envelope, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            content = json.dumps(manifest, indent=1, sort_keys=True).encode()
            archive.addfile(_member(_MANIFEST, len(content), 0o600), io.BytesIO(content))
            for name, path in parts:
                with path.open("rb") as part:
                    archive.addfile(_member(name, described[name]["size"], described[name]["mode"]), part)
        envelope.finish()
        stream.flush()
        os.fsync(stream.fileno())
    return manifest


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


def _tree(prefix: str, directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob("*")):
        # A key may be kept in a safe that is mounted, with a link to it here.
        if path.is_file():
            yield f"{prefix}/{path.relative_to(directory).as_posix()}", path
        elif path.is_symlink():
            raise UserError(
                f"{path} is a link to what is no file, and a backup without it may be of no use: nothing has been done",
                "mount what it points to, or remove it",
            )


def _copy(source: IO[bytes], target: Path | None, mode: int) -> str:
    digest = hashlib.sha256()
    if target is None:
        while block := source.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
    except OSError as error:
        raise _unwritten(target, error) from None
    with stream:
        while block := source.read(1 << 20):
            digest.update(block)
            try:
                _write_all(stream, block)
            except OSError as error:
                raise _unwritten(target, error) from None
        # Whatever an archive says: nobody else reads what was in it.
        os.fchmod(stream.fileno(), 0o600 | (mode & 0o044))
    return digest.hexdigest()


def _write_all(stream: IO[bytes], block: bytes) -> None:
    left = memoryview(block)
    while left:
        left = left[stream.write(left) :]


def _unwritten(target: Path, error: OSError) -> UserError:
    return UserError(f"{target} cannot be written: {error.strerror or error}", "nothing but this has been done")


def read(path: Path, secret: str, directory: Path | None, wanted: Sequence[str] = ("",)) -> dict[str, Any]:
    """Read a backup to its end and return its manifest.

    Its parts whose names begin with one of `wanted` go below `directory` (0700), if there is one.

    UserError for a wrong passphrase, a file that is damaged, or one whose parts are not those of its manifest.
    """
    seen: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    damaged = DamagedError(f"{path} is damaged; nothing has been done", "take another backup")
    try:
        with path.open("rb") as stream:
            reader = io.BufferedReader(Reader(stream, secret, str(path)), 1 << 20)
            with gzip.GzipFile(fileobj=reader) as packed:
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    for entry in archive:
                        pure = PurePosixPath(entry.name)
                        content = archive.extractfile(entry)
                        if content is None or pure.is_absolute() or ".." in pure.parts:
                            raise damaged
                        if entry.name == _MANIFEST:
                            manifest = json.loads(content.read())
                            continue
                        target = directory / pure if directory and entry.name.startswith(tuple(wanted)) else None
                        seen[entry.name] = _copy(content, target, entry.mode)
                while packed.read(1 << 20):
                    pass
            while reader.read(1 << 20):
                pass
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise damaged from None
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise damaged from error
    if manifest.get("format") != 1 or seen != {name: part["sha256"] for name, part in manifest["parts"].items()}:
        raise damaged
    return manifest


def opened(path: Path, secret: str, directory: Path, wanted: Sequence[str] = ()) -> Opened:
    """`read` the snapshot and what is `wanted` into a directory, with etcd's own checksum compared as well."""
    found = Opened(path, read(path, secret, directory, (SNAPSHOT, *wanted)), directory)
    if not is_whole(str(found.snapshot)):
        raise DamagedError(
            f"the snapshot in {path} is corrupt: it does not end with its SHA-256; nothing has been done",
            "take another backup",
        )
    return found


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
