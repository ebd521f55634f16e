"""A node that is back: Ready, its kubelet the one that was meant, and the pods ready that were so before.

A node is called Ready for up to 40 s after its kubelet has ended (node-monitor-grace-period): whoever asks here has
waited for the kubelet's own /healthz before.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Collection, Optional
from urllib.parse import quote

from . import api

_POLL_SECONDS = 0.5


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def ready_pods(pods: list[dict[str, Any]]) -> list[str]:
    """UIDs of those that are ready."""
    return [pod["metadata"]["uid"] for pod in pods if _is_ready(pod)]


def hindrances(
    node: dict[str, Any], pods: list[dict[str, Any]], version: str, before: Optional[Collection[str]] = None
) -> list[str]:
    """What is missing until the node counts as back. `version`: of the kubelet, as v1.20.2.

    `before`: UIDs of the pods that were ready before; others are not waited for. None: all pods are.
    """
    name = node["metadata"]["name"]
    conditions = {one["type"]: one for one in node["status"].get("conditions") or []}
    ready = conditions.get("Ready") or {}
    found = []
    if ready.get("status") != "True":
        found.append(f"{name} is not Ready: {ready.get('message') or 'it has not said so yet'}")
    seen = str(node["status"].get("nodeInfo", {}).get("kubeletVersion"))
    # Builds of others name themselves behind the release: v1.20.2-eks-1.
    if version and not (seen == version or seen.startswith((f"{version}-", f"{version}+"))):
        found.append(f"the kubelet of {name} reports {seen}, not {version}")
    for pod in pods:
        meta, status = pod["metadata"], pod.get("status") or {}
        if meta.get("deletionTimestamp") or status.get("phase") in ("Succeeded", "Failed"):
            continue
        if not _is_ready(pod) and (before is None or meta["uid"] in before):
            found.append(f"pod {meta['namespace']}/{meta['name']} is not ready ({status.get('phase')})")
    return found


def look(connect: Callable[[], api.Client], node: str) -> list[str]:
    """UIDs of the pods of a node that are ready. An API server that does not answer for a moment is asked again."""
    path = _paths(node)[1]
    status, body = api.Patient(connect).request("GET", path)
    if status != 200:
        raise api.ApiError(f"GET {path}: {status} {body.get('message')}")
    return ready_pods(body["items"])


def wait(
    connect: Callable[[], api.Client],
    node: str,
    version: str,
    timeout: float,
    before: Optional[Collection[str]] = None,
) -> list[str]:
    """Wait until the node and its pods are ready; empty, or what was missing after `timeout` seconds.

    An API server that does not answer for a moment is asked again.
    """
    deadline = time.monotonic() + timeout
    client: api.Client | None = None
    while True:
        try:
            client = client or connect()
            answers = [client.request("GET", path) for path in _paths(node)]
            refused = [f"{path}: {status}" for path, (status, _) in zip(_paths(node), answers) if status != 200]
            if refused:
                missing = [f"the API server answers {', '.join(refused)}"]
            else:
                seen, listed = (body for _, body in answers)
                missing = hindrances(seen, listed["items"], version, before)
        except api.NoAnswerError as error:
            client, missing = None, [str(error)]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_POLL_SECONDS)


def _paths(node: str) -> list[str]:
    return [
        f"/api/v1/nodes/{node}",
        f"/api/v1/pods?fieldSelector={quote('spec.nodeName=' + node)}",
    ]
