"""The closing words of a playbook, as plain lines on the screen."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


class ActionModule(ActionBase):
    """Runs once, on the controller. Arguments: `title`, and `lines`, empty ones left out."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print."""
        super().run(tmp, task_vars)
        display = Display()
        display.display(f"\n{self._task.args['title']}", color="bright green")
        for line in self._task.args.get("lines") or ():
            if str(line).strip():
                display.display(f"  {line}")
        return {"changed": False}
