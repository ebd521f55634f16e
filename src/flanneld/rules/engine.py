"""What keeps the rules: an engine, of which there are two."""

from __future__ import annotations

import abc
import os
import time
from typing import Iterable, List, Optional, Set

from flanneld.errors import RulesError
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.rules.kernel_state import State
from flanneld.rules.spec import RuleSpec
from flanneld.subnet.config import Network

FULL = 60.0
"""Seconds after which the rules are compared even if the kernel says that nothing has changed.

They are up to ten times as many where a comparison takes long, because there are tens of thousands of rules: it may
take SHARE of a core.
"""

SHARE = 0.001

_PASSES = 3


class Rules(abc.ABC):
    """Keeps the rules as they should be; belongs to one thread, and may block it for some seconds.

    `former`: networks that this machine had before the daemon started; their rules are removed.
    """

    def __init__(self, former: Iterable[Network] = ()) -> None:
        self._former: Set[Network] = set(former)
        self._spec: Optional[RuleSpec] = None
        self._state: State = None
        self._full_at = 0.0
        self._was_right = False
        self._replaced = False
        self._repeated = Repeated()

    def ensure(self, spec: RuleSpec) -> List[str]:
        """Make the rules as they should be; returns in words what was wrong, nothing when all was as it should be.

        Costs one or a few questions to the kernel when nothing has changed. Raises RulesError.
        """
        if spec != self._spec:
            if self._spec is not None:
                self._former.update(network for network, _ in self._spec.networks.values())
            self._spec, self._state, self._was_right = spec, None, False
        elif self._state is not None and time.monotonic() < self._full_at and self.fingerprint() == self._state:
            return []
        self._state = None
        found: List[str] = []
        began = _cpu()
        self._prepare(spec)
        for attempt in range(_PASSES):
            state = self.fingerprint()  # asked before the look, so that a later change is noticed the next time
            wrong = self._repair(spec, last=attempt == _PASSES - 1)
            if not wrong:
                break
            found += [one for one in wrong if one not in found]
        if found and self._was_right:
            FIGURES.add("flannel_rule_repairs_total")
        pause = min(max(FULL, (_cpu() - began) / SHARE), 10 * FULL)
        self._state, self._full_at, self._was_right = state, time.monotonic() + pause, True
        if not self._replaced:
            self._replace(spec)
        return found

    @abc.abstractmethod
    def remove(self, spec: Optional[RuleSpec] = None) -> List[str]:
        """Remove the rules of this daemon's networks, now and before, those of Go daemons of all versions included.

        Without `spec` those of all networks, apart from rules that Go daemons before v0.20 have put into built-in
        chains: only the network tells them from a user's. Returns in words what was removed; raises RulesError.
        To leave no trace of any kind: first with the spec, then without.
        """

    @abc.abstractmethod
    def fingerprint(self) -> State:
        """Return something that differs when the rules may have changed, asked cheaply; None when it cannot be."""

    @abc.abstractmethod
    def _prepare(self, spec: RuleSpec) -> None:
        """Find out what is needed for this spec. Raises RulesError."""

    @abc.abstractmethod
    def _repair(self, spec: RuleSpec, *, last: bool) -> List[str]:
        """Compare, and set right what differs; returns that. `last`: what differs now cannot be set right."""

    @abc.abstractmethod
    def _other(self) -> Optional["Rules"]:
        """Return the engine whose rules these replace, None when there is nothing of it on this machine."""

    def _replace(self, spec: RuleSpec) -> None:
        """Remove the other engine's rules once these are in place, so that there is no moment without rules."""
        try:
            other = self._other()
            for gone in other.remove(spec) if other is not None else ():
                logger.info("%s", gone)
            self._replaced = True
        except RulesError as error:
            self._repeated.warn(f"rules of the other kind cannot be removed, trying again: {error}")

    def _owned(self, spec: RuleSpec) -> List[Network]:
        return [network for network, _ in spec.networks.values()] + sorted(
            self._former, key=lambda one: (one.version, one.network_address, one.prefixlen)
        )

    def _versions(self, spec: RuleSpec) -> List[int]:
        return sorted({network.version for network in self._owned(spec)})


def _cpu() -> float:
    """Return the seconds of CPU that this thread has used, and all programs the daemon has started."""
    children = os.times()
    return time.thread_time() + children.children_user + children.children_system


def make_rules(nftables: bool, former: Iterable[Network] = ()) -> Rules:
    """Return the engine for a network's EnableNFTables."""
    if nftables:
        from flanneld.rules.nftables import Nftables  # noqa: PLC0415 - one engine is enough

        return Nftables(former)
    from flanneld.rules.iptables import Iptables  # noqa: PLC0415 - as above

    return Iptables(former)
