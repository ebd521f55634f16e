"""All certificates of an inventory in one call, in the controller's own process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from kubepki import reconcile, spec
from kubepki.errors import KubepkiError


class ActionModule(ActionBase):
    """Plans in check mode, issues otherwise; no key material in results."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return every decision with its reasons."""
        super().run(tmp, task_vars)
        try:
            wanted = spec.parse(self._task.args["spec"])
            directory = Path(str(self._task.args["directory"]))
            step = reconcile.plan if self._task.check_mode else reconcile.apply
            plan = step(wanted, directory, datetime.now(UTC))
        except KubepkiError as error:
            return {"failed": True, "msg": str(error)}
        except OSError as error:
            # Unreadable, or full: a pair that was half replaced does not match, which the next run sees and cures.
            return {"failed": True, "msg": f"{error.filename or directory}: {error.strerror}; mend that and run again"}
        reasons = "".join(f"{i.name}: issue, {'; '.join(i.reasons)}\n" for i in plan.items if i.action == "issue")
        return {
            "changed": bool(plan.issued),
            "certificates": [
                {
                    "name": item.name,
                    "action": item.action,
                    "reasons": list(item.reasons),
                    "serial": item.serial,
                    "not_after": item.not_after,
                }
                for item in plan.items
            ],
            "issued": list(plan.issued),
            "files": list(plan.files),
            "warnings": list(plan.warnings),
            "diff": {"prepared": reasons},
        }
