"""What a machine reaches, and where the way to a pod ends when it does not."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20).stdout


def ping(address: str) -> dict[str, Any]:
    """One echo: {address, kind, ok, milliseconds}."""
    text = _output("ping", "-n", "-c", "1", "-W", "2", address)
    match = re.search(r"time=([0-9.]+)", text)
    return {"address": address, "kind": "ping", "ok": bool(match), "milliseconds": float(match[1]) if match else None}


def fetch(address: str, port: int) -> dict[str, Any]:
    """One HTTP request to a Service."""
    connection = http.client.HTTPConnection(address, port, timeout=3)
    try:
        connection.request("GET", "/")
        ok = connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        ok = False
    finally:
        connection.close()
    return {"address": address, "kind": "http", "ok": ok, "milliseconds": None}


def hop(address: str, routes: list[dict[str, Any]], neighbours: list[dict[str, Any]], fdb: list[dict[str, Any]]) -> str:
    """Why a packet to `address` cannot leave through flannel.1; empty when route, neighbour and FDB entry are there.

    The lists are what `ip -j route get`, `ip -j neigh show dev flannel.1` and `bridge -j fdb show dev flannel.1` print.
    """
    if not routes:
        return "route: none to this address"
    route = routes[0]
    device, gateway = route.get("dev", ""), route.get("gateway")
    if not str(device).startswith("flannel"):
        return "" if device in ("lo", "cni0", "docker0") else f"route: leads to {device}, not to flannel.1"
    next_hop = gateway or address
    macs = [n.get("lladdr") for n in neighbours if n.get("dst") == next_hop and n.get("lladdr")]
    if not macs:
        return f"neighbour: no entry for {next_hop} on {device}"
    peers = [f.get("dst") for f in fdb if f.get("mac") == macs[0] and f.get("dst")]
    if not peers:
        return f"FDB: no entry for {macs[0]} on {device}"
    return ""


def _json(*argv: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(_output(*argv) or "[]")
    except ValueError:
        return []
    return [entry for entry in found if entry]


def run(addresses: list[str], services: list[str]) -> dict[str, Any]:
    """Ping every address and fetch from every Service at once; {results, hops: address -> what is wrong here}."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        pings = [pool.submit(ping, address) for address in addresses]
        fetches = [pool.submit(fetch, service, 80) for service in services]
        results = [future.result() for future in [*pings, *fetches]]
    hops = {}
    if not all(result["ok"] for result in results):
        neighbours = _json("ip", "-j", "neigh", "show", "dev", "flannel.1")
        fdb = _json("bridge", "-j", "fdb", "show", "dev", "flannel.1")
        for address in addresses:
            hops[address] = hop(address, _json("ip", "-j", "route", "get", address), neighbours, fdb)
    return {"results": results, "hops": {address: why for address, why in hops.items() if why}}
