"""One machine at a time, the leader last: how the parallel workers of one Ansible task take turns.

Workers are processes of one controller; they meet in a directory that belongs to the task. Each first reports whether
it needs a turn. A turn is an exclusive file lock, so a worker that dies gives it back.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


class Turnstile:
    """Meeting point of the hosts of one task below `directory`."""

    def __init__(self, directory: Path, host: str, hosts: Collection[str]) -> None:
        self._directory = directory
        self._host = host
        self._others = [h for h in hosts if h != host]
        directory.mkdir(parents=True, exist_ok=True)

    def report(self, state: str) -> None:
        """Tell the others: `waiting` for a turn, or `done` (also: none needed)."""
        (self._directory / f"{self._host}.state").write_text(state)

    def _state(self, host: str) -> str:
        try:
            return (self._directory / f"{host}.state").read_text()
        except FileNotFoundError:
            return ""

    @contextmanager
    def turn(self, *, last: bool, patience: float) -> Iterator[None]:
        """Hold the turn. With `last`, first let every other host finish, but wait no longer than `patience` seconds.

        The limit keeps a host that Ansible has not even scheduled (fewer forks than hosts) from blocking for ever.
        """
        self.report("waiting")
        deadline = time.monotonic() + patience
        while last and any(self._state(h) != "done" for h in self._others) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        with (self._directory / "turn").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                self.report("done")
