"""All certificates of an inventory in one call, in the controller's own process."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase

from kubepki import compare, manage, reconcile, spec, store
from kubepki.errors import KubepkiError

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "spec": {"type": "dict", "required": True},
    "directory": {"type": "path", "required": True},
    # Where the password is, not the password.
    "old_password": {"type": "str", "default": "", "no_log": False},
    "spec_file": {"type": "path", "default": ""},
    "renew_names": {"type": "list", "elements": "str", "default": []},
    "renew_within_days": {"type": "float", "default": 0},
    "renew_all": {"type": "bool", "default": False},
}
_HEADER = "# What the last run asked for: kubepki plan, verify and rotate read it. Written anew by each run.\n"


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
            wanted = spec.parse(arguments["spec"])
            every = [certificate.name for certificate in wanted.certificates]
            renewal = compare.Renewal(
                every if arguments["renew_all"] else arguments["renew_names"],
                timedelta(days=arguments["renew_within_days"]),
            )
            found = step(wanted, Path(arguments["directory"]), datetime.now(UTC), arguments["old_password"], renewal)
            written = self._keep(arguments["spec"], arguments["spec_file"])
        except (KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        said = manage.report(found)
        reasons = [f"{arguments['spec_file']}: written\n"] if written else []
        reasons += [f"{item.name}: {item.action}, {'; '.join(item.reasons)}\n" for item in found.items if item.reasons]
        return {
            "changed": found.changed or written,
            "certificates": said["items"],
            "issued": list(found.issued),
            "repaired": list(found.repaired),
            "files": list(found.files),
            "same_as": dict(found.same_as),
            "consumers": said["consumers"],
            "warnings": said["warnings"],
            "diff": {"prepared": "".join(reasons)},
        }

    def _keep(self, wanted: object, where: str) -> bool:
        """Write the specification for kubepki's commands; whether the file was another."""
        if not where:
            return False
        # By way of JSON: Ansible's values are of types of its own.
        content = _HEADER + yaml.safe_dump(json.loads(json.dumps(wanted)), sort_keys=False, width=160)
        path = Path(where)
        if path.is_file() and path.read_bytes() == content.encode():
            return False
        if not self._task.check_mode:
            store.write(path, content.encode(), 0o644)
        return True
