"""A node that is back: Ready, its kubelet the one that was meant, and the pods that stayed on it ready.

A node is called Ready for up to 40 s after its kubelet has ended (node-monitor-grace-period): whoever asks here has
waited for the kubelet's own /healthz before.
"""

from __future__ import annotations

import time
from typing import Any, Callable
from urllib.parse import quote

from . import api

_POLL_SECONDS = 0.5


def hindrances(node: dict[str, Any], pods: list[dict[str, Any]], version: str) -> list[str]:
    """What is missing until the node counts as back. `version`: of the kubelet, as v1.20.2."""
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
        states = {one["type"]: one["status"] for one in status.get("conditions") or []}
        if states.get("Ready") != "True":
            found.append(f"pod {meta['namespace']}/{meta['name']} is not ready ({status.get('phase')})")
    return found


def wait(connect: Callable[[], api.Client], node: str, version: str, timeout: float) -> list[str]:
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
                missing = hindrances(seen, listed["items"], version)
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
