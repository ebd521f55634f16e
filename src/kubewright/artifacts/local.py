"""A directory of the user's: flat, in the layout of the release archives, or the archives themselves."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kubewright.errors import UserError

_MACHINES = {62: "amd64", 183: "arm64"}
_ARCHIVES = ("*.tar.gz", "*.tgz")
# What an artifact's file is called where that is not the artifact's own name.
_SUBDIRECTORIES = ("", "bin", "kubernetes/server/bin", "server/bin", "docker", "cni", "cni/bin", "images")


def architecture(head: bytes) -> str:
    """Processor architecture of an ELF file by its first 20 bytes; empty when it is none."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return ""
    [machine] = struct.unpack("<H", head[18:20])
    return _MACHINES.get(machine, f"ELF machine {machine}")


def checksums(directory: Path) -> dict[str, str]:
    """{file name: SHA-256} of a SHA256SUMS file, if there is one."""
    found = {}
    path = directory / "SHA256SUMS"
    if path.is_file():
        for line in path.read_text().splitlines():
            digest, _, name = line.partition(" ")
            found[name.strip().lstrip("*").rpartition("/")[2]] = digest.lower()
    return found


def signature(directory: Path, name: str) -> str:
    """Digest of size, time and inode of every file that decides what `find` returns for this name."""
    beside = [directory / s / n for s in _SUBDIRECTORIES for n in (name, f"{name}.sha256")]
    digest = hashlib.sha256()
    for path in [*beside, directory / "SHA256SUMS", *_archives(directory)]:
        if path.is_file():
            info = path.stat()
            digest.update(f"{path.resolve()} {info.st_size} {info.st_mtime_ns} {info.st_ino}\n".encode())
    return digest.hexdigest()[:16]


def _archives(directory: Path) -> list[Path]:
    return sorted(p for pattern in _ARCHIVES for p in directory.glob(pattern))


def _published(path: Path) -> str:
    fields = path.read_text(errors="replace").split()
    if not fields or len(fields[0]) != 64:
        raise UserError(f"{path}: holds no sha256", "download it again, or remove it to do without")
    return fields[0].lower()


@contextmanager
def find(directory: Path, name: str) -> Iterator[tuple[BinaryIO, str]]:
    """(stream, published SHA-256 or "") of a file of this name in the directory or in one of its archives.

    UserError when there is none, naming where was looked.
    """
    if not directory.is_dir():
        raise UserError(
            f"artifacts_dir: {str(directory)!r} is not a directory", "set artifacts_dir to where the binaries are"
        )
    published = checksums(directory)
    for subdirectory in _SUBDIRECTORIES:
        path = directory / subdirectory / name
        if path.is_file():
            beside = path.with_name(path.name + ".sha256")
            digest = _published(beside) if beside.is_file() else published.get(name, "")
            with path.open("rb") as stream:
                yield stream, digest
            return
    for archive in _archives(directory):
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.isfile() and member.name.rpartition("/")[2] == name:
                        stream_ = tar.extractfile(member)
                        if stream_:
                            yield stream_, ""  # type: ignore[misc]
                            return
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            raise UserError(f"{archive}: damaged ({reason})", "download it again") from error
    looked = ", ".join(s or "." for s in _SUBDIRECTORIES)
    raise UserError(
        f"{directory}: no file {name!r} there (looked in {looked} and in *.tar.gz, *.tgz)",
        "put the release's binaries or archives there",
    )
