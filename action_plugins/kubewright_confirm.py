"""Asks for the cluster's name before something that cannot be undone."""

from __future__ import annotations

import sys
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import confirmation
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs once, on the controller; logic in src/kubewright/confirmation.py."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail unless the variable `confirm`, or what is typed at the prompt, is the cluster's name."""
        super().run(tmp, task_vars)
        known = task_vars or {}
        name = str(known["ansible_facts"]["cluster"]["name"])
        if self._task.check_mode:
            return {"changed": False}
        said = known.get("confirm")
        doing = str(self._task.args["doing"])
        try:
            if said is None and sys.__stdin__ is not None and sys.__stdin__.isatty():
                said = Display().prompt_until(confirmation.question(doing, name)).decode(errors="replace").strip()
            confirmation.check(doing, name, None if said is None else str(self._templar.template(said)))
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        return {"changed": False}
