"""Which machines come or leave, what that is refused for, and which stages it is work for on whom."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import scale, stages
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs once, on the controller; logic in src/kubewright/scale.py."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do the task's `operation`; of `add` and `remove`, the fact `scale` is the result, and the plan is shown."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._named = scale.names(self._templar.template(self._vars.get("machine")))
        operation = self._task.args["operation"]
        try:
            if operation in ("add", "remove"):
                return {"changed": False, "ansible_facts": {"scale": self._planned(operation)}}
            if operation == "typed":
                self._check_typed()
            elif operation == "known":
                self._check_known()
            elif operation == "emptied":
                hostvars = self._vars["hostvars"]
                bare = self._vars["ansible_facts"]["scale"]["bare"]
                scale.check_emptied({name: hostvars[name].get("scale_emptied") for name in bare})
            else:
                plan = self._vars["ansible_facts"]["scale"]
                work = f"the {plan['work']} of {', '.join(self._named)}"
                scale.check_complete(plan["present"], self._vars["ansible_play_hosts"], work)
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        return {"changed": False}

    def _hosts(self) -> dict[str, dict[str, Any]]:
        """Where the machines of the cluster's groups are."""
        groups, hostvars = self._vars["groups"], self._vars["hostvars"]
        return {
            name: {key: hostvars[name][key] for key in ("machine_address", "ansible_host") if key in hostvars[name]}
            for group in scale.GROUPS
            for name in groups.get(group, [])
        }

    def _check_typed(self) -> None:
        known = self._vars
        addresses = {name: scale.address_of(name, variables) for name, variables in self._hosts().items()}
        run = stages.of_run(known["ansible_run_tags"], known["ansible_skip_tags"])
        scale.check_typed(self._named, known["groups"], addresses, run, check=bool(self._task.check_mode))

    def _check_known(self) -> None:
        plan, found = self._vars["ansible_facts"]["scale"], self._task.args["found"]
        replies = [reply for register in found for reply in register.get("results", [])]
        answers = {reply["item"]["name"] for reply in replies if reply.get("found")}
        unknown = [machine["name"] for machine in plan["machines"] if not machine["known"]]
        scale.check_known(unknown, answers, list(self._vars["ansible_facts"]["cluster"]["machines"]))

    def _planned(self, operation: str) -> dict[str, Any]:
        known, adds = self._vars, operation == "add"
        cluster, hostvars = known["ansible_facts"]["cluster"], known["hostvars"]
        hosts = {name: variables for name, variables in self._hosts().items() if name in self._named}
        by_address = self._templar.template(known.get("kube_node_name_from")) == "address"
        moving = scale.moving(self._named, known["groups"], hosts, by_address=by_address)
        answers = [name for name in hosts if (hostvars[name].get("preflight_machine") or {}).get("facts")]
        dead = boolean(self._templar.template(known.get("dead", False)), strict=False)
        if adds:
            scale.check_added(self._named, cluster["machines"], answers)
        else:
            scale.check_leaving(moving, answers, dead=dead, limit=known.get("ansible_limit"))
        lines = scale.plan(cluster["machines"], moving, "joins" if adds else "leaves")
        for line in lines:
            Display().display(f"  {line}")
        return {
            "work": "addition" if adds else "removal",
            "machines": moving,
            "dead": dead,
            # What is emptied, and who takes part until then.
            "bare": [] if dead else [machine["name"] for machine in moving if machine["known"]],
            "present": known["ansible_play_hosts"],
            "stages": scale.stages(cluster["machines"], moving),
            "plan": lines,
            "lines_to_delete": scale.lines_to_delete(moving, known["groups"]),
        }
