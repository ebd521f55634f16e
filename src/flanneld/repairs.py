"""Tells what is repaired, and notices when something undoes it again and again."""

from __future__ import annotations

import time
from collections import deque
from logging import INFO, WARNING
from typing import Callable, Deque, Sequence

from flanneld.dataplane import DeleteDevice, Step
from flanneld.log import logger

_MINUTE = 60.0
_SHOWN = 10  # steps of one repair, and repairs within a minute, that are named
_ENDLESS = 30  # repairs within a minute that are a fight


class Repairs:
    """The repairs of the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: Deque[float] = deque()
        self._untold = 0
        self._told_at = 0.0
        self._fight = ""
        self._last = ""

    def repaired(self, steps: Sequence[Step]) -> None:
        """Count one repair, and log its steps; of many within a minute only how many there were."""
        now = self._clock()
        self._forget(now)
        self._times.append(now)
        self._last = str(steps[0])
        if len(self._times) <= _SHOWN:
            report(steps)
            self._told_at = now
            return
        self._untold += 1
        if now - self._told_at >= _MINUTE:
            logger.warning("%d more repairs within the last minute; the last one: %s", self._untold, self._last)
            self._untold, self._told_at = 0, now

    def endless(self) -> str:
        """Return what is undone again and again, empty when nothing is."""
        self._forget(self._clock())
        if len(self._times) < _ENDLESS:
            self._fight = ""
        elif not self._fight:
            self._fight = f"{self._last} does not last: something else undoes it, {_ENDLESS} times within a minute"
        return self._fight

    def _forget(self, now: float) -> None:
        while self._times and now - self._times[0] >= _MINUTE:
            self._times.popleft()


def report(steps: Sequence[Step]) -> None:
    """Log steps, the first of many."""
    for step in steps[:_SHOWN]:
        logger.log(WARNING if isinstance(step, DeleteDevice) else INFO, "%s", step)
    if len(steps) > _SHOWN:
        logger.info("and %d steps more", len(steps) - _SHOWN)
