"""What an upgrade or a rollback changes, and what is refused; logic in src/kubewright/upgrade.py."""

from __future__ import annotations

import datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import backup_store, components, confirmation, stages, upgrade, versions, window
from kubewright.artifacts import settings
from kubewright.artifacts.catalog import Catalog
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs on the controller; what runs on the machines is in the facts that the preflight has asked for."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """One of the steps of the module's documentation."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._cluster: dict[str, Any] = self._vars["ansible_facts"]["cluster"]
        steps = {
            "guard": self._guard,
            "upgrade": self._upgrade,
            "rollback": self._rollback,
            "keep": self._keep,
            "previous": self._previous,
            "round": self._round,
        }
        try:
            return steps[str(self._task.args["step"])]()
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _stages(self) -> set[str]:
        return stages.of_run(self._vars["ansible_run_tags"], self._vars["ansible_skip_tags"])

    def _machines(self) -> dict[str, Any]:
        """What runs on the machines that answered, also on those that were asked beside the run."""
        hostvars = self._vars["hostvars"]
        replies = [(one["item"], one) for one in (self._vars.get("preflight_others") or {}).get("results", [])]
        replies += [(name, hostvars[name].get("preflight_machine") or {}) for name in self._cluster["machines"]]
        return {name: reply["facts"]["generations"] for name, reply in replies if reply.get("facts")}

    def _concerned(self) -> upgrade.Concerned:
        """What this run may change: by --limit, --tags and --skip-tags."""
        hosts, run = set(self._vars["ansible_play_hosts"]), self._stages()
        return lambda machine, component: machine in hosts and stages.of_component(component) in run

    def _wanted(self) -> dict[str, dict[str, str]]:
        """Artifact -> {version, sha256} of the artifacts that the inventory asks for; nothing is obtained for it."""
        arguments = self._task.args
        catalog = Catalog(settings.of(arguments), Display().display)
        found = {}
        for name in map(str, arguments["names"]):
            cached = catalog.cached(name)
            found[name] = {"version": catalog.version(name), "sha256": cached.sha256 if cached else ""}
        return found

    def _guard(self) -> dict[str, Any]:
        machines, wanted, concerned = self._machines(), self._wanted(), self._concerned()
        found = upgrade.unasked(machines, wanted, concerned)
        self._refuse_other_versions(found + upgrade.strange(machines, wanted, self._cluster["machines"], concerned))
        return {"changed": False}

    def _refuse_other_versions(self, found: list[upgrade.Change]) -> None:
        if found:
            lines = [f"  {line}" for line in upgrade.table(found)]
            raise UserError(
                "\n".join(["the inventory asks for other versions than those that run:", *lines]),
                "this playbook does not change versions of a living cluster: run playbooks/ops/upgrade.yml, which goes "
                "machine by machine, or set artifacts_lock and kube_version to what runs",
            )

    def _upgrade(self) -> dict[str, Any]:
        arguments = self._task.args
        machines, wanted = self._machines(), self._wanted()
        members = self._cluster["machines"]
        known = [name for name, one in members.items() if one["is_master"] or one["is_node"]]
        rounds, problems = upgrade.plan(
            machines,
            wanted,
            str(self._cluster["kube_version"]),
            [str(version) for version in arguments["via"]],
            live_restore=bool(arguments["live_restore"]),
            drain=str(arguments["drain"]),
            concerned=self._concerned(),
            silent=[name for name in known if name not in machines],
        )
        if problems:
            raise UserError(upgrade.refusal(problems, "this upgrade"))
        # Also over several releases it is one upgrade: to what is wanted in the end.
        wanted_set = components.set_name(self._vars["ansible_facts"].get("artifacts") or {})
        return self._planned(rounds, "upgrade", wanted_set)

    def _rollback(self) -> dict[str, Any]:
        machines = self._machines()
        found, problems = upgrade.ways_back(machines, self._concerned())
        if problems:
            raise UserError(upgrade.refusal(problems, "this rollback"))
        last, vain = upgrade.last_change(machines), upgrade.in_vain(machines)
        verb = f"rollback of the upgrade of {_moment(last)}" if found and last else "rollback"
        if found and vain and not self._task.check_mode:
            said = self._vars.get("confirm")
            confirmation.check(
                f"undoes the upgrade of {_moment(last)}, for nothing of the one that was begun on {_moment(vain)} runs",
                str(self._cluster["name"]),
                None if said is None else str(self._templar.template(said)),
            )
        always = str(self._task.args["drain"])
        return self._planned([upgrade.way_back(found, self._cluster["kube_version"], always)], verb)

    def _planned(self, rounds: list[upgrade.Round], verb: str, artifacts_set: str = "") -> dict[str, Any]:
        window.check()
        display = Display()
        lines = []
        for number, one in enumerate(rounds, 1):
            if one.changes:
                title = f"{verb}, round {number} of {len(rounds)}" if len(rounds) > 1 else verb
                lines += [f"{title}:", *(f"  {line}" for line in upgrade.table(one.changes))]
                lines += [f"  pods leave before: {', '.join(one.drain)}"] if one.drain else []
        for line in [] if self._task.args.get("quiet") else lines or [f"{verb}: everything runs as wanted already"]:
            display.display(line)
        nodes = sum(machine["is_node"] for machine in self._cluster["machines"].values())
        facts = {
            "rounds": [one.facts() for one in rounds],
            "at_once": upgrade.at_once(str(self._task.args["nodes_at_once"]), nodes),
            "stages": sorted(self._stages()),
            "lines": lines,
            "set": artifacts_set,
            "check": bool(self._task.check_mode),
        }
        return {"changed": False, "ansible_facts": {"upgrade": facts}}

    def _keep(self, back_from: str | None = None) -> dict[str, Any]:
        """Facts of one machine that keeps what it runs: `artifacts`, and `cluster` with the release of its settings."""
        machines, host = self._machines(), self._vars["inventory_hostname"]
        own = machines.get(host, {})
        if self._vars.get("preflight_restoring"):
            # It gives etcd to machines that were installed anew; of all else they get nothing here.
            wanted, parts = self._vars["ansible_facts"]["artifacts"], self._cluster["machines"]
            found = upgrade.strange(machines, wanted, parts, lambda name, part: (name, part) == (host, "etcd"))
            self._refuse_other_versions(found)
        artifacts = upgrade.of_machine(self._vars["ansible_facts"]["artifacts"], own, back_from)
        cluster = self._of_release(upgrade.release_of(own) or str(self._cluster["kube_version"]))
        return {"changed": False, "ansible_facts": {"artifacts": artifacts, "cluster": cluster}}

    def _previous(self) -> dict[str, Any]:
        """The same, with what it goes back to."""
        return self._keep(upgrade.last_set(self._machines()))

    def _round(self) -> dict[str, Any]:
        """The fact `cluster` as it is to be after a round."""
        version = str(self._vars["ansible_facts"]["upgrade"]["rounds"][int(self._task.args["round"])]["version"])
        return {"changed": False, "ansible_facts": {"cluster": self._of_release(version)}}

    def _of_release(self, version: str) -> dict[str, Any]:
        return {**self._cluster, "kube_version": version, "features": versions.features(version)}


def _moment(at: float) -> str:
    when = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return f"{when:%Y-%m-%d %H:%M} UTC ({backup_store.age(at)} ago)"
