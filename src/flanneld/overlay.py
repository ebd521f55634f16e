"""Brings the kernel to what the backend wants, and remembers what keeps it from that."""

from __future__ import annotations

from pathlib import Path
from typing import AbstractSet, Optional, Sequence, Tuple

from flanneld import dataplane as dp
from flanneld.errors import FlanneldError
from flanneld.log import Repeated
from flanneld.metrics import FIGURES
from flanneld.net.kernel import Conflict, Kernel, Outcome
from flanneld.record import Record
from flanneld.repairs import Repairs, report

_PASSES = 4
"""A new MAC makes the kernel forget neighbours: the second look finds that, the third one proves the cure."""

BLACKHOLE_PRIORITY = 0xFFFFFFFE
"""The metric of the blackhole route: that of the bridge's route to the same subnet is always better."""


class Overlay:
    """The overlay of this machine; `trouble` is empty while the kernel is as it should be.

    `subnet_file`: beside it the record of the routes over the underlay is kept.
    """

    def __init__(self, kernel: Kernel, blackholes: Sequence[str] = (), subnet_file: Optional[Path] = None) -> None:
        self._kernel = kernel
        self._blackholes = blackholes
        self._record = Record(subnet_file)
        self._repairs = Repairs()
        self._repeated = Repeated()
        self._reported: Tuple[dp.Step, ...] = ()
        self._programmed: Optional[dp.Desired] = None
        self._complete = False
        self.trouble = "the overlay is not programmed yet"

    @property
    def made(self) -> AbstractSet[Tuple[str, str]]:
        """Destination and gateway of the routes over the underlay that this and earlier runs have set."""
        return self._record.past.made or frozenset()

    def follow(self, desired: dp.Desired) -> None:
        """Program what changed since the last time, without looking at the rest; look where that is not enough."""
        steps = dp.delta(self._programmed, desired) if self._programmed is not None else None
        if steps is None or self.trouble:
            self.converge(desired)
            return
        try:
            outcome = self._take(desired, steps)
        except FlanneldError as error:
            self._fail(str(error))
            return
        self._record.keep(desired, exact=False)
        if outcome.failures or outcome.conflicts:
            self.converge(desired)

    def converge(self, desired: dp.Desired) -> None:
        """Compare, repair what differs, and look again. A failure is logged and kept in `trouble`."""
        try:
            outcome = self._repair(desired)
            for destination in self._blackholes:
                self._kernel.set_blackhole(destination, BLACKHOLE_PRIORITY)
        except FlanneldError as error:
            self._fail(str(error))
            return
        self._programmed = desired
        problems = [*outcome.failures, *map(_in_the_way, outcome.conflicts)]
        self._record.keep(desired, exact=not problems)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._fail(problems[0] + more)
            return
        self._complete = True
        self._reported = ()
        fight = self._repairs.endless()
        if fight:
            self._fail(fight)
            return
        self.trouble = ""
        self._repeated.clear("the overlay is as it should be again")

    def _repair(self, desired: dp.Desired) -> Outcome:
        outcome = Outcome()
        for _ in range(_PASSES):
            found = self._kernel.find(desired)
            steps = dp.plan(desired, found, self._record.past)
            if not steps and found.underlay:
                return Outcome()
            self._tell(steps)
            outcome = self._take(desired, steps)
            if not found.underlay:
                absent = f"the interface {desired.ownership.underlay} is not there"
                return outcome._replace(failures=(absent, *outcome.failures))
        if outcome.failures or outcome.conflicts:
            return outcome
        return Outcome((f"{steps[0]} does not last: something else undoes it",))

    def _tell(self, steps: Sequence[dp.Step]) -> None:
        if not steps or tuple(steps) == self._reported:  # what fails is tried again and again, but told once
            return
        self._reported = tuple(steps)
        if self._complete:
            FIGURES.add("flannel_drift_repaired_total", len(steps))
            self._repairs.repaired(steps)
        else:
            report(steps)

    def _take(self, desired: dp.Desired, steps: Sequence[dp.Step]) -> Outcome:
        outcome = self._kernel.apply(steps)
        again = [
            conflict.step._replace(replaces=True)
            for conflict in outcome.conflicts
            if conflict.there is not None and dp.ours(conflict.there, desired, self._record.past)
        ]
        if again:
            second = self._kernel.apply(again)
            left = [one for one in outcome.conflicts if one.step._replace(replaces=True) not in again]
            outcome = Outcome((*outcome.failures, *second.failures), (*left, *second.conflicts))
        self._programmed = desired
        return outcome

    def _fail(self, text: str) -> None:
        self.trouble = text
        self._repeated.warn(f"the overlay is not as it should be, trying again: {text}")


def _in_the_way(conflict: Conflict) -> str:
    destination = conflict.step.route.destination
    # A connected route goes with the machine's address only, and takes the machine off its network.
    removable = "" if conflict.connected else f"remove it with `ip route del {destination}`, or "
    return (
        f"this machine has another route to {destination}, {conflict.via}, in the way of a lease"
        f" ({removable}give the network other addresses)"
    )
