"""Asks for the cluster's name before something that cannot be undone."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsiblePromptNoninteractive
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
            if said is None:
                said = _answer(confirmation.question(doing, name))
            confirmation.check(doing, name, None if said is None else str(self._templar.template(said)))
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        return {"changed": False}


def _answer(question: str) -> str | None:
    """What somebody types; None where nobody sits at a terminal."""
    try:
        # The worker that this runs in has no terminal, the process that it asks may.
        return str(Display().prompt_until(question).decode(errors="replace").strip())
    except AnsiblePromptNoninteractive:
        return None
