"""The thread that keeps the traffic rules as they should be."""

from __future__ import annotations

import threading
from typing import Callable

from flanneld.errors import RulesError
from flanneld.log import Repeated, logger
from flanneld.rules.bridge import check_bridge_netfilter, remark_bridge_netfilter
from flanneld.rules.engine import Rules
from flanneld.rules.spec import RuleSpec


class RulesGuard(threading.Thread):
    """Checks the rules every `every` seconds and when told to; `trouble` is empty while they are as they should be.

    `bridged`: whether the rules see traffic between pods of this machine only through br_netfilter. `changed` is
    called from this thread whenever `trouble` has changed. A failure of any kind is a trouble, never the thread's end.
    """

    def __init__(
        self, rules: Rules, spec: RuleSpec, every: float, changed: Callable[[], None], *, bridged: bool
    ) -> None:
        super().__init__(name="rules", daemon=True)
        self._rules = rules
        self._bridged = bridged
        self._spec = spec
        self._every = every
        self._changed = changed
        self._told = threading.Event()
        self._repeated = Repeated()
        self._remark = ""
        self.trouble = "the traffic rules are not set yet"

    def follow(self, spec: RuleSpec) -> None:
        """Have other rules from now on."""
        self._spec = spec
        self._told.set()

    def run(self) -> None:
        """Check for ever."""
        try:
            while True:
                self._told.clear()
                before = self.trouble
                self._check()
                if self.trouble != before:
                    self._changed()
                self._told.wait(self._every)
        finally:
            self.trouble = "the traffic rules are not looked after any more"

    def _check(self) -> None:
        try:
            for wrong in self._rules.ensure(self._spec):
                logger.info("traffic rules: %s; set anew", wrong)
            self.trouble = check_bridge_netfilter(self._spec.networks) if self._bridged else ""
            remark = remark_bridge_netfilter(self._spec.networks) if self._bridged else ""
            if remark and remark != self._remark:
                logger.warning("%s", remark)
            self._remark = remark
            if self.trouble:
                self._repeated.warn(self.trouble)
            else:
                self._repeated.clear("the traffic rules are in place again")
        except RulesError as error:
            self.trouble = str(error)
            self._repeated.warn(f"the traffic rules cannot be set, trying again: {error}")
        except Exception as error:  # noqa: BLE001 - rules that nobody looks after are worse than any fault in here
            self.trouble = f"the traffic rules cannot be checked: {type(error).__name__}: {error}"
            self._repeated.warn(f"{self.trouble}; trying again")
            logger.debug("how that came about", exc_info=True)
