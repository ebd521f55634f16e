"""A directory of the user's: flat, in the layout of the release archives, or the archives themselves."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kubewright.artifacts.download import checksum_of
from kubewright.artifacts.store import Claim, sha256_of
from kubewright.errors import UserError

_ARCHIVES = ("*.tar.gz", "*.tgz")
_SUBDIRECTORIES = ("", "bin", "kubernetes/server/bin", "server/bin", "docker", "cni", "cni/bin")
_SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class LocalDirectory:
    """The directory `artifacts_dir`. An archive is hashed once per instance, however many files are read from it."""

    path: Path
    _checked: set[Path] = field(default_factory=set)

    def signature(self, name: str) -> str:
        """Digest of size, time and inode of every file that decides what `find` returns for this name."""
        places = [self.path / s for s in _SUBDIRECTORIES]
        files = [place / n for place in places for n in (name, f"{name}.sha256", _SUMS)]
        digest = hashlib.sha256()
        with _readable():
            archives = [path for archive in self._archives() for path in (archive, _beside(archive))]
            for path in [*files, *archives]:
                if path.is_file():
                    info = path.stat()
                    digest.update(f"{path.resolve()} {info.st_size} {info.st_mtime_ns} {info.st_ino}\n".encode())
        return digest.hexdigest()[:16]

    @contextmanager
    def find(self, name: str) -> Iterator[tuple[IO[bytes], Claim | None]]:
        """(stream, what it must be if that is published) of a file of this name, flat or in an archive.

        UserError when there is none, naming where was looked; or when an archive is not what its checksum says.
        """
        with _readable(), self._find(name) as found:
            yield found

    @contextmanager
    def _find(self, name: str) -> Iterator[tuple[IO[bytes], Claim | None]]:
        if not self.path.is_dir():
            raise UserError(
                f"artifacts_dir: {str(self.path)!r} is not a directory", "set artifacts_dir to where the binaries are"
            )
        for subdirectory in _SUBDIRECTORIES:
            path = self.path / subdirectory / name
            if path.is_file():
                with path.open("rb") as stream:
                    yield stream, self._claim(path)
                return
        for archive in self._archives():
            self._check(archive)
            with _member(archive, name) as member:
                if member:
                    yield member, None
                    return
        looked = ", ".join(s or "." for s in _SUBDIRECTORIES)
        raise UserError(
            f"{self.path}: no file {name!r} there (looked in {looked} and in {', '.join(_ARCHIVES)})",
            "put the release's binaries or archives there",
        )

    def holds(self, name: str) -> bool:
        """Whether a file of this name lies there, archives not counted."""
        with _readable():
            return any((self.path / subdirectory / name).is_file() for subdirectory in _SUBDIRECTORIES)

    def _archives(self) -> list[Path]:
        return sorted(path for pattern in _ARCHIVES for path in self.path.glob(pattern))

    def _check(self, archive: Path) -> None:
        if archive in self._checked:
            return
        claim = self._claim(archive)
        if claim:
            claim.check(sha256_of(archive))
        self._checked.add(archive)

    def _claim(self, path: Path) -> Claim | None:
        """What the file beside a file, or a list of checksums in its directory or in `path`, says that it must be."""
        remedy = "it is damaged, or the checksum is of another release: get both again"
        beside = _beside(path)
        if beside.is_file():
            digest = checksum_of(beside.read_text(errors="replace"), path.name)
            if not digest:
                raise UserError(f"{beside}: holds no sha256 of {path.name}", "get it again, or remove it to do without")
            return Claim(digest, str(path), remedy)
        for sums in (path.with_name(_SUMS), self.path / _SUMS):
            digest = checksum_of(sums.read_text(errors="replace"), path.name) if sums.is_file() else ""
            if digest:
                return Claim(digest, str(path), remedy)
        return None


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"artifacts_dir: {error.filename}: {error.strerror}", "make it readable for the user who runs this"
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@contextmanager
def _member(archive: Path, name: str) -> Iterator[IO[bytes] | None]:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    yield tar.extractfile(member)
                    return
            yield None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"{archive}: damaged ({reason})", "download it again") from error
