"""Brings the kernel to what the backend wants, and remembers what keeps it from that."""

from __future__ import annotations

from logging import INFO, WARNING
from typing import List, Optional, Sequence, Tuple

from flanneld import dataplane as dp
from flanneld.errors import FlanneldError
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.net.kernel import Conflict, Kernel, Outcome

_PASSES = 4
"""A new MAC makes the kernel forget neighbours: the second look finds that, the third one proves the cure."""

_SHOWN = 10

BLACKHOLE_PRIORITY = 0xFFFFFFFE
"""The metric of the blackhole route: that of the bridge's route to the same subnet is always better."""


class Overlay:
    """The overlay of this machine; `trouble` is empty while the kernel is as it should be."""

    def __init__(self, kernel: Kernel, blackholes: Sequence[str] = ()) -> None:
        self._kernel = kernel
        self._blackholes = blackholes
        self._repeated = Repeated()
        self._reported: Tuple[dp.Step, ...] = ()
        self._programmed: Optional[dp.Desired] = None
        self._complete = False
        self.trouble = "the overlay is not programmed yet"

    def follow(self, desired: dp.Desired) -> None:
        """Program what changed since the last time, without looking at the rest; look where that is not enough."""
        steps = dp.delta(self._programmed, desired) if self._programmed is not None else None
        if steps is None or self.trouble:
            self.converge(desired)
            return
        outcome = self._take(desired, steps, told=False)
        if outcome.failures or outcome.conflicts:
            self.converge(desired)

    def converge(self, desired: dp.Desired) -> None:
        """Compare, repair what differs, and look again. A failure is logged and kept in `trouble`."""
        outcome = Outcome()
        try:
            for _ in range(_PASSES):
                steps = dp.plan(desired, self._kernel.find(desired))
                if not steps:
                    outcome = Outcome()
                    break
                if self._complete:
                    FIGURES.add("flannel_drift_repaired_total", len(steps))
                outcome = self._take(desired, steps, told=True)
            else:
                if not outcome.failures and not outcome.conflicts:
                    outcome = Outcome((f"{steps[0]} does not last: something else undoes it",))
            for destination in self._blackholes:
                self._kernel.set_blackhole(destination, BLACKHOLE_PRIORITY)
        except FlanneldError as error:
            self._fail(str(error))
            return
        except OSError as error:
            self._fail(f"the kernel's network cannot be used: {error.strerror or error}")
            return
        self._programmed = desired
        problems = [*outcome.failures, *map(_in_the_way, outcome.conflicts)]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._fail(problems[0] + more)
            return
        self.trouble = ""
        self._complete = True
        self._reported = ()
        self._repeated.clear("the overlay is as it should be again")
        FIGURES.set("flannel_peers_programmed", len(desired.routes))

    def drift(self, desired: dp.Desired) -> List[str]:
        """Return in words what differs from what is wanted, without changing anything."""
        return [str(step) for step in dp.plan(desired, self._kernel.find(desired))]

    def _take(self, desired: dp.Desired, steps: Sequence[dp.Step], *, told: bool) -> Outcome:
        if told and tuple(steps) != self._reported:  # what fails is tried again and again, but told once
            _report(steps)
            self._reported = tuple(steps)
        outcome = self._kernel.apply(steps)
        names = [device.name for device in desired.devices]
        again = [
            conflict.step._replace(replaces=True)
            for conflict in outcome.conflicts
            if conflict.there is not None and dp.ours(conflict.there, desired.ownership, names)
        ]
        if again:
            second = self._kernel.apply(again)
            left = [one for one in outcome.conflicts if one.step._replace(replaces=True) not in again]
            outcome = Outcome((*outcome.failures, *second.failures), (*left, *second.conflicts))
        self._programmed = desired
        FIGURES.set("flannel_peers_programmed", len(desired.routes))
        return outcome

    def _fail(self, text: str) -> None:
        self.trouble = text
        self._repeated.warn(f"the overlay is not as it should be, trying again: {text}")


def _in_the_way(conflict: Conflict) -> str:
    destination = conflict.step.route.destination
    return (
        f"this machine has another route to {destination}, {conflict.via}, in the way of a lease"
        f" (remove it with `ip route del {destination}`, or give the network other addresses)"
    )


def _report(steps: Sequence[dp.Step]) -> None:
    for step in steps[:_SHOWN]:
        logger.log(WARNING if isinstance(step, dp.DeleteDevice) else INFO, "%s", step)
    if len(steps) > _SHOWN:
        logger.info("and %d steps more", len(steps) - _SHOWN)
