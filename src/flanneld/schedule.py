"""When something is looked at again. Pure: times are monotonic seconds that the caller gives."""

from __future__ import annotations

SETTLE = 0.05
"""Seconds that the reports of one change are gathered."""

_PATIENCE = 10  # a look may take at most one part in this many of the time,
_IDLE = 200  # and one part in this many when nothing is reported
_FIRST, _LONGEST = 1.0, 10.0  # seconds between attempts while something fails


class Schedule:
    """When the next look is due (`at`); infinity: not before something is reported."""

    def __init__(self, every: float = float("inf")) -> None:
        self.at = float("inf")
        self._every = every
        self._earliest = 0.0
        self._pause = _FIRST

    def demand(self, now: float) -> None:
        """Something is known to be different: look at once."""
        self.at = now

    def report(self, now: float) -> None:
        """Something may be different: look when the reports have settled, but not all the time."""
        self.at = min(self.at, max(now + SETTLE, self._earliest))

    def done(self, begun: float, ended: float, *, failing: bool) -> None:
        """A look took this time; a failing one is repeated at lengthening intervals."""
        self._earliest = ended + (ended - begun) * _PATIENCE
        if failing:
            self._earliest = max(self._earliest, ended + _FIRST)
            self.at = ended + self._pause
            self._pause = min(self._pause * 2, _LONGEST)
        else:
            self.at = ended + max(self._every, (ended - begun) * _IDLE)
            self._pause = _FIRST
