"""The certificates of all machines, of the controller and of running services, in one table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubepki import check, report, survey
from kubepki.errors import KubepkiError
from kubewright import certreport
from kubewright.files import write_file

# Of the lines that name machines, a file and units.
_WIDTH = 160
_ROOT = Path(__file__).resolve().parent.parent
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "own": {"type": "list", "elements": "path", "required": True},
    "warn_days": {"type": "float", "required": True},
    "critical_days": {"type": "float", "required": True},
    "report": {"type": "str", "default": ""},
    "show": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    """Runs once, on the controller; every machine has been asked before (`pki_seen`)."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `restart_for`: certificates whose renewal restarts what has a short-lived one in its memory."""
        super().run(tmp, task_vars)
        known = task_vars or {}
        _, arguments = self.validate_argument_spec(_ARGUMENTS)
        warn, critical = arguments["warn_days"], arguments["critical_days"]
        if critical > warn:
            return {
                "failed": True,
                "msg": f"pki_critical_days {critical:g} is more than pki_warn_days {warn:g}; a warning comes first",
            }
        now = datetime.now(UTC)
        try:
            own = survey.find([path for path in arguments["own"] if Path(path).exists()], ["retired"])
        except (KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        found = certreport.of_controller(own)
        troubles = []
        for host in known["ansible_play_hosts"]:
            seen = (known["hostvars"][host].get("pki_seen") or {}).get("seen")
            if seen:
                certificates, problems = certreport.of_machine(host, seen)
                found += certificates
                troubles += problems
        judgement = certreport.judge(found, troubles, now, check.Limits(warn, critical))
        restart_for = certreport.to_renew(found, now, warn)
        if not arguments["show"]:
            return {"changed": False, "restart_for": restart_for}
        Display().display("\n" + report.table(judgement, width=_WIDTH))
        if arguments["report"] and not self._task.check_mode:
            try:
                write_file(_ROOT / arguments["report"], json.dumps(certreport.data(found, judgement), indent=1) + "\n")
            except OSError as error:
                return {"failed": True, "msg": f"pki_report: {error}"}
        counts = f"{len(judgement.certificates)} certificates in {len(found)} places, {judgement.state}"
        reason = certreport.failure(judgement)
        result = {"changed": False, "restart_for": restart_for, "counts": counts}
        return {**result, "failed": True, "msg": reason} if reason else result
