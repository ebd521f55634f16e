"""Whether a kubelet's certificates are from the CA that issues now; the machine has no means to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from cryptography import x509

from kubepki import issue
from kubepki.errors import KubepkiError
from kubepki.rules_x509 import issued_by


class ActionModule(ActionBase):
    """Looks first, and renews only where it has to; with `conclude` it never does, and fails instead."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether the kubelet was restarted."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        path = Path(str(self._task.args["ca"]))
        try:
            ca = issue.load(path.read_bytes(), str(path))
        except (KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}
        reply = self._ask("look")
        if reply.get("failed") or reply.get("unreachable"):
            return reply
        others = [kind for kind, pem in reply["held"].items() if not _is_from(pem, ca)]
        if not others:
            concluded = self._ask("conclude")
            return {**concluded, "changed": False, "renewed": False}
        issuer = ca.subject.rfc4514_string()
        if self._task.args.get("conclude"):
            return {
                "failed": True,
                "msg": f"the {' and '.join(others)} certificates of the kubelet are not from {issuer}",
            }
        reason = f"restart kubelet.service: its {' and '.join(others)} certificates are not from {issuer}"
        diff = {"diff": {"prepared": f"{reason}\n"}} if self._task.diff else {}
        if self._task.check_mode:
            return {"changed": True, "renewed": False, **diff}
        return {**self._ask("renew"), **diff, "renewed": True}

    def _ask(self, step: str) -> dict[str, Any]:
        timeout = int(self._task.args.get("timeout", 60))
        reply: dict[str, Any] = self._execute_module(
            module_name="kubewright_kubelet_certs",
            module_args={"step": step, "timeout": timeout},
            task_vars=self._vars,
        )
        return reply


def _is_from(pem: str, ca: x509.Certificate) -> bool:
    """Whether a CA issued the first certificate of a text; one that is missing or damaged is of nobody."""
    try:
        return issued_by(issue.load_all(pem.encode(), "kubelet")[0], ca)
    except KubepkiError:
        return False
