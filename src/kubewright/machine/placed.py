"""What components put on this machine and what was there before them, kept so that they can be taken away again.

One file, /var/lib/kubewright/placed.json, written before anything is placed, so that a run that dies leaves no trace
that is not in it:
  directories  [path]   that did not exist before, of all components
  components   {name: {
    units        [name]           as by declarations of today and before
    files        [path]
    links        {path: artifact}
    directories  [path]           that the declaration names
    originals    {path: {link} or {content (base64), mode, owner, group}}   of others, in whose place ours came
    before       {sysctls: {name: value}, devices: [name], forward: policy}   what its service changes by itself
  }}
  kept         {name: [[directory, pattern]]}   where data of components lies that are gone, and what in it is theirs
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from typing import Any, Iterator

from . import files

PLACED = "/var/lib/kubewright/placed.json"
# Trees in which everything is ours: what is found there is never somebody else's.
OWN_ROOTS = ("/opt/kubewright", "/opt/kubernetes", "/opt/etcd", "/opt/flannel")
# Files of others that are larger are not kept.
_LARGEST = 1 << 20

# Component -> kernel parameters that its service sets, with the value that it sets; empty: whatever it finds right.
SYSCTLS: dict[str, dict[str, str]] = {
    "kubelet": {
        "kernel.keys.root_maxbytes": "25000000",
        "kernel.keys.root_maxkeys": "1000000",
        "kernel.panic": "10",
        "kernel.panic_on_oops": "1",
        "vm.overcommit_memory": "1",
        "vm.panic_on_oom": "0",
    },
    "kube-proxy": {
        "net.ipv4.conf.all.route_localnet": "1",
        "net.netfilter.nf_conntrack_max": "",
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "",
        "net.netfilter.nf_conntrack_tcp_timeout_established": "",
        "net.ipv4.vs.conn_reuse_mode": "",
        "net.ipv4.vs.conntrack": "",
        "net.ipv4.vs.expire_nodest_conn": "",
        "net.ipv4.vs.expire_quiescent_template": "",
    },
    "flanneld": {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.forwarding": "1"},
    "docker": {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.forwarding": "1"},
}
# Component -> devices that its service makes.
DEVICES: dict[str, tuple[str, ...]] = {
    "docker": ("docker0",),
    "kubelet": ("cni0",),
    "kube-proxy": ("kube-ipvs0",),
}


def read() -> dict[str, Any]:
    """The record; empty where nothing has been placed, or by a version that kept none."""
    found = files.read_json(PLACED)
    return found if isinstance(found, dict) else {"directories": [], "components": {}}


def entry(name: str) -> dict[str, Any]:
    """What is known of one component; empty where nothing is."""
    return dict(read()["components"].get(name, {}))


def kept(name: str) -> list[tuple[str, str]]:
    """(directory, pattern of names in it) of a component's data that was kept when the component went."""
    return [(directory, pattern) for directory, pattern in read().get("kept", {}).get(name, [])]


def write(record: dict[str, Any]) -> None:
    """Replace the record; it may hold contents of files of others, so only root reads it."""
    files.write_atomic(PLACED, json.dumps(record, indent=1, sort_keys=True).encode(), 0o600)


def sysctl_path(name: str) -> str:
    """Where the kernel shows a parameter."""
    return "/proc/sys/" + name.replace(".", "/")


def sysctl(name: str) -> str:
    """The value of a kernel parameter in one line; empty where there is none."""
    return " ".join(files.read(sysctl_path(name)).split())


def remember(components: list[dict[str, Any]], stored: dict[str, str], ran: set[str]) -> None:
    """Add what is about to be placed to the record.

    `components`: as declared on the wire. `stored`: link -> path of its binary in the store. `ran`: names of components
    that ran here before: what is in the way of those is their own, and what was before them is not known any more.
    """
    record = read()
    before = json.dumps(record, sort_keys=True)
    ours = set(_all(record["components"], "files")) | set(_all(record["components"], "links"))
    for declared in components:
        new = declared["name"] not in record["components"] and declared["name"] not in ran
        entry = record["components"].setdefault(
            declared["name"],
            {"units": [], "files": [], "links": {}, "directories": [], "originals": {}, "before": {}},
        )
        if new:
            entry["before"] = _before(declared["name"])
        paths = [item["path"] for item in declared["files"]]
        links = {binary["link"]: binary["name"] for binary in declared["binaries"]}
        directories = [item["path"] for item in declared["directories"]]
        for path in [*paths, *links, *declared["absent"]]:
            if declared["name"] not in ran and path not in ours and path not in entry["originals"]:
                original = _original(path)
                if original:
                    entry["originals"][path] = original
        places = [os.path.dirname(path) for path in [*paths, *links, *stored.values()]]
        record["directories"] = _with(record["directories"], _missing([*directories, *places]))
        entry["units"] = _with(entry["units"], [declared["unit"]] if declared["unit"] else [])
        entry["files"] = _with(entry["files"], paths)
        entry["links"].update(links)
        entry["directories"] = _with(entry["directories"], directories)
    if json.dumps(record, sort_keys=True) != before:
        write(record)


def _all(components: dict[str, Any], key: str) -> Iterator[str]:
    for entry in components.values():
        yield from entry[key]


def _with(known: list[str], further: list[str]) -> list[str]:
    return sorted(set(known) | set(further))


def _missing(directories: list[str]) -> list[str]:
    """Those of the directories and of their parents that do not exist."""
    found = set()
    for directory in directories:
        path = directory
        while path not in ("", "/") and not os.path.lexists(path):
            found.add(path)
            path = os.path.dirname(path)
    return sorted(found)


def _original(path: str) -> dict[str, Any] | None:
    """What stands at a path before ours comes there; None where there is nothing that could be put back."""
    if path.startswith(tuple(f"{root}/" for root in OWN_ROOTS)):
        return None
    if os.path.islink(path):
        return {"link": os.readlink(path)}
    seen = files.describe(path)
    if seen is None or seen["kind"] != "file" or os.path.getsize(path) > _LARGEST:
        return None
    with open(path, "rb") as stream:
        content = stream.read()
    return {"content": base64.b64encode(content).decode(), **{key: seen[key] for key in ("mode", "owner", "group")}}


def _before(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "sysctls": {key: value for key in SYSCTLS.get(name, {}) if (value := sysctl(key))},
        "devices": [device for device in DEVICES.get(name, ()) if os.path.exists(f"/sys/class/net/{device}")],
    }
    if name == "docker":
        try:
            reply = subprocess.run(
                ["iptables", "-S", "FORWARD"], capture_output=True, text=True, check=False, timeout=20
            )
            first = reply.stdout.partition("\n")[0].split()
            found["forward"] = first[2] if first[:2] == ["-P", "FORWARD"] else ""
        except (OSError, subprocess.TimeoutExpired):
            found["forward"] = ""
    return found
