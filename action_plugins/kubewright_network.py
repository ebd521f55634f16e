"""Another pod network on a living cluster: which way there is, and each node's step of it in its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import network_change, preflight, quarantine
from kubewright.errors import UserError
from kubewright.turnstile import Turnstile

_PATIENCE_SECONDS = 300.0


class ActionModule(ActionBase):
    """`look` and `follow` on every node, `present` before each step; `plan`, `begin`, `end` where etcd can be asked."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Dispatch to the step; every failure a user can cause is a message."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._cluster = self._vars["ansible_facts"]["cluster"]
        try:
            step = str(self._task.args["step"])
            if step == "look":
                return self._module(step="look")
            if step in ("begin", "end"):
                note = self._vars["ansible_facts"]["network_change"]["note"]
                return self._module(step=step, note=note, **self._etcd())
            steps = {"plan": self._plan, "present": self._present, "follow": self._follow}
            return steps[step]()
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        except AnsibleConnectionFailure as error:
            return {"unreachable": True, "msg": quarantine.said(error.message)}

    def _module(self, **arguments: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._execute_module(
            module_name="kubewright_network", module_args=arguments, task_vars=self._vars
        )
        return reply

    def _etcd(self) -> dict[str, Any]:
        return {key: self._task.args[key] for key in ("urls", "ca", "cert", "key", "prefix")}

    def _nodes(self) -> list[network_change.Node]:
        names = [machine["name"] for machine in self._cluster["machines"].values() if machine["is_node"]]
        here = self._vars["ansible_play_hosts"]
        hostvars = self._vars["hostvars"]
        return [
            network_change.node(name, hostvars[name].get("flannel_look") if name in here else None) for name in names
        ]

    def _plan(self) -> dict[str, Any]:
        asked = self._task.args
        reply = self._module(step="read", **self._etcd())
        if reply.get("failed") or reply.get("unreachable"):
            return reply
        before, wanted = reply["value"], asked["wanted"]
        if before is None:
            raise UserError(f"etcd has no {asked['prefix']}/config yet", "site.yml makes the pod network first")
        way = network_change.steps(before, wanted)
        nodes = self._nodes()
        begun = network_change.start(reply["noted"], before, nodes)
        helped = network_change.cut_off(begun, before, way, nodes)
        ends_pods = self._cluster["network_mode"] == "docker" and not boolean(asked["live_restore"])
        problems = network_change.refusals(before, way, nodes, helped, ends_pods=ends_pods)
        if problems and not helped:
            problems += network_change.way_out(begun, nodes)
        if problems:
            return {"failed": True, "msg": preflight.report(problems)}
        behind = network_change.behind(before, way, nodes)
        steps = [{"config": json.loads(before), "write": False}] if behind or (helped and not way) else []
        steps += [{"config": one, "write": True} for one in way]
        texts = [before, *(json.dumps(one, separators=(",", ":")) for one in way)]
        for at, step in enumerate(step for step in steps if step["write"]):
            step["replaces"] = texts[at]
        lines = network_change.summary(before, way, behind, helped)
        for line in lines:
            Display().display(f"  {line}")
        if self._task.check_mode and steps:
            lines.append("a look ahead: nothing was changed")
        back = network_change.goes_back(begun, before, way)
        # The note of a change that is taken back stays as it is: this run may be interrupted, too.
        note = json.loads(reply["noted"]) if back else network_change.note(begun or json.loads(before), wanted)
        fact = {
            "steps": steps,
            "lines": lines,
            "addresses": {one.name: one.address for one in nodes},
            "cut_off": helped,
            "down": [one.name for one in nodes if one.name in helped and one.config is None],
            "back": back,
            "returns": not back and network_change.changes_backend(note["from"], wanted),
            "note": note,
            "noted": bool(way) or reply["noted"] is not None,
            # Where a node is cut off there is no test pod, and nothing but loss to be measured.
            "pings": bool(steps) and not helped,
        }
        result = {"changed": self._task.check_mode and bool(steps), "ansible_facts": {"network_change": fact}}
        headers = dict.fromkeys(("before_header", "after_header"), f"{asked['prefix']}/config")
        return {**result, "diff": {**headers, "before": f"{before}\n", "after": f"{texts[-1]}\n"}}

    def _present(self) -> dict[str, Any]:
        reason = network_change.lost(
            self._vars["ansible_facts"]["network_change"]["addresses"], self._vars["ansible_play_hosts"]
        )
        return {"changed": False, "failed": bool(reason), "msg": reason}

    def _follow(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": False, "skipped": True}
        name = self._vars["inventory_hostname"]
        plan = self._vars["ansible_facts"]["network_change"]
        # Its pods may be cut off already: it goes after the others, and holds nobody up; where nothing runs, only at
        # the end of the way.
        helped = name in plan["cut_off"]
        at_end = self._task.args["config"] == plan["steps"][-1]["config"]
        if name in plan["down"] and not at_end:
            return {"changed": False, "skipped": True}
        directory = Path(constants.DEFAULT_LOCAL_TMP) / f"turn-{self._task._uuid}"
        # Those that are no nodes take no turn, and for those that are cut off nobody waits.
        nodes = [h for h in self._vars["ansible_play_hosts"] if h in plan["addresses"] and h not in plan["cut_off"]]
        with Turnstile(directory, name, nodes) as turnstile:
            with turnstile.turn(last=helped, patience=_PATIENCE_SECONDS):
                result = self._take_over(name, may_fail=helped and not at_end)
                turnstile.report("failed" if result.get("failed") or result.get("unreachable") else "done")
            return result

    def _take_over(self, name: str, *, may_fail: bool) -> dict[str, Any]:
        asked = self._task.args
        text = json.dumps(asked["config"])
        state = self._module(step="look")
        if state.get("failed") or state.get("unreachable"):
            return state
        running = state["status"].get("config")
        plan = self._vars["ansible_facts"]["network_change"]
        wanted = network_change.expected(text)
        # Those that this node had ways to when the run began. With nothing to take over it does not judge: another one,
        # whose turn comes later, may be at fault.
        had = self._vars["flannel_look"]["gateways"] if running != wanted else {}
        others = {
            node: address
            for node, address in plan["addresses"].items()
            if address in had and node not in (name, *plan["cut_off"])
        }
        # What is taken back may be what keeps pods from answering.
        pods = {} if plan["back"] else {node: pod for node, pod in asked["pods"].items() if node in others}
        result = self._module(
            step="follow",
            config=wanted,
            restart=running is None or network_change.must_restart(running, text),
            others=list(others.values()),
            pods=pods,
            docker=asked["docker"],
            timeout=asked["timeout"],
        )
        if result.get("failure") and not may_fail:
            result.update(failed=True, msg=self._said(name, str(result["failure"])))
        return result

    def _said(self, name: str, failure: str) -> str:
        plan = self._vars["ansible_facts"]["network_change"]
        if name in plan["cut_off"]:
            return (
                f"{name} does not come back: {failure}. The pods on {name} may be cut off until this is mended: "
                "journalctl -u flanneld there. Mend it, and run the same command again"
            )
        back = "; or set flannel_backend back, and the same command takes the nodes back" if plan["returns"] else ""
        return (
            f"{name} does not come along: {failure}. The other nodes stay as they are, and reach each other as before; "
            f"the pods on {name} may be cut off until this is mended. Mend it (journalctl -u flanneld there), and the "
            f"same command goes on{back}"
        )
