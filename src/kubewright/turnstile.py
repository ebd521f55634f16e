"""One machine at a time, the leader last: how the parallel workers of one Ansible task take turns.

Workers are processes of one controller; they meet in a directory that belongs to the task. Each reports what it is
about to do. A turn is an exclusive file lock, so a worker that dies gives it back. After a failure nobody gets a turn:
what broke one machine would break the next. Nor does anybody after the run: workers outlive it, and another one may
have the cluster's lock by then.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubewright import runlock
from kubewright.errors import UserError

_POLL_SECONDS = 0.1
# Hosts that report nothing are waited for until nobody has reported anything new for this long: Ansible may not have
# scheduled them (fewer forks than hosts), or lost them before this task.
_QUIET_SECONDS = 5.0


class Turnstile:
    """Meeting point of the hosts of one task below `directory`.

    The end of its `with` block reports how the host ended: `done`, or `failed` after an exception.
    """

    def __init__(self, directory: Path, host: str, hosts: Collection[str]) -> None:
        self._directory = directory
        self._host = host
        self._others = [h for h in hosts if h != host]
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Turnstile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._state(self._host) not in ("failed", "refused"):
            self.report("failed" if kind else "done")

    def report(self, state: str) -> None:
        """Tell the others: `waiting` for a turn, `starting` what does not run yet, `done`, `failed`, or `refused`."""
        path = self._directory / f"{self._host}.state"
        temporary = path.with_suffix(".new")
        temporary.write_text(state)
        temporary.replace(path)

    def _state(self, host: str) -> str:
        try:
            return (self._directory / f"{host}.state").read_text()
        except FileNotFoundError:
            return ""

    def _await(self, *, last: bool, patience: float) -> None:
        begin = changed = time.monotonic()
        before: list[str] = []
        while (now := time.monotonic()) - begin < patience:
            states = [self._state(host) for host in self._others]
            if states != before:
                before, changed = states, now
            busy = {"starting", "waiting"} if last else {"starting"}
            unheard = "" in states and now - changed < _QUIET_SECONDS
            if not unheard and not busy & set(states):
                return
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def turn(self, *, last: bool, patience: float) -> Iterator[None]:
        """Hold the turn. Hosts that are only starting something go first, with `last` all others do.

        Waits no longer than `patience` seconds for them. Raises `UserError` when another host has failed, or the run
        is over.
        """
        self.report("waiting")
        self._await(last=last, patience=patience)
        with (self._directory / "turn").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if runlock.current and runlock.current.is_over():
                self.report("refused")
                raise UserError(*runlock.TOO_LATE)
            failed = [host for host in self._others if self._state(host) == "failed"]
            if failed:
                self.report("refused")
                raise UserError(
                    f"left as it was, because {', '.join(failed)} failed before its turn",
                    "mend that first; the same command again resumes the run",
                )
            try:
                yield
            except BaseException:
                # Before the lock is given back: whoever waits for it must see this.
                self.report("failed")
                raise
