"""One process at a time: who comes second says so, and waits."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kubewright.cache import disk_errors


@contextmanager
def alone(path: Path, doing: str, progress: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold the lock file `path`, waiting for whoever holds it now; `doing` completes "process 123 is ...".

    The kernel gives the lock back when the holder dies, so nothing is left to clean up. Yields the open lock file: a
    child that must not outlive the lock is given its descriptor.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"process {lock.read().strip() or '?'} is {doing} already: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        with disk_errors(path):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield lock
