"""Decides what a reset removes from which machines, and says in the end what it did."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import resets, runlock, variables
from kubewright.errors import UserError

_PARTS = ("reset_nodes", "reset_masters", "reset_etcd", "reset_rest")
_OWN = {*_PARTS, "reset_lock", "reset_others", "reset_found", "reset_closing", "reset_options", "reset_controller"}


class ActionModule(ActionBase):
    """Runs once, on the controller; logic in src/kubewright/resets.py."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Step `plan`: the facts `reset` and `cluster`; step `close`: `title` and `lines` of the summary."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        try:
            return self._plan() if self._task.args["step"] == "plan" else self._close()
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _specs(self, role: str) -> dict[str, dict[str, Any]]:
        path = Path(self._vars["role_path"]).parent / role / "meta" / "argument_specs.yml"
        options: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
        return options

    def _plan(self) -> dict[str, Any]:
        specs = self._specs("reset")
        hosts = list(self._vars["ansible_play_hosts_all"])
        problems = self._variable_problems(specs, hosts)
        if problems:
            raise UserError(resets.report(problems))
        reset = {name: self._templar.template(self._vars[name]) for name in specs}
        self._refuse_beside_others(hosts)
        found = {name: self._vars["hostvars"][name].get("reset_found") or {} for name in hosts}
        unseen = [name for name, seen in found.items() if "components" not in seen]
        there = {one for seen in found.values() for one in seen.get("components", ())}
        tags, skipped = self._vars["ansible_run_tags"], self._vars["ansible_skip_tags"]
        chosen = resets.selection(tags, skipped, reset["reset_components"], there)
        groups = {name: list(members) for name, members in self._vars["groups"].items()}
        members = [name for name, seen in found.items() if seen.get("member")]
        mode = str(self._templar.template(self._vars.get("api_endpoint_mode", "auto")))
        problems = resets.refusals(groups, hosts, members, chosen, mode)
        everybody = {name for group in ("etcd", "kube_master", "kube_node", "lb") for name in groups.get(group, ())}
        if reset["reset_forget"] and (chosen or unseen or everybody != set(hosts)):
            problems.append(
                "reset_forget: machines that are not reset now need the CAs and keys of this controller; it is for the "
                "whole cluster, with all machines reachable"
            )
        if problems:
            raise UserError(resets.report(problems))
        data = bool(reset["reset_data"] or not chosen)
        plan = {
            "parts": resets.parts(chosen),
            "whole": not chosen,
            "data": data,
            "forget": bool(reset["reset_forget"]),
            "doing": resets.doing(chosen, [name for name in hosts if name not in unseen], data=data),
        }
        default = self._specs("preflight")["cluster_name"]["default"]
        name = str(self._templar.template(self._vars.get("cluster_name", default)))
        return {"changed": False, "ansible_facts": {"reset": plan, "cluster": {"name": name}}}

    def _refuse_beside_others(self, hosts: list[str]) -> None:
        """As in the preflight, which a reset does without."""
        if self._task.check_mode:
            return
        run, now = runlock.current, time.time()
        if run and run.holder is not None:
            raise UserError(*runlock.refused_here(run.holder, now))
        asked = {name: self._vars["hostvars"][name].get("reset_lock") or {} for name in hosts}
        asked |= {reply["item"]: reply for reply in (self._vars.get("reset_others") or {}).get("results", ())}
        locks = {name: reply["lock"] for name, reply in asked.items() if reply.get("lock")}
        held = {name: lock["holder"] for name, lock in locks.items() if lock["holder"]}
        if held:
            raise UserError(*runlock.refused_there(held, now))
        for text in runlock.taken_over(locks, now):
            Display().warning(text)

    def _variable_problems(self, specs: dict[str, dict[str, Any]], hosts: list[str]) -> list[str]:
        used: dict[str, list[str]] = {}
        values: dict[str, dict[str, Any]] = {}
        manager = self._task.get_variable_manager()
        for host in hosts:
            values[host] = {}
            known = manager.get_vars(host=manager._inventory.get_host(host), include_hostvars=False)
            for key in (str(key) for key in known if str(key).startswith("reset")):
                used.setdefault(key, []).append(host)
                if key in specs:
                    values[host][key] = self._vars["hostvars"][host][key]
        return variables.misspelt(used, [*specs, *_OWN], ["reset_"]) + variables.wrong(values, specs)

    def _close(self) -> dict[str, Any]:
        groups, hostvars = self._vars["groups"], self._vars["hostvars"]
        names = [name for name in groups["all"] if name in self._vars["ansible_play_hosts_all"]]
        plans = [plan for name in names if (plan := hostvars[name].get("ansible_facts", {}).get("reset"))]
        if not plans:
            return {"changed": False, "title": "Nothing was done", "lines": []}
        results = {name: [hostvars[name][part] for part in _PARTS if part in hostvars[name]] for name in names}
        unreachable = [name for name in names if hostvars[name].get("reset_found", {}).get("unreachable")]
        title, lines = resets.closing(results, unreachable, whole=plans[0]["whole"], check=self._task.check_mode)
        return {"changed": False, "title": title, "lines": lines}
