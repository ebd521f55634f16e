"""Waits until the inventory's nodes have registered, and approves their serving certificates after checking them."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.plugins.action import ActionBase

from kubewright import nodes
from kubewright.errors import UserError

_POLL_SECONDS = 0.5
# Asked through the API server, which trusts only a serving certificate that was signed for this node.
_KUBELET = "/proxy/healthz"


class _NoAnswerError(UserError):
    """There is no API server yet."""


class ActionModule(ActionBase):
    """Runs once, on a machine with a master's administrator certificate."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return which CSRs were approved, and the machines (`late`) whose kubelets did not answer.

        Fails when none of them did, and with CSRs that do not match the inventory.
        """
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        wanted = {str(node["node_name"]): node for node in self._task.args["nodes"]}
        self._cluster = self._vars["ansible_facts"]["cluster"]
        version = "v1" if self._cluster["features"]["csr_api_v1"] else "v1beta1"
        self._csrs = f"/apis/certificates.k8s.io/{version}/certificatesigningrequests"
        try:
            here = set(self._task.args["required"])
            required = {name: node for name, node in wanted.items() if node["name"] in here}
            return self._bring(wanted, required, float(self._task.args["timeout"]))
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _ask(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        reply = self._execute_module(
            module_name="kubewright_api",
            module_args={**self._cluster["api_access"], "requests": requests},
            task_vars=self._vars,
        )
        if reply.get("failed") or reply.get("unreachable"):
            raise (UserError if reply.get("answered", True) else _NoAnswerError)(str(reply.get("msg")))
        replies: list[dict[str, Any]] = reply["replies"]
        for request, answer in zip(requests, replies, strict=True):
            if answer["status"] not in (200, 201, 409) and not request["path"].endswith(_KUBELET):
                raise UserError(
                    f"{request['method']} {request['path']}: {answer['status']} {answer['body'].get('message')}"
                )
        return replies

    def _bring(
        self, wanted: dict[str, dict[str, Any]], required: dict[str, dict[str, Any]], timeout: float
    ) -> dict[str, Any]:
        """`wanted` are all nodes of the inventory, `required` those that this task must bring up (--limit)."""
        approved: list[str] = []
        deadline = time.monotonic() + timeout
        paths = ["/api/v1/nodes", self._csrs, *(f"/api/v1/nodes/{name}{_KUBELET}" for name in required)]
        questions = [{"method": "GET", "path": path} for path in paths]
        while True:
            try:
                listed, csrs, *kubelets = self._ask(questions)
            except _NoAnswerError:
                if self._task.check_mode:
                    return {"changed": True, "approved": [], "missing": list(required)}
                raise
            open_csrs = [csr for csr in csrs["body"]["items"] if nodes.is_open(csr)]
            refused = {csr["metadata"]["name"]: nodes.objections(csr, wanted) for csr in open_csrs}
            good = [csr for csr in open_csrs if not refused[csr["metadata"]["name"]]]
            bad = {name: reasons for name, reasons in refused.items() if reasons}
            absent = nodes.missing(list(required), listed["body"]["items"])
            if self._task.check_mode:
                there = {name: node for name, node in required.items() if name not in absent}
                marked = self._mark(there, listed["body"]["items"])
                changed = bool(good or absent) or marked["changed"]
                return {**marked, "changed": changed, "approved": [], "missing": absent}
            if good:
                self._approve(good)
                approved += [csr["spec"]["username"] for csr in good]
                continue
            mute = [name for name, answer in zip(required, kubelets, strict=True) if answer["status"] != 200]
            if not absent and (not mute or bad):
                return self._conclude(required, listed["body"]["items"], approved, bad)
            if time.monotonic() > deadline:
                late = sorted({*absent, *mute})
                text = f"no answer of the kubelet to the API server within {timeout:.0f} s"
                hint = "look at journalctl -u kubelet there, and at kubectl get csr"
                if len(late) == len(required):
                    raise UserError(f"{text}: {', '.join(late)}", hint)
                # The others go on without them.
                there = {name: node for name, node in required.items() if name not in late}
                done = self._conclude(there, listed["body"]["items"], approved, bad)
                return {**done, "late": {required[name]["name"]: f"{text}\n  {hint}" for name in late}}
            time.sleep(_POLL_SECONDS)

    def _approve(self, csrs: list[dict[str, Any]]) -> None:
        kind = {
            "apiVersion": self._csrs.split("/")[2] + "/" + self._csrs.split("/")[3],
            "kind": "CertificateSigningRequest",
        }
        self._ask(
            [
                {
                    "method": "PUT",
                    "path": f"{self._csrs}/{csr['metadata']['name']}/approval",
                    "body": {**nodes.approved(csr), **kind},
                }
                for csr in csrs
            ]
        )

    def _mark(self, there: dict[str, dict[str, Any]], items: list[dict[str, Any]]) -> dict[str, Any]:
        """Labels and taints of registered nodes: {changed, diff}; in check mode what they would be.

        `items`: the nodes as the API lists them.
        """
        marked = self._execute_module(
            module_name="kubewright_objects",
            module_args={
                **self._cluster["api_access"],
                "objects": json.dumps([nodes.marks(node) for node in there.values()]),
            },
            task_vars=self._vars,
        )
        if marked.get("failed") or marked.get("unreachable"):
            raise UserError(str(marked.get("msg")))
        registered = {item["metadata"]["name"]: item for item in items}
        patches = {name: patch for name, node in there.items() if (patch := nodes.taint_patch(node, registered[name]))}
        if patches and not self._task.check_mode:
            kind = "application/json-patch+json"
            self._ask(
                [
                    {"method": "PATCH", "path": f"/api/v1/nodes/{name}", "body": patch, "content_type": kind}
                    for name, patch in patches.items()
                ]
            )
        diff = [
            *marked["diff"],
            *({"prepared": f"Node/{name}: taints {p[-1]['value']}\n"} for name, p in patches.items()),
        ]
        return {"changed": bool(marked["changed"] or patches), "diff": diff}

    def _conclude(
        self,
        required: dict[str, dict[str, Any]],
        items: list[dict[str, Any]],
        approved: list[str],
        bad: dict[str, list[str]],
    ) -> dict[str, Any]:
        marked = self._mark(required, items)
        if bad:
            lines = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in bad.items())
            raise UserError(
                f"serving certificate requests that do not match the inventory: {lines}",
                "deny them with kubectl certificate deny, or correct the inventory",
            )
        return {**marked, "changed": bool(approved) or marked["changed"], "approved": approved}
