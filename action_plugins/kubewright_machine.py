"""Facts of a machine, with the skew between its clock and the controller's; with them comes the cluster's lock."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import custody, quarantine, runlock
from kubewright.machine import lock


class ActionModule(ActionBase):
    """Times the module call: the machine's clock was read somewhere within it."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's facts with `skew_seconds`: how far the clock is off at least, 0 within the doubt."""
        super().run(tmp, task_vars)
        known = task_vars or {}
        arguments = dict(self._task.args)
        run = runlock.current
        if arguments.pop("lock", False):
            arguments["look"] = True
            if run and run.holder is None and not self._task.check_mode:
                broken = str(self._templar.template(known.get("break_lock")) or "")
                arguments.update(look=False, lock=run.me, break_lock=broken)
        before = time.time()
        try:
            result: dict[str, Any] = self._execute_module(
                module_name="kubewright_machine",
                module_args={**arguments, "cas": list(custody.CAS.values())},
                task_vars=task_vars,
            )
        except AnsibleConnectionFailure as error:
            # One that is asked beside the machines of this run may be away, or sick: another one will do.
            away = {"changed": False, "away": True} if self._task.delegate_to else {"unreachable": True}
            return {**away, "msg": quarantine.said(error.message)}
        after = time.time()
        if result.get("failed") and self._task.delegate_to:
            return {"changed": False, "away": True, "msg": result.get("msg") or "the question fails there"}
        facts = result.get("facts")
        if facts:
            facts["skew_seconds"] = max(0.0, before - facts["now"], facts["now"] - after)
        if run and (result.get("lock") or {}).get("new"):
            self._keep(run, str(self._task.delegate_to or known["inventory_hostname"]))
        return result

    def _keep(self, run: runlock.Run, machine: str) -> None:
        beat, give_back = lock.upkeep(run.me["id"])

        def taken() -> str:
            reply = self._quietly(beat)
            return runlock.lost(machine, reply["stdout"], time.time()) if reply["rc"] == lock.TAKEN else ""

        runlock.keep(run, taken, partial(self._quietly, give_back))

    def _quietly(self, command: str) -> dict[str, Any]:
        # There is no run any more that could show something.
        display = Display()
        display._final_q = None
        display.verbosity = 0
        reply: dict[str, Any] = self._low_level_execute_command(command)
        return reply
