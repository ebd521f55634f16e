"""The ping matrix: test pods made, asked, and removed again."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright import diagnose, matrix, podnetwork
from kubewright.errors import UserError

_POLL_SECONDS = 0.5
_ROOT = Path(__file__).resolve().parent.parent


class ActionModule(ActionBase):
    """Runs once, on a machine with a master's administrator certificate."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Dispatch to the step; failures are messages."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._cluster = self._vars["ansible_facts"]["cluster"]
        # One of its own for every run: what an interrupted run left behind must not be taken for today's pods.
        self._namespace = f"{self._task.args['namespace']}-{secrets.token_hex(3)}"
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "pods": {}, "service": "", "flannel": {}}
        steps = {"start": self._start, "finish": self._finish, "clean": self._clean}
        try:
            return steps[str(self._task.args["step"])]()
        except UserError as error:
            # The namespace is what the step `clean` needs to know.
            return {"failed": True, "msg": str(error), "namespace": self._namespace}

    def _module(self, name: str, **arguments: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._execute_module(module_name=name, module_args=arguments, task_vars=self._vars)
        if reply.get("failed") or reply.get("unreachable"):
            raise UserError(str(reply.get("msg")))
        return reply

    def _get(self, path: str) -> dict[str, Any]:
        reply = self._module(
            "kubewright_api", **self._cluster["api_access"], requests=[{"method": "GET", "path": path}]
        )
        body: dict[str, Any] = reply["replies"][0]["body"]
        return body

    def _start(self) -> dict[str, Any]:
        if self._task.args.get("alone"):
            self._remove(matrix.of_base(self._labelled(), str(self._task.args["namespace"])))
        objects = matrix.manifests(self._namespace, str(self._task.args["image"]))
        self._module("kubewright_objects", **self._cluster["api_access"], objects=json.dumps(objects))
        machines = self._cluster["machines"].values()
        nodes = {m["node_name"]: m["name"] for m in machines if m["is_node"]}
        # Machines that --limit leaves out take part when they are up, and are not waited for when they are not. Those
        # that this run has lost do not: the API calls a machine ready for a while after it is gone.
        up = {item["metadata"]["name"] for item in self._get("/api/v1/nodes")["items"] if _ready(item)}
        here = set(self._vars["ansible_play_hosts"])
        lost = set(self._vars["ansible_play_hosts_all"]) - here
        nodes = {node: name for node, name in nodes.items() if name in here or (node in up and name not in lost)}
        deadline = time.monotonic() + float(self._task.args["timeout"])
        while True:
            items = self._get(f"/api/v1/namespaces/{self._namespace}/pods").get("items", [])
            pods = {nodes.get(p["spec"].get("nodeName"), ""): p for p in items if _ready(p)}
            missing = [name for name in nodes.values() if name not in pods]
            if not missing:
                break
            if time.monotonic() > deadline:
                states = [_state(p) for p in items if not _ready(p)] or [f"no pod on {name}" for name in missing]
                states += _warnings(self._get(f"/api/v1/namespaces/{self._namespace}/events").get("items", []))
                raise UserError(
                    f"test pods not ready on {', '.join(missing)}: {'; '.join(dict.fromkeys(states))}",
                    "look at journalctl -u kubelet and -u docker there; are the stages flannel and bootstrap done?",
                )
            time.sleep(_POLL_SECONDS)
        service = self._get(f"/api/v1/namespaces/{self._namespace}/services/probe")["spec"]["clusterIP"]
        length, backend = self._cluster["pod_subnet_length"], self._vars.get("flannel_backend")
        addresses = {name: str(pods[name]["status"]["podIP"]) for name in nodes.values()}
        flannel = {name: podnetwork.flannel_address(address, length, backend) for name, address in addresses.items()}
        names = {name: pods[name]["metadata"]["name"] for name in nodes.values()}
        return {
            "changed": False,
            "namespace": self._namespace,
            "pods": addresses,
            "names": names,
            "service": service,
            "flannel": flannel,
        }

    def _finish(self) -> dict[str, Any]:
        start = self._vars["verify_pods"]
        self._namespace = start["namespace"]
        pods, service = start["pods"], start["service"]
        names = {address: f"pod {name}" for name, address in pods.items()}
        names |= {address: f"flannel {name}" for name, address in start["flannel"].items()}
        names[service] = "service"
        results: list[matrix.Result] = []
        for name in pods:
            others = [address for other, address in pods.items() if other != name]
            script = matrix.probe_script(others, service)
            results += matrix.read_answers(f"pod {name}", self._exec(start["names"][name], script), names)
        problems = matrix.duplicates(pods)
        paths: dict[str, Any] = {}
        for name in pods:
            probed = self._vars["hostvars"][name].get("verify_probe") or {}
            for entry in probed.get("results", []):
                target = names.get(entry["address"], entry["address"])
                results.append(
                    matrix.Result(name, target, entry["address"], entry["kind"], entry["ok"], entry["milliseconds"])
                )
            if "path" in probed:
                paths[name] = probed["path"]
        versions = matrix.versions(self._get("/version"), self._get("/api/v1/nodes")["items"])
        expected = len(pods) * (len(pods) - 1) + len(pods)
        seen = sum(r.source.startswith("pod ") for r in results)
        if seen != expected:
            problems.append(f"{seen} of {expected} probes from pods gave an answer: kubectl exec failed in the others")
        problems += self._lost(results, start, paths)
        report = _ROOT / str(self._task.args["report"])
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(matrix.report(results, problems, versions))
        text = matrix.table(results)
        Display().display(text, color="red" if problems else "green")
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise UserError(f"pods or machines do not reach each other:\n{listed}", f"all results: {report}")
        return {"changed": False, "matrix": text}

    def _lost(self, results: list[matrix.Result], start: dict[str, Any], paths: dict[str, Any]) -> list[str]:
        places = {
            name: diagnose.Place(name, self._cluster["machines"][name]["address"], pod, start["flannel"][name])
            for name, pod in start["pods"].items()
        }
        lost = {(r.source, r.address) for r in results if not r.ok}
        return [
            f"{r.source} -> {r.target} ({r.address}): no answer to {r.kind}\n      "
            + diagnose.explain(r, places, paths, lost)
            for r in results
            if not r.ok
        ]

    def _exec(self, pod: str, script: str) -> str:
        reply = self._execute_module(
            module_name="ansible.legacy.command",
            module_args={
                "argv": [
                    "/usr/local/bin/kubectl",
                    "--kubeconfig=/opt/kubernetes/cfg/admin.kubeconfig",
                    f"--namespace={self._namespace}",
                    "exec",
                    pod,
                    "--",
                    "/bin/sh",
                    "-c",
                    script,
                ]
            },
            task_vars=self._vars,
        )
        return str(reply.get("stdout", ""))

    def _clean(self) -> dict[str, Any]:
        """Remove the test pods of this run, and those of runs that were killed."""
        own = (self._vars.get("verify_pods") or {}).get("namespace")
        self._remove(matrix.leftovers(self._labelled(), str(own or ""), datetime.now(UTC)))
        return {"changed": False}

    def _labelled(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._get(f"/api/v1/namespaces?labelSelector={matrix.LABEL}").get("items", [])
        return listed

    def _remove(self, names: list[str]) -> None:
        requests = [{"method": "DELETE", "path": f"/api/v1/namespaces/{name}"} for name in names]
        self._module("kubewright_api", **self._cluster["api_access"], requests=requests)


def _ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


def _warnings(events: list[dict[str, Any]]) -> list[str]:
    """The last warning of each pod: what its kubelet or the scheduler has to say."""
    last = {e["involvedObject"]["name"]: e.get("message", "") for e in events if e.get("type") == "Warning"}
    return [f"{name}: {message[:400]}" for name, message in last.items()]


def _state(pod: dict[str, Any]) -> str:
    """Why a pod is not ready, in the words of its containers or conditions."""
    where = pod["spec"].get("nodeName", "no node")
    for status in pod["status"].get("containerStatuses") or []:
        waiting = status["state"].get("waiting")
        if waiting:
            return f"{where}: {waiting.get('reason')} {waiting.get('message', '')}".strip()
    for condition in pod["status"].get("conditions") or []:
        if condition["status"] != "True" and condition.get("message"):
            return f"{where}: {condition['message']}"
    if not pod["spec"].get("nodeName"):
        return "no scheduler has looked at the pod: see journalctl -u kube-scheduler on the masters"
    return f"{where}: {pod['status'].get('phase')}"
