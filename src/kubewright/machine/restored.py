"""Does the cluster live on what was restored? The API says what it holds, and whether kubelets write to it again."""

from __future__ import annotations

import time
from typing import Any

from . import api

_KINDS = {
    "namespaces": "/api/v1/namespaces",
    "nodes": "/api/v1/nodes",
    "pods": "/api/v1/pods",
    # Listing them takes the encryption key; their contents stay in this process.
    "secrets": "/api/v1/secrets",
}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_PAUSE_SECONDS = 1.0


class RestoredError(Exception):
    """The cluster does not live on what was restored."""


def counts(client: api.Client) -> dict[str, int]:
    """How many objects of some kinds there are; RestoredError when they cannot be read."""
    found = {}
    for kind, path in _KINDS.items():
        status, body = client.request("GET", path)
        if status != 200:
            raise RestoredError(f"{kind} cannot be read: {status} {body.get('message')}")
        found[kind] = len(body.get("items") or [])
    return found


def lease_times(leases: list[dict[str, Any]]) -> dict[str, str]:
    """Node -> when its kubelet last renewed its lease, in RFC 3339."""
    return {one["metadata"]["name"]: str(one["spec"].get("renewTime") or "") for one in leases}


def silent(before: dict[str, str], now: dict[str, str], nodes: list[str]) -> list[str]:
    """Nodes whose lease was not renewed between two looks."""
    return [node for node in nodes if not now.get(node) or now[node] == before.get(node)]


def _leases(client: api.Client) -> dict[str, str]:
    status, body = client.request("GET", _LEASES)
    if status != 200:
        raise RestoredError(f"the nodes' leases cannot be read: {status} {body.get('message')}")
    return lease_times(body.get("items") or [])


def wait(access: dict[str, str], nodes: list[str], timeout: float) -> dict[str, int]:
    """Wait until every kubelet renews its lease, and say what the API holds. `access`: {server, ca, cert, key}."""
    client = api.Client(**access)
    deadline = time.monotonic() + timeout
    before = _leases(client)
    left = nodes
    while left and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        now = _leases(client)
        left = silent(before, now, left)
    if left:
        raise RestoredError(
            f"the kubelets of {', '.join(left)} do not write to the API within {timeout:.0f} s: "
            "journalctl -u kubelet there"
        )
    return counts(client)
