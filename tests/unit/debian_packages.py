"""Debian packages that tests need, in the cache: downloaded once, never installed on the machine that runs them.

python tests/unit/debian_packages.py NAME PACKAGE...   downloads them, prints the directory
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kubewright.artifacts import debian
from kubewright.artifacts.scratch import Scratch
from kubewright.cache import cache_directory
from kubewright.errors import UserError


def downloaded(name: str, packages: Sequence[str]) -> Path:
    """The directory `name` of the cache with the .deb files of these packages, as new as the archive had them."""
    with made_once(name) as (final, new):
        if new:
            for deb in _fetch(packages):
                shutil.copy2(deb, new)
    return final


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The directory `name` of the cache where these packages are unpacked into each other."""
    with made_once(name) as (final, new):
        if new:
            for deb in _fetch(packages):
                debian.unpack(deb, new)
    return final


@contextmanager
def made_once(name: str) -> Iterator[tuple[Path, Path | None]]:
    """(a directory of the cache, where its content is to be made if it is not there yet)."""
    cache = cache_directory()
    final = cache / "test-tools" / name
    if final.is_dir():
        yield final, None
        return
    with Scratch(cache / "tmp").directory() as scratch:
        new = scratch / "new"
        new.mkdir(mode=0o755)
        yield final, new
        final.parent.mkdir(parents=True, exist_ok=True)
        new.rename(final)


def _fetch(packages: Sequence[str]) -> Iterator[Path]:
    # kubewright's own apt: the lists of the host's may be old, or empty as in images of containers.
    apt = debian.Apt(cache_directory() / "apt", _say)
    for package in packages:
        yield apt.fetch(package, *apt.candidate(package))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{downloaded(sys.argv[1], sys.argv[2:])}\n")
    except UserError as error:
        sys.exit(str(error))
