"""So many machines of a play at a time, the next one as soon as any of them is done: a window that slides over them.

For plays whose machines go on at their own pace (Ansible's strategy `host_pinned`). Workers are processes of one
controller and live for one task; they meet in a directory that belongs to the run. A machine takes a place by one task
and gives it back by a later one. After a failure nobody gets a place: what broke one machine would break the next.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kubewright import runlock
from kubewright.errors import UserError

_POLL_SECONDS = 0.3
# Machines get places in their order; one that is not heard of this long after the next one came has been left behind.
_QUIET_SECONDS = 3.0
_STATES = _WAITING, _INSIDE, _DONE, _FAILED = "waiting", "inside", "done", "failed"
# Beside the windows of a run: machines that it has lost.
_LOST = "lost"

# Whether somebody calls `lose` in this run, which forked workers of Ansible see as well. Without, a place that a lost
# machine had would be waited for for ever.
is_watched = False


def check() -> None:
    """UserError when windows cannot be used in this run; to be asked before anything is changed."""
    if not is_watched:
        raise UserError(
            "the callback kubewright_run is not enabled, which tells the others of a machine that is lost; nothing has "
            "been changed",
            "use the ansible.cfg of this repository; where ANSIBLE_CALLBACKS_ENABLED is set, name it there",
        )


def lose(run: Path, host: str) -> None:
    """Note for all windows of a run that it goes on without a machine. `run`: the directory of its windows."""
    (run / _LOST).mkdir(parents=True, exist_ok=True)
    (run / _LOST / host).touch()


class Window:
    """One machine's view of the window `name` of a run, over `hosts` in their order, `size` of which have a place."""

    def __init__(self, run: Path, name: str, host: str, hosts: Sequence[str], size: int) -> None:
        self._lost = run / _LOST
        self._directory = run / name
        self._host = host
        self._hosts = list(hosts)
        self._size = size
        for state in _STATES:
            (self._directory / state).mkdir(parents=True, exist_ok=True)

    def enter(self) -> list[str]:
        """Wait for a place. The machines that have failed, or were lost, before there was one; empty with a place.

        UserError when the run is over, which workers outlive.
        """
        begin, parent = time.monotonic(), os.getppid()
        self._put(_WAITING)
        while True:
            with self._alone():
                if failed := self._failed():
                    return failed
                if self._is_next(patient=time.monotonic() - begin < _QUIET_SECONDS):
                    self._put(_INSIDE)
                    return []
            if os.getppid() != parent or (runlock.current and runlock.current.is_over()):
                raise UserError(*runlock.TOO_LATE)
            time.sleep(_POLL_SECONDS)

    def leave(self, *, failed: bool) -> None:
        """Give the place back; after a failure nobody gets it."""
        with self._alone():
            self._put(_FAILED if failed else _DONE)

    def left(self) -> list[str]:
        """After a failure: the machines that had no place. Only who asks first is told, for it concerns all of them."""
        with self._alone():
            told = self._directory / "told"
            if told.exists():
                return []
            told.touch()
            begun = {*self._names(_INSIDE), *self._names(_DONE), *self._failed()}
            return [host for host in self._hosts if host not in begun]

    def _is_next(self, *, patient: bool) -> bool:
        """Whether there is a place for this machine and all that come before it."""
        inside, waiting = self._names(_INSIDE), self._names(_WAITING)
        earlier = self._hosts[: self._hosts.index(self._host)]
        heard = {*inside, *self._names(_DONE)}
        before = [host for host in earlier if host in waiting or (patient and host not in heard)]
        return len(inside) + len(before) < self._size

    def _failed(self) -> list[str]:
        lost = {path.name for path in self._lost.iterdir()} if self._lost.is_dir() else set()
        failed = {*self._names(_FAILED), *lost}
        return [host for host in self._hosts if host in failed]

    def _names(self, state: str) -> list[str]:
        return [path.name for path in (self._directory / state).iterdir()]

    def _put(self, state: str) -> None:
        """From whatever state this machine is in; in between it is in both, and counts as the earlier one."""
        (self._directory / state / self._host).touch()
        for other in _STATES:
            if other != state:
                (self._directory / other / self._host).unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
