"""Which machines come or leave, what that is refused for, and which stages it is work for on whom."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import scale
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs once, on the controller, after the preflight; logic in src/kubewright/scale.py."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the fact `scale`: {machines, stages: {machine: [stage]}}, and show the plan."""
        super().run(tmp, task_vars)
        known = task_vars or {}
        cluster = known["ansible_facts"]["cluster"]
        named = scale.names(self._templar.template(known.get("machine")))
        adds = self._task.args["operation"] == "add"
        hostvars = known["hostvars"]
        hosts = {
            name: {key: hostvars[name][key] for key in ("machine_address", "ansible_host") if key in hostvars[name]}
            for name in named
            if name in known["groups"]["all"]
        }
        by_address = self._templar.template(known.get("kube_node_name_from")) == "address"
        moving = scale.moving(named, known["groups"], hosts, by_address=by_address)
        answers = [name for name in hosts if (hostvars[name].get("preflight_machine") or {}).get("facts")]
        dead = boolean(self._templar.template(known.get("dead", False)), strict=False)
        try:
            if adds:
                scale.check_added(named, cluster["machines"])
            else:
                scale.check_leaving(moving, answers, dead=dead, limit=known.get("ansible_limit"))
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        lines = scale.plan(cluster["machines"], moving, "joins" if adds else "leaves")
        for line in lines:
            Display().display(f"  {line}")
        facts = {
            "machines": moving,
            "dead": dead,
            "stages": scale.stages(cluster["machines"], moving),
            "plan": lines,
            "lines_to_delete": scale.lines_to_delete(moving, known["groups"]),
        }
        return {"changed": False, "ansible_facts": {"scale": facts}}
