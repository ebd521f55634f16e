"""Pods leave a node, or may come back: cordon, evict within the disruption budgets, wait, uncordon.

Works as `kubectl drain` documents it ("Safely Drain a Node", "API-initiated Eviction"): an eviction that a budget
forbids is answered with 429 and asked for again. A node that a person has cordoned stays cordoned: what kubewright
cordons it marks with an annotation, and it uncordons nothing else.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Sequence
from urllib.parse import quote

from . import api

MARK = "kubewright/cordoned"
_MIRROR = "kubernetes.io/config.mirror"
_POLL_SECONDS = 1.0


class DrainError(Exception):
    """The pods cannot leave the node, or did not within the timeout."""


class Rules:
    """What may happen to pods that would lose something; by default neither.

    `emptydir`: pods with emptyDir volumes may go, and their data with them. `unmanaged`: pods may go that nobody makes
    anew. `force`: what is still there after the timeout is deleted at once, past all budgets.
    """

    def __init__(self, emptydir: bool = False, unmanaged: bool = False, force: bool = False) -> None:
        self.emptydir, self.unmanaged, self.force = emptydir, unmanaged, force


def title(pod: dict[str, Any]) -> str:
    """NAMESPACE/NAME."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _controller(pod: dict[str, Any]) -> str:
    """Kind of what makes the pod anew; empty for a pod on its own."""
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["kind"]) for owner in owners if owner.get("controller")), "")


def stays(pod: dict[str, Any]) -> bool:
    """Whether a drain leaves the pod alone: of a DaemonSet, of the kubelet's own files, or finished."""
    return (
        _controller(pod) == "DaemonSet"
        or _MIRROR in (pod["metadata"].get("annotations") or {})
        or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    )


def objections(pod: dict[str, Any], rules: Rules) -> list[str]:
    """What would be lost with a pod and may not; nothing for one that is ending already."""
    if pod["metadata"].get("deletionTimestamp"):
        return []
    found = []
    if not _controller(pod) and not rules.unmanaged:
        found.append("belongs to no controller that would make it anew")
    volumes = [v["name"] for v in pod["spec"].get("volumes") or [] if "emptyDir" in v]
    if volumes and not rules.emptydir:
        found.append(f"has data in emptyDir volumes ({', '.join(volumes)})")
    return found


def leaving(pods: list[dict[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """The pods that have to go; DrainError names all that may not, with what would allow it."""
    going = [pod for pod in pods if not stays(pod)]
    lines = [f"{title(pod)} {' and '.join(reasons)}" for pod in going if (reasons := objections(pod, rules))]
    if lines:
        raise DrainError(
            f"pods that would lose something: {'; '.join(sorted(lines))}. Move them yourself, or allow it: "
            "kubelet_drain_emptydir_data: true, kubelet_drain_unmanaged: true"
        )
    return going


def hindrance(status: int, body: dict[str, Any]) -> str:
    """Why an eviction was not granted, in the words of the budget where there is one."""
    causes = (body.get("details") or {}).get("causes") or []
    words = "; ".join(str(cause["message"]) for cause in causes if cause.get("message"))
    return words or f"{status} {body.get('message') or ''}".strip()


class Drain:
    """One node of the cluster behind `connect`, which opens a connection to an API server."""

    def __init__(self, connect: Callable[[], api.Client], node: str) -> None:
        self._connect, self._node = connect, node
        self._ask = api.Patient(connect).request
        self._eviction_version = ""

    def _get(self, path: str) -> dict[str, Any]:
        status, body = self._ask("GET", path)
        if status != 200:
            raise api.ApiError(f"GET {path}: {status} {body.get('message')}")
        found: dict[str, Any] = body
        return found

    def node(self) -> dict[str, Any] | None:
        """The node as the API shows it; None when there is none of this name."""
        status, body = self._ask("GET", f"/api/v1/nodes/{self._node}")
        if status == 404:
            return None
        if status != 200:
            raise api.ApiError(f"node {self._node}: {status} {body.get('message')}")
        found: dict[str, Any] = body
        return found

    def pods(self) -> list[dict[str, Any]]:
        """All pods on the node."""
        listed: list[dict[str, Any]] = self._get(f"/api/v1/pods?fieldSelector={quote('spec.nodeName=' + self._node)}")[
            "items"
        ]
        return listed

    def _patch(self, patch: dict[str, Any]) -> None:
        path = f"/api/v1/nodes/{self._node}"
        status, body = self._ask("PATCH", path, patch, "application/merge-patch+json")
        if status != 200:
            raise api.ApiError(f"PATCH {path}: {status} {body.get('message')}")

    def uncordon(self, node: dict[str, Any]) -> bool:
        """Let pods onto the node again if kubewright had cordoned it; whether it had."""
        if MARK not in (node["metadata"].get("annotations") or {}):
            return False
        self._patch({"metadata": {"annotations": {MARK: None}}, "spec": {"unschedulable": None}})
        return True

    def _eviction(self) -> str:
        """`policy/v1` or `policy/v1beta1`: as what the API server takes evictions, by what it says that it has."""
        if not self._eviction_version:
            found = [one for one in self._get("/api/v1")["resources"] if one["name"] == "pods/eviction"]
            if not found:
                raise api.ApiError("this API server has no evictions (pods/eviction): it is too old for a drain")
            self._eviction_version = f"{found[0]['group']}/{found[0]['version']}"
        return self._eviction_version

    def _evict(self, pod: dict[str, Any]) -> str:
        """Ask for a pod's eviction; why it was not granted, empty when it was or the pod is gone."""
        meta = pod["metadata"]
        eviction = {
            "apiVersion": self._eviction(),
            "kind": "Eviction",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            # Another pod of the same name, of a StatefulSet, is on another node by now.
            "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
        }
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction"
        status, body = self._ask("POST", path, eviction)
        return "" if status in (200, 201, 404, 409) else hindrance(status, body)

    def _delete_at_once(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            meta = pod["metadata"]
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            status, body = self._ask("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})
            if status not in (200, 202, 404, 409):
                raise api.ApiError(f"DELETE {path}: {status} {body.get('message')}")

    def cordon(self, node: dict[str, Any]) -> bool:
        """Keep new pods off the node; whether that had to be done. The mark is set in the same request."""
        if node["spec"].get("unschedulable"):
            return False
        self._patch({"metadata": {"annotations": {MARK: "drain"}}, "spec": {"unschedulable": True}})
        return True

    def _wait(self, timeout: float, rules: Rules) -> list[str]:
        """Evict until nothing is left that has to go; the titles of what has gone. DrainError after `timeout` s."""
        deadline = time.monotonic() + timeout
        gone: dict[str, None] = {}
        while True:
            reasons = {}
            left = leaving(self.pods(), rules)
            if not left:
                return list(gone)
            for pod in left:
                gone[title(pod)] = None
                ends = pod["metadata"].get("deletionTimestamp")
                reasons[title(pod)] = f"has been ending since {ends}" if ends else self._evict(pod)
            if time.monotonic() > deadline:
                if rules.force:
                    self._delete_at_once(left)
                    return list(gone)
                why = "; ".join(f"{name}: {reason or 'is ending'}" for name, reason in sorted(reasons.items()))
                raise DrainError(f"not all pods had left {self._node} after {timeout:g} s: {why}")
            time.sleep(_POLL_SECONDS)

    def drain(self, node: dict[str, Any], timeout: float, rules: Rules, before: Sequence[str] = ()) -> list[str]:
        """Cordon and evict; NAMESPACE/NAME of the pods that have gone. `before`: nodes drained for the same end.

        Nothing is done when a pod may not go. When not all have gone after `timeout` seconds, DrainError says which and
        what held them up, and nodes that kubewright cordoned, this one and those `before`, take pods again.
        """
        others = [Drain(self._connect, name) for name in before]
        try:
            leaving(self.pods(), rules)
        except DrainError as error:
            raise DrainError(". ".join([str(error), *(one.withdraw() for one in others)])) from error
        self.cordon(node)
        try:
            return self._wait(timeout, rules)
        except (DrainError, api.ApiError) as error:
            raise DrainError(". ".join([str(error), *(one.withdraw() for one in [self, *others])])) from error

    def withdraw(self) -> str:
        """Take the cordon back, if it is kubewright's; in words, how the node is now."""
        try:
            now = self.node()
            if now is None:
                return f"there is no node {self._node}"
            if self.uncordon(now):
                return f"{self._node} takes pods again"
        except api.ApiError as error:
            return f"{self._node} is still cordoned: {error}"
        return f"{self._node} stays cordoned, as it was not cordoned by kubewright"
