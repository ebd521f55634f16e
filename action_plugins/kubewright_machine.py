"""Facts of a machine, with the skew between its clock and the controller's."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from kubewright import custody


class ActionModule(ActionBase):
    """Times the module call: the machine's clock was read somewhere within it."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's facts with `skew_seconds`: how far the clock is off at least, 0 within the doubt."""
        super().run(tmp, task_vars)
        before = time.time()
        try:
            result: dict[str, Any] = self._execute_module(
                module_name="kubewright_machine",
                module_args={**self._task.args, "cas": list(custody.CAS.values())},
                task_vars=task_vars,
            )
        except AnsibleConnectionFailure as error:
            if not self._task.delegate_to:
                raise
            # One of several that would do, and no machine of this run.
            return {"changed": False, "away": True, "msg": " ".join(error.message.split())[:300]}
        after = time.time()
        facts = result.get("facts")
        if facts:
            facts["skew_seconds"] = max(0.0, before - facts["now"], facts["now"] - after)
        return result
