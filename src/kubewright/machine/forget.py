"""What the cluster still knows of a machine that has left it: its Node, and flannel's lease of its subnet."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any, Collection

from . import api, etcd


def _text(value: str) -> str:
    return base64.b64decode(value).decode(errors="replace")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def leases(endpoint: dict[str, Any], prefix: str, address: str) -> list[str]:
    """Keys of the leases below `prefix`/subnets/ that the machine at this address holds."""
    start = f"{prefix}/subnets/"
    reply = etcd.ask(
        endpoint, "/v3/kv/range", {"key": _encoded(start), "range_end": _encoded(start[:-1] + chr(ord("/") + 1))}
    )
    found = []
    for entry in reply.get("kvs") or []:
        try:
            holder = json.loads(_text(entry.get("value", ""))).get("PublicIP")
        except (ValueError, AttributeError):
            continue
        if address and holder == address:
            found.append(_text(entry["key"]))
    return found


def address_of(node: dict[str, Any]) -> str:
    """The address that a Node was registered with; empty when it has none."""
    listed = (node.get("status") or {}).get("addresses") or []
    return next((str(a["address"]) for a in listed if a.get("type") == "InternalIP"), "")


def forget(
    client: api.Client,
    endpoints: list[dict[str, Any]],
    machine: dict[str, str],
    prefix: str,
    kept: Collection[str],
    check: bool,
) -> list[str]:
    """Delete what there is; lines that say what. `machine`: {node_name, address}, where the address may be unknown.

    `kept`: addresses of machines that stay; one of them may have inherited that of the one that left. With `check`
    nothing is deleted.
    """
    done = []
    path = f"/api/v1/nodes/{machine['node_name']}"
    status, node = client.request("GET", path)
    if status not in (200, 404):
        raise api.ApiError(f"GET {path}: {status} {node.get('message')}")
    address = machine["address"] or (address_of(node) if status == 200 else "")
    # The lease first: with the node gone, nobody would know any more whose it was.
    gone = "" if address in kept else address
    keys = etcd.first_answer(endpoints, lambda endpoint: leases(endpoint, prefix, gone))
    for key in keys:
        if not check:
            etcd.first_answer(endpoints, partial(etcd.delete, key=key))
        done.append(f"lease {key.rpartition('/')[2]}")
    if status == 200:
        if not check:
            status, reply = client.request("DELETE", path)
            if status not in (200, 202, 404):
                raise api.ApiError(f"DELETE {path}: {status} {reply.get('message')}")
        done.append(f"node {machine['node_name']}")
    return done
