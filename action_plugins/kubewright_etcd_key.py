"""flannel's configuration in etcd: flanneld's own rule says which changes nodes that have subnets take over."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from kubewright import network_change, podnetwork

_TAKEN_OVER = (
    "The nodes take it over while flanneld runs: rules, routes and subnet.env follow within seconds, and every node "
    "keeps its subnet. The stage proxy brings kube-proxy the new pod_cidr"
)


class ActionModule(ActionBase):
    """Runs the module; where it refuses, once more with the value that may be replaced."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's answer, with what the change means for the nodes."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        answer: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        if "in_use" not in answer:
            return answer
        reasons = podnetwork.refusals(answer["in_use"], answer["wanted"])
        if reasons:
            hint = network_change.hint(answer["in_use"], arguments["value"])
            reasons = [*reasons, hint] if hint else reasons
            return {**answer, "msg": f"{answer['msg']}. Running flannelds would not take it over: {'; '.join(reasons)}"}
        answer = self._execute_module(module_args={**arguments, "replaces": answer["in_use"]}, task_vars=task_vars)
        return answer if answer.get("failed") else {**answer, "msg": _TAKEN_OVER}
