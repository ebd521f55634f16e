"""The controller's side of the component action: render, ask the machine once, ship what differs, apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from kubewright import components, explain, quarantine
from kubewright.errors import UserError
from kubewright.turnstile import Turnstile

# How long a host waits for those that go before it, until it takes its turn all the same.
_PATIENCE_SECONDS = 300.0

# In check mode a host's fact: paths that earlier tasks of the run would have changed.
_FORESEEN = "kubewright_foreseen"


class ActionModule(ActionBase):
    """Brings components to their declaration; see the module's documentation."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run on one host; every failure a user can cause is a message, not a traceback."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        try:
            with self._turnstile() as turnstile:
                result = self._bring(turnstile)
                if result.get("failed"):
                    turnstile.report("failed")
                return result
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        except AnsibleConnectionFailure as error:
            return {"unreachable": True, "msg": quarantine.said(error.message)}

    def _render(self, name: str) -> str:
        role_path = self._vars.get("role_path")
        if not role_path:
            raise AnsibleError("kubewright_component belongs into a role")
        path = Path(str(role_path)) / "templates" / name
        if not path.is_file():
            raise UserError(f"{path}: no such template")
        text = trust_as_template(path.read_text())
        return str(self._templar.template(text, escape_backslashes=False))

    def _ask(self, step: str, **arguments: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._execute_module(
            module_name="kubewright_component",
            module_args={"step": step, "components": [d.wire for d in self._declared], **arguments},
            task_vars=self._vars,
        )
        return reply

    def _bring(self, turnstile: Turnstile) -> dict[str, Any]:
        arguments = self._task.args
        facts = self._vars["ansible_facts"]
        artifacts, goal = facts.get("artifacts") or {}, str((facts.get("upgrade") or {}).get("set") or "")
        self._declared = [
            components.expand(c, self._render, artifacts, artifacts_set=goal, foresee=self._task.check_mode)
            for c in arguments["components"]
        ]
        reply = self._ask("inspect")
        if reply.get("failed") or reply.get("unreachable"):
            return reply
        found = reply["found"]
        foreseen: dict[str, Any] = {}
        if self._task.check_mode:
            changing = self._vars["ansible_facts"].get(_FORESEEN) or []
            foreseen = {"ansible_facts": {_FORESEEN: components.foresee_restarts(self._declared, found, changing)}}
        differences = [d for finding in found for d in finding["differences"]]
        pairs = [(d.wire["unit"], f) for d, f in zip(self._declared, found, strict=True)]
        restarts = [unit for unit, f in pairs if f["restart"] and not f["reload"]]
        reloads = [unit for unit, f in pairs if f["reload"]]
        result: dict[str, Any] = {
            "changed": bool(differences or restarts or reloads),
            "differences": [{k: d[k] for k in ("kind", "path", "reason")} for d in differences],
            "restarted": restarts,
            "reloaded": reloads,
            "stopped": [unit for unit, f in pairs if f["restart"] and not f["running"] and f["current"]],
            **foreseen,
        }
        if self._task.diff:
            result["diff"] = components.diffs(self._declared, found)
        if self._task.check_mode or not result["changed"]:
            return result
        self._require_inputs(found)
        staged, contents = self._ship(found)
        interrupts = components.interrupts(found)
        try:
            if bool(arguments.get("rolling")) and interrupts:
                with turnstile.turn(last=any(f["leader"] for f in found), patience=_PATIENCE_SECONDS):
                    result = self._conclude(result, self._ask("apply", contents=contents, staged=staged))
                    # Before the next host gets the turn.
                    turnstile.report("failed" if result.get("failed") else "done")
            else:
                turnstile.report("starting")
                result = self._conclude(result, self._ask("apply", contents=contents, staged=staged))
        finally:
            if staged:
                self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _turnstile(self) -> Turnstile:
        directory = Path(constants.DEFAULT_LOCAL_TMP) / f"turn-{self._task._uuid}"
        among = self._task.args.get("among")
        hosts = [host for host in self._vars["ansible_play_hosts"] if among is None or host in among]
        return Turnstile(directory, self._vars["inventory_hostname"], hosts)

    def _require_inputs(self, found: list[dict[str, Any]]) -> None:
        for declared, finding in zip(self._declared, found, strict=True):
            if finding["missing_inputs"]:
                raise UserError(
                    f"{declared.wire['name']} needs {', '.join(finding['missing_inputs'])}, which is not there yet",
                    f"run the stage before first: --tags {declared.input_stage}",
                )

    def _ship(self, found: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
        contents, binaries = components.shipment(self._declared, found)
        staged: dict[str, str] = {}
        if binaries:
            directory = self._make_tmp_path()
            self._connection._shell.tmpdir = directory
            for digest, local in binaries.items():
                staged[digest] = self._connection._shell.join_path(directory, digest)
                self._transfer_file(local, staged[digest])
        return staged, contents

    def _conclude(self, result: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if reply.get("failed") or reply.get("unreachable"):
            return reply
        if reply["refusal"]:
            return {**result, "failed": True, "restarted": [], "reloaded": [], "msg": reply["refusal"]}
        result.update({key: reply[key] for key in ("restarted", "reloaded", "seconds")})
        if reply["failure"]:
            result["failed"] = True
            result["msg"] = explain.failure(self._vars["inventory_hostname"], reply["failure"])
        return result
