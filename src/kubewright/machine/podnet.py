"""A node while the pod network is changed: what its flanneld runs with, and how it takes over something else."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import time
from typing import Any

from . import files, probe, systemd

_FLANNELD = "/opt/flannel/bin/flanneld"
_UNIT = "flanneld.service"
_INTERVAL = 0.25
_PATIENCE = 10.0  # seconds for what was the matter with a pod for a moment only
_CONF = "/proc/sys/net/ipv4/conf"


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def status() -> dict[str, Any]:
    """What `flanneld status -json` prints; {running: False, reason} when nothing can be told."""
    try:
        found = json.loads(_output(_FLANNELD, "status", "-json"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"running": False, "reason": "flanneld status gives no answer"}


def peers(state: dict[str, Any]) -> list[str]:
    """IPv4 addresses of the machines whose leases flanneld uses."""
    found = [str((one.get("machine") or {}).get("4", "")) for one in state.get("peers") or [] if not one.get("ignored")]
    return [address for address in found if address]


def gateway(address: str) -> str:
    """The gateway on the way to an address, empty when it is on a link of this machine."""
    try:
        found = json.loads(_output("ip", "-j", "route", "get", address) or "[]")
    except ValueError:
        found = []
    if not found:
        return "nothing that is known"
    via = found[0].get("gateway") or found[0].get("via") or ""
    return str(via.get("host", "")) if isinstance(via, dict) else str(via)


def strict(device: str, conf: str = _CONF) -> list[str]:
    """Settings by which the kernel drops what comes another way than the answer goes.

    The stricter of `all` and the device's own holds, where 1 is strict and 2 is loose (ip-sysctl of the kernel).
    """

    def value(name: str) -> int:
        text = files.read(os.path.join(conf, name, "rp_filter")).strip()
        return int(text) if text.isdigit() else 0

    every = value("all")
    # Those of the overlay are made anew on the way; a new device has the value of `default`.
    names = [device, "default", *sorted(os.path.basename(one) for one in glob.glob(os.path.join(conf, "flannel*")))]
    tight = [name for name in names if max(every, value(name)) == 1]
    return [f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter" for name in tight]


def look() -> dict[str, Any]:
    """What matters of this node: {status, gateways: {address of another node: gateway}, strict: [setting]}."""
    state = status()
    short = {key: state.get(key) for key in ("running", "reason", "trouble", "config", "interface", "lease", "version")}
    return {
        "status": short,
        "gateways": {address: gateway(address) for address in peers(state)},
        "strict": strict(str((state.get("interface") or {}).get("name", ""))),
    }


def missing(state: dict[str, Any], wanted: dict[str, Any], others: list[str]) -> str:
    """What a node still lacks of `wanted` with routes to the machines `others`; empty when it is done."""
    if not state.get("running"):
        return f"flanneld does not answer: {state.get('reason')}"
    if state.get("config") != wanted:
        return "flanneld still has the configuration of before"
    if state.get("trouble"):
        return f"flanneld is not ready: {state['trouble']}"
    if state.get("differences"):
        return f"the kernel differs: {state['differences'][0]}"
    by_machine = {str((peer.get("machine") or {}).get("4", "")): peer for peer in state.get("peers") or []}
    return next(filter(None, (_peer_lacks(address, by_machine.get(address)) for address in others)), "")


def _peer_lacks(address: str, peer: dict[str, Any] | None) -> str:
    if peer is None:
        return f"flanneld has no lease of {address}"
    if peer.get("ignored"):
        return f"flanneld does not use the lease of {address}: {peer['ignored']}"
    return "" if peer.get("ways") else f"there is no route to the pods of {address}"


def follow(
    wanted: dict[str, Any], restart: bool, others: list[str], pods: list[str], docker: bool, timeout: float
) -> dict[str, Any]:
    """Have flanneld run with `wanted`, and wait until pods of the other machines answer: {restarted: [unit], failure}.

    `others`: addresses of the other nodes; `pods`: addresses of pods there; `docker`: it is restarted along. Nothing is
    restarted where pods do not answer before: a node that had its turn earlier may be cut off by what is to come here.
    """
    state = status()
    restarted = [_UNIT] if restart and state.get("config") != wanted else []
    if restarted and (failure := _unanswered_for(pods, state, min(timeout, _PATIENCE))):
        return {"restarted": [], "failure": f"flanneld was not restarted, because before that already {failure}"}
    for unit in restarted:
        systemd.restart(unit)
    end = time.monotonic() + timeout
    while True:
        failure = missing(state, wanted, others) or _unanswered(state, pods)
        if not failure and docker and restarted and not _output("/usr/local/bin/docker", "version"):
            failure = "docker, which is restarted along with flanneld, does not answer"
        if not failure or time.monotonic() > end:
            return {"restarted": restarted, "failure": failure}
        time.sleep(_INTERVAL)
        state = status()


def _unanswered_for(pods: list[str], state: dict[str, Any], seconds: float) -> str:
    """Which pods do not answer for so long."""
    end = time.monotonic() + seconds
    while (failure := _unanswered(state, pods)) and time.monotonic() < end:
        time.sleep(_INTERVAL)
    return failure


def _unanswered(state: dict[str, Any], pods: list[str]) -> str:
    """Which pods do not answer this machine's own pods, of which the bridge's address is one."""
    source = own(state)
    for pod in pods:
        if source and not probe.ping(pod, source)["ok"]:
            return f"the pod {pod} does not answer a ping from {source}"
    return ""


def own(state: dict[str, Any]) -> str:
    """The bridge's address: the first one of the own subnet that a machine may have."""
    subnets = [str(one) for one in (state.get("lease") or {}).get("subnets") or [] if ":" not in str(one)]
    if not subnets:
        return ""
    first, _, last = subnets[0].partition("/")[0].rpartition(".")
    return f"{first}.{int(last) + 1}"
