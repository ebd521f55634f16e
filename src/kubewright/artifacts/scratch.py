"""Temporary directories that do not outlive their process for long, not even when it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kubewright.cache import disk_errors


class Scratch:
    """Temporary directories below `root`. Each is locked by who uses it: one without a holder is a dead process's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        # Between making a directory and locking it, it looks like a dead process's.
        with disk_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            guard = (self._root / ".lock").open("a")
        with guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def clean(self) -> None:
        """Remove what dead processes left."""
        with self._guard(), disk_errors(self._root):
            for path in self._root.glob("[!.]*"):
                # Its owner may be removing it at this moment.
                with contextlib.suppress(FileNotFoundError, BlockingIOError), _locked(path):
                    shutil.rmtree(path)

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """A new directory, on the file system of the cache, gone at the end."""
        with self._guard(), disk_errors(self._root):
            path = Path(tempfile.mkdtemp(dir=self._root))
            lock = contextlib.ExitStack()
            lock.enter_context(_locked(path))
        with lock:
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory that nobody else holds; BlockingIOError when somebody does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
