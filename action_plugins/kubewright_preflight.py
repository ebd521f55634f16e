"""Checks inventory and machines, reports everything at once, and hands out the computed cluster as a fact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase

from kubewright import certificates, preflight, topology
from kubewright.errors import UserError

_CLUSTER_GROUPS = ("etcd", "kube_master", "kube_node")


def _specs(roles: Path) -> dict[str, dict[str, Any]]:
    """Every public variable with its specification, from the argument specs of all roles."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        specs = yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}
        found.update(specs)
    return found


class ActionModule(ActionBase):
    """Runs once, on the controller."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail with every problem, or return the fact `cluster`."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        try:
            return self._check()
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _hosts(self) -> list[str]:
        groups = self._vars["groups"]
        names: list[str] = []
        for name in [host for group in _CLUSTER_GROUPS for host in groups.get(group, [])]:
            if name not in names:
                names.append(name)
        order = {name: index for index, name in enumerate(groups["all"])}
        return sorted(names, key=lambda name: order[name])

    def _check(self) -> dict[str, Any]:
        hostvars = self._vars["hostvars"]
        names = self._hosts()
        if not names:
            raise UserError(
                "the inventory has no hosts in the groups etcd, kube_master and kube_node", "see inventories/"
            )
        specs = _specs(Path(self._vars["role_path"]).parent)
        problems = self._variable_problems(names, specs)
        hosts = {name: self._host_variables(hostvars[name]) for name in names}
        own = {name: self._templar.template(self._vars[name]) for name in specs if name in self._vars}
        cluster, found = topology.build(own, hosts, self._vars["groups"])
        problems += found
        facts, unreachable = self._machine_facts(names)
        limits = preflight.Limits(str(own["artifacts_architecture"]), float(own["preflight_max_clock_skew"]))
        if cluster is None:
            problems += [f"{name}: cannot be reached: {why}" for name, why in unreachable.items()]
        else:
            problems += preflight.machines_problems(cluster, facts, unreachable, limits)
        if problems or cluster is None:
            return {"failed": True, "msg": preflight.report(problems)}
        known = cluster.facts()
        known["etcd_is_new"] = preflight.etcd_is_new(cluster, facts)
        known["ip_vs"] = {name: fact["ip_vs"] for name, fact in facts.items()}
        known["pki_spec"] = certificates.spec(cluster)
        known["pki_files"] = {name: certificates.distribution(cluster, name) for name in hosts}
        return {"changed": False, "ansible_facts": {"cluster": known}}

    def _host_variables(self, variables: Any) -> dict[str, Any]:
        wanted = ("ansible_host", "machine_address", "kube_node_labels")
        return {key: variables[key] for key in wanted if key in variables}

    def _machine_facts(self, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        facts: dict[str, Any] = {}
        unreachable: dict[str, str] = {}
        for name in names:
            reply = self._vars["hostvars"][name].get("preflight_machine")
            if not reply:
                continue
            if reply.get("facts"):
                facts[name] = reply["facts"]
            else:
                unreachable[name] = " ".join(str(reply.get("msg") or reply).split())[:300]
        return facts, unreachable

    def _variable_problems(self, names: list[str], specs: dict[str, dict[str, Any]]) -> list[str]:
        used: dict[str, list[str]] = {}
        manager = self._task.get_variable_manager()
        for name in names:
            host = manager._inventory.get_host(name)
            for variable in manager.get_vars(host=host, include_hostvars=False):
                used.setdefault(str(variable), []).append(name)
        prefixes = {name.partition("_")[0] + "_" for name in specs}
        return preflight.unknown_variables(used, [*specs, "preflight_machine"], prefixes)
