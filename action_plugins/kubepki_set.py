"""All certificates of an inventory in one call, in the controller's own process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from kubepki import manage, reconcile, spec
from kubepki.errors import KubepkiError

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "spec": {"type": "dict", "required": True},
    "directory": {"type": "path", "required": True},
    # Where the password is, not the password.
    "old_password": {"type": "str", "default": "", "no_log": False},
}


class ActionModule(ActionBase):
    """Plans in check mode, issues and repairs otherwise; no key material in results."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return every decision with its reasons."""
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(_ARGUMENTS)
        step = reconcile.plan if self._task.check_mode else reconcile.apply
        try:
            found = step(
                spec.parse(arguments["spec"]),
                Path(arguments["directory"]),
                datetime.now(UTC),
                arguments["old_password"],
            )
        except (KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        said = manage.report(found)
        reasons = [f"{item.name}: {item.action}, {'; '.join(item.reasons)}\n" for item in found.items if item.reasons]
        return {
            "changed": found.changed,
            "certificates": said["items"],
            "issued": list(found.issued),
            "repaired": list(found.repaired),
            "files": list(found.files),
            "same_as": dict(found.same_as),
            "consumers": said["consumers"],
            "warnings": said["warnings"],
            "diff": {"prepared": "".join(reasons)},
        }
