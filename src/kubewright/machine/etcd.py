"""One key of etcd over its v3 JSON gateway."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any

from . import health


class EtcdError(Exception):
    """etcd refused or did not answer."""


def _call(endpoint: dict[str, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = health.connect(endpoint)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise EtcdError(f"etcd at {endpoint['url']} does not answer: {error}; run --tags etcd first") from error
    finally:
        connection.close()
    if reply.status != 200:
        raise EtcdError(f"etcd at {endpoint['url']}: {path} answered {reply.status}: {text.decode(errors='replace')}")
    result: dict[str, Any] = json.loads(text)
    return result


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def leads(endpoint: dict[str, Any]) -> bool:
    """Whether the member behind this endpoint is the leader of its cluster."""
    status = _call(endpoint, "/v3/maintenance/status", {})
    return bool(status.get("leader")) and status["leader"] == status["header"]["member_id"]


def members(endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Members of the cluster as etcd describes them; one that has never started has no `clientURLs`."""
    found: list[dict[str, Any]] = _call(endpoint, "/v3/cluster/member/list", {})["members"]
    return found


def quorum_depends_on(endpoint: dict[str, Any]) -> str:
    """Why stopping the member behind this endpoint would take the quorum of its cluster away; empty when it would not.

    Clusters of one or two members cannot do without any, and are not held up. Learners do not vote (etcd, learner
    design), so they do not count.
    """
    own = _call(endpoint, "/v3/maintenance/status", {})["header"]["member_id"]
    voters = [m for m in members(endpoint) if not m.get("isLearner")]
    quorum = len(voters) // 2 + 1
    if len(voters) < 3 or all(member["ID"] != own for member in voters):
        return ""
    down = []
    for member in voters:
        if member["ID"] == own:
            continue
        urls = member.get("clientURLs") or []
        checks = [{**endpoint, "kind": "http", "url": f"{url}/health", "expect": '"health":"true"'} for url in urls]
        # A member without client URLs has never started.
        if not any(health.probe(check) == "" for check in checks):
            down.append(member.get("name") or member["ID"])
    left = len(voters) - 1 - len(down)
    if left >= quorum or left + 1 < quorum:
        return ""
    return (
        f"restarting this etcd member would stop the cluster: {', '.join(sorted(down))} of {len(voters)} members does "
        f"not answer, and {quorum} must run. Nothing was changed here. Bring it back first: journalctl -u etcd there"
    )


def get(endpoint: dict[str, Any], key: str) -> str | None:
    """Value of a key, None when there is no such key."""
    found = _call(endpoint, "/v3/kv/range", {"key": _b64(key)}).get("kvs")
    return base64.b64decode(found[0].get("value", "")).decode() if found else None


def create(endpoint: dict[str, Any], key: str, value: str) -> bool:
    """Write a key unless it exists; whether it was written."""
    absent = {"key": _b64(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
    put = {"request_put": {"key": _b64(key), "value": _b64(value)}}
    return bool(_call(endpoint, "/v3/kv/txn", {"compare": [absent], "success": [put]}).get("succeeded"))
