"""A directory of the user's: flat, in the layout of the release archives, or the archives themselves."""

from __future__ import annotations

import struct
import tarfile
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
            digest = beside.read_text().split()[0].lower() if beside.is_file() else published.get(name, "")
            with path.open("rb") as stream:
                yield stream, digest
            return
    for archive in sorted(p for pattern in _ARCHIVES for p in directory.glob(pattern)):
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    stream_ = tar.extractfile(member)
                    if stream_:
                        yield stream_, ""  # type: ignore[misc]
                        return
    looked = ", ".join(s or "." for s in _SUBDIRECTORIES)
    raise UserError(
        f"{directory}: no file {name!r} there (looked in {looked} and in *.tar.gz, *.tgz)",
        "put the release's binaries or archives there",
    )
