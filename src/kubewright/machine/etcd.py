"""One key of etcd over its v3 JSON gateway."""

from __future__ import annotations

import base64
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
    except OSError as error:
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


def get(endpoint: dict[str, Any], key: str) -> str | None:
    """Value of a key, None when there is no such key."""
    found = _call(endpoint, "/v3/kv/range", {"key": _b64(key)}).get("kvs")
    return base64.b64decode(found[0].get("value", "")).decode() if found else None


def create(endpoint: dict[str, Any], key: str, value: str) -> bool:
    """Write a key unless it exists; whether it was written."""
    absent = {"key": _b64(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
    put = {"request_put": {"key": _b64(key), "value": _b64(value)}}
    return bool(_call(endpoint, "/v3/kv/txn", {"compare": [absent], "success": [put]}).get("succeeded"))
