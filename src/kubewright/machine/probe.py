"""What a machine reaches, and its part of the way to every pod."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import files

# After a reboot kube-proxy may wait so long before it asks the API server again.
_FETCH_SECONDS = 30.0


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20).stdout


def ping(address: str, source: str = "") -> dict[str, Any]:
    """One echo, from an address of this machine where one is named: {address, kind, ok, milliseconds}."""
    text = _output("ping", "-n", "-c", "1", "-W", "2", *(["-I", source] if source else []), address)
    match = re.search(r"time=([0-9.]+)", text)
    return {"address": address, "kind": "ping", "ok": bool(match), "milliseconds": float(match[1]) if match else None}


def fetch(address: str, port: int) -> dict[str, Any]:
    """HTTP requests to a Service until one is answered: kube-proxy writes its rules in batches."""
    deadline = time.monotonic() + _FETCH_SECONDS
    while not (ok := _answers(address, port)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return {"address": address, "kind": "http", "ok": ok, "milliseconds": None}


def _answers(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=3)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _json(*argv: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(_output(*argv) or "[]")
    except ValueError:
        return []
    return [entry for entry in found if entry]


def path(addresses: list[str], services: list[str], peers: list[str]) -> dict[str, Any]:
    """This machine's part of the way to `addresses`, small and as the tools print it.

    links, neighbours, fdb: of the flannel device; routes: address -> `ip route get`; forward, input: iptables rules of
    these chains; services: address -> whether kube-proxy has a rule for it; peers: machine address -> ping answered.
    """
    links = _json("ip", "-j", "-d", "link", "show", "type", "vxlan")
    device = next((str(link["ifname"]) for link in links if str(link["ifname"]).startswith("flannel")), "flannel.1")
    nat = _output("iptables-save", "-t", "nat") + files.read("/proc/net/ip_vs")
    with ThreadPoolExecutor(max_workers=16) as pool:
        answered = list(pool.map(lambda peer: bool(ping(peer)["ok"]), peers))
    return {
        "links": links,
        "neighbours": _json("ip", "-j", "neigh", "show", "dev", device),
        "fdb": _json("bridge", "-j", "fdb", "show", "dev", device),
        "routes": {address: _json("ip", "-j", "route", "get", address) for address in addresses},
        "forwarding": files.read("/proc/sys/net/ipv4/ip_forward").strip(),
        "forward": _output("iptables", "-w", "-S", "FORWARD").splitlines(),
        "input": _output("iptables", "-w", "-S", "INPUT").splitlines(),
        "services": {address: address in nat or _hexadecimal(address) in nat for address in services},
        "peers": dict(zip(peers, answered)),
    }


def _hexadecimal(address: str) -> str:
    # As /proc/net/ip_vs prints addresses.
    return "".join(f"{int(part):02X}" for part in address.split("."))


def run(addresses: list[str], services: list[str], peers: list[str]) -> dict[str, Any]:
    """Ping every address and fetch from every Service at once.

    Returns {results, path}: the path always, because a way can be broken for pods alone. `peers`: machines' addresses.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        pings = [pool.submit(ping, address) for address in addresses]
        fetches = [pool.submit(fetch, service, 80) for service in services]
        results = [future.result() for future in [*pings, *fetches]]
    return {"results": results, "path": path(addresses, services, peers)}
