"""A machine's place in the window of a play; logic in src/kubewright/window.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright.errors import UserError
from kubewright.window import Window


class ActionModule(ActionBase):
    """Runs on the controller, for each machine of a play with the strategy host_pinned."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Enter, or leave; see the module's documentation."""
        super().run(tmp, task_vars)
        arguments, host = self._task.args, str((task_vars or {})["inventory_hostname"])
        hosts = [str(name) for name in arguments["hosts"]]
        window = Window(
            Path(constants.DEFAULT_LOCAL_TMP), f"window-{arguments['name']}", host, hosts, int(arguments["size"])
        )
        if arguments["step"] == "enter":
            return self._enter(window)
        failure = str(arguments.get("failure") or "")
        window.leave(failed=bool(failure))
        return {"failed": True, "msg": failure} if failure else {"changed": False}

    def _enter(self, window: Window) -> dict[str, Any]:
        try:
            blocked_by = window.enter()
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        left = window.left() if blocked_by else []
        if left:
            Display().display(
                f"left as they were, because {', '.join(blocked_by)} failed or was lost: {', '.join(left)}",
                color="bright red",
            )
        return {"changed": False, "blocked_by": blocked_by}
