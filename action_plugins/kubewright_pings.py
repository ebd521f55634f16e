"""The test pods ping each other while something is changed: begun, and ended with what was lost."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import network_pings
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs once, on a machine with a master's administrator certificate, with the pods of kubewright_verify."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """`begin`; `end`: {lines, lost, unknown}; `judge` what `end` has returned."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        if self._task.args["step"] == "judge":
            reason = network_pings.judged(self._task.args["result"], int(self._task.args["lost"]))
            return {"changed": False, "failed": bool(reason), "msg": reason}
        if self._task.check_mode:
            return {"changed": False, "skipped": True}
        self._pods = self._task.args["pods"]
        partners = network_pings.partners(list(self._pods["pods"]))
        try:
            return self._begin(partners) if self._task.args["step"] == "begin" else self._end(partners)
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _begin(self, partners: dict[str, list[str]]) -> dict[str, Any]:
        for name, others in partners.items():
            output = self._exec(name, network_pings.begin([self._pods["pods"][other] for other in others]))
            if network_pings.READY not in output:
                raise UserError(
                    f"the test pod on {name} does not begin to ping: {output.strip()}",
                    "ping of verify_image must be busybox's, with fractions of seconds for -i, as that of the default",
                )
        return {"changed": False}

    def _end(self, partners: dict[str, list[str]]) -> dict[str, Any]:
        names = {address: name for name, address in self._pods["pods"].items()}
        pairs, unknown = [], []
        for name, others in partners.items():
            output = self._exec(name, network_pings.end([self._pods["pods"][other] for other in others]))
            found = network_pings.read(name, output, names)
            pairs += found
            unknown += [f"{name} > {other}" for other in others if other not in {one.target for one in found}]
        lines = network_pings.lines(pairs) if partners else ["one node: nobody to ping"]
        if unknown:
            lines.append(f"of {', '.join(unknown)} nothing is known: their test pods are gone")
        for line in lines:
            Display().display(f"  {line}")
        lost = sum(one.lost for one in pairs)
        return {"changed": False, "lines": lines, "lost": lost, "unknown": unknown}

    def _exec(self, node: str, script: str) -> str:
        command = ["/usr/local/bin/kubectl", "--kubeconfig=/opt/kubernetes/cfg/admin.kubeconfig"]
        command += [f"--namespace={self._pods['namespace']}", "exec", self._pods["names"][node], "--"]
        reply = self._execute_module(
            module_name="ansible.legacy.command",
            module_args={"argv": [*command, "/bin/sh", "-c", script]},
            task_vars=self._vars,
        )
        return str(reply.get("stdout", "")) or str(reply.get("stderr", ""))
