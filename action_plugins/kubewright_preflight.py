"""Checks inventory and machines, reports everything at once, and hands out the computed cluster as a fact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubepki import spec
from kubepki.errors import SpecError
from kubewright import (
    certificates,
    custody,
    podnetwork,
    preflight,
    quarantine,
    runlock,
    scale,
    stages,
    topology,
    variables,
)
from kubewright.errors import UserError
from kubewright.machine.facts import certificates as digests

# What the tasks before this one registered.
_ANSWERS = ("preflight_machine", "preflight_others", "etcd_custody")
_CLUSTER_GROUPS = ("etcd", "kube_master", "kube_node", "lb")


def _specs(role: Path) -> dict[str, dict[str, Any]]:
    """Every public variable of a role with its specification."""
    path = role / "meta" / "argument_specs.yml"
    options: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
    return options


def _certificate_problems(cluster: topology.Cluster) -> list[str]:
    """Names and lifetimes that no certificate can have."""
    try:
        spec.parse(certificates.spec(cluster))
    except SpecError as error:
        reasons: dict[str, list[str]] = {}
        for problem in error.problems:
            where, _, reason = problem.partition(": ")
            reasons.setdefault(reason, []).append(where)
        # A lifetime is that of nearly all certificates.
        return [
            f"{where[0]}{f' and {len(where) - 1} others' if where[1:] else ''}: {reason}"
            for reason, where in reasons.items()
        ]
    return []


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
        self._refuse_other_runs()
        hostvars = self._vars["hostvars"]
        # Of an operation that takes machines out: the cluster is computed as it is to be without them.
        leaving = scale.names(self._templar.template(self._vars.get("cluster_leaving")))
        groups = scale.without(self._vars["groups"], leaving)
        last = scale.leaving_problems(self._vars["groups"], leaving)
        if last:
            return {"failed": True, "msg": preflight.report(last)}
        names = [name for name in self._hosts() if name not in leaving]
        if not names:
            raise UserError(
                "the inventory has no hosts in the groups etcd, kube_master and kube_node", "see inventories/"
            )
        role = Path(self._vars["role_path"])
        specs = _specs(role)
        problems, wrong, values = self._variable_problems(names, role)
        asked = {name: self._vars["hostvars"][name].get("preflight_machine") for name in names}
        facts, unreachable, sick = quarantine.answers(asked)
        problems += quarantine.reasons(sick)
        if wrong:
            # Nothing can be computed from values that are wrong; the defaults do for looking at the machines.
            own = {name: spec.get("default") for name, spec in specs.items()}
            cluster = None
        else:
            own = {name: self._templar.template(self._vars[name]) for name in specs if name in self._vars}
            hosts = {name: self._host_variables(hostvars[name]) for name in names}
            cluster, found = topology.build(own, hosts, groups)
            problems += found
        problems += podnetwork.problems(values, cluster)
        limits = preflight.Limits(
            str(own["artifacts_architecture"]),
            float(own["preflight_max_clock_skew"]),
            [preflight.Room(**room) for room in self._task.args["rooms"]],
        )
        problems += preflight.machines_problems(facts, limits, cluster)
        warnings: list[str] = []
        run = stages.of_run(self._vars["ansible_run_tags"], self._vars["ansible_skip_tags"])
        problems += self._custody_problems(facts, run)
        if cluster:
            problems += _certificate_problems(cluster)
            restoring = bool(self._vars.get("preflight_restoring"))
            problems += preflight.cluster_problems(cluster, facts, restoring=restoring)
            even, warnings = preflight.etcd_count_problems(cluster, facts)
            problems += even
            known = {name: hostvars[name] for name in leaving if name in self._vars["groups"]["all"]}
            going = scale.moving(leaving, groups, known, by_address=False)
            found = preflight.vip_problems(cluster, facts, [str(machine["address"]) for machine in going])
            matters = preflight.changes_balancers(run, self._vars.get("artifacts_change"), restoring=restoring)
            (problems if matters else warnings).extend(found)
            problems += stages.missing(cluster, facts, run)
        if problems or cluster is None:
            problems = quarantine.reasons(unreachable) + problems
        else:
            problems = quarantine.problems(cluster, facts, unreachable, str(own["preflight_unreachable"]))
        if problems or cluster is None:
            return {"failed": True, "msg": preflight.report(problems)}
        for name in unreachable:
            Display().warning(f"{name}: the run goes on without it (preflight_unreachable)")
        runs = int(self._templar.template(self._vars["preflight_journal_runs"]))
        known = self._known(cluster, facts, names)
        return {"changed": False, "ansible_facts": {"cluster": known}, "journal_runs": runs, "warnings": warnings}

    def _known(self, cluster: topology.Cluster, facts: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """The fact `cluster`: what was computed, and what of the machines matters to others."""
        known = cluster.facts()
        known["etcd_is_new"] = preflight.etcd_is_new(cluster, facts)
        known["etcd_joining"] = preflight.etcd_joining(cluster, facts)
        known["proxy"] = {name: fact["proxy"] for name, fact in facts.items()}
        known["lb_interfaces"] = {name: fact["vip"]["interface"] for name, fact in facts.items() if fact["vip"]}
        known["lb_leavings"] = preflight.lb_leavings(cluster, facts)
        asked = {**facts, **{reply["item"]: reply["facts"] for reply in self._others() if reply.get("facts")}}
        known["api_masters"] = preflight.helpers([m.name for m in cluster.masters()], asked, "api_ready")
        known["etcd_hosts"] = preflight.helpers([m.name for m in cluster.etcd_members()], asked)
        known["pki_spec"] = certificates.spec(cluster)
        known["pki_files"] = {name: certificates.distribution(cluster, name) for name in names}
        return known

    def _refuse_other_runs(self) -> None:
        run, now = runlock.current, time.time()
        if run and run.holder is not None:
            raise UserError(*runlock.refused_here(run.holder, now))
        members, hostvars = self._vars["groups"].get("etcd", []), self._vars["hostvars"]
        asked = {name: hostvars[name].get("preflight_machine") or {} for name in members}
        asked |= {reply["item"]: reply for reply in self._others()}
        locks = {name: reply["lock"] for name, reply in asked.items() if reply.get("lock")}
        held = {name: lock["holder"] for name, lock in locks.items() if lock["holder"]}
        if held and (self._task.check_mode or self._vars.get("preflight_reads_only")):
            Display().warning(" ".join(runlock.refused_there(held, now)[:1]) + "; it may change what is shown here")
        elif held:
            raise UserError(*runlock.refused_there(held, now))
        for text in runlock.taken_over(locks, now):
            Display().warning(text)

    def _custody_problems(self, facts: dict[str, Any], run: set[str]) -> list[str]:
        inventory = Path(str(self._vars["inventory_dir"]))
        pki = Path(str(self._templar.template(self._vars.get("pki_directory")) or inventory / "pki"))
        # A CA without its key is of no use here; what that means is for the stage pki to say.
        cas = {}
        for path in [path for name in custody.CAS if (path := pki / name).is_file()]:
            bundle = path.with_name(f"{path.stem}-bundle.pem")
            texts = [one.read_text(errors="replace") for one in (path, bundle) if one.is_file()]
            cas[path.name] = [digest for text in texts for digest in digests(text)]
        secrets = inventory / "secrets"
        held = [name for name in (custody.ENCRYPTION_KEY, custody.VRRP, *custody.TOKEN) if (secrets / name).is_file()]
        return custody.problems(facts, cas, str(pki), held, str(secrets), run)

    def _host_variables(self, variables: Any) -> dict[str, Any]:
        wanted = ("ansible_host", "machine_address", "kube_node_labels")
        return {key: variables[key] for key in wanted if key in variables}

    def _others(self) -> list[dict[str, Any]]:
        """What machines said that are outside of the run."""
        results: list[dict[str, Any]] = (self._vars.get("preflight_others") or {}).get("results", [])
        return results

    def _variable_problems(self, names: list[str], role: Path) -> tuple[list[str], bool, dict[str, dict[str, Any]]]:
        """All problems, whether some are values that nothing can be computed from, and the values of the hosts."""
        by_role = {path.name: _specs(path) for path in sorted(role.parent.iterdir()) if path.is_dir()}
        specs = {
            **variables.HOST_SPECS,
            **variables.COMMAND_SPECS,
            **{k: v for found in by_role.values() for k, v in found.items()},
        }
        used: dict[str, list[str]] = {}
        values: dict[str, dict[str, Any]] = {}
        wrong: list[str] = []
        manager = self._task.get_variable_manager()
        for name in names:
            values[name] = {}
            for key in map(str, manager.get_vars(host=manager._inventory.get_host(name), include_hostvars=False)):
                used.setdefault(key, []).append(name)
                if key in specs:
                    try:
                        values[name][key] = self._vars["hostvars"][name][key]
                    except AnsibleError as error:
                        wrong.append(f"{name}: {key} cannot be computed: {error}")
        misspelt = variables.misspelt(used, [*specs, *_ANSWERS], [f"{name}_" for name in by_role])
        wrong += variables.wrong(values, specs)
        shared = {**by_role[role.name], **{name: by_role["flannel"][name] for name in podnetwork.SHARED}}
        return misspelt + wrong + variables.differing(values, shared), bool(wrong), values
