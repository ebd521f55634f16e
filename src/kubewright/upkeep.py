"""What operations on etcd need of the computed cluster, and what they tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubewright import machine
from kubewright.machine import etcd_status

# What the timer runs of the machine's side, without anything of Ansible.
_PROGRAM = ("__init__", "etcd", "etcd_snapshot", "etcd_status", "files", "health", "systemd")


def members(cluster: Mapping[str, Any]) -> list[dict[str, str]]:
    """Members of etcd as {name, url}. `cluster`: the fact of that name."""
    machines = cluster["machines"].values()
    return [{"name": one["name"], "url": f"https://{one['address']}:2379"} for one in machines if one["is_etcd"]]


def program(directory: str) -> list[dict[str, Any]]:
    """Files of a component: the package that takes snapshots, below `directory` of the machine."""
    home = Path(machine.__file__).parent
    files = [(home.parent / "__init__.py", f"{directory}/kubewright/__init__.py")]
    files += [(home / f"{name}.py", f"{directory}/kubewright/machine/{name}.py") for name in _PROGRAM]
    return [{"path": path, "sources": [str(source)], "restart": False} for source, path in files]


def told(result: Mapping[str, Any], check: bool) -> list[str]:
    """Lines about what `etcd_upkeep.maintain` did, or would do."""
    size = etcd_status.megabytes
    lines = etcd_status.table(result["after"])
    for one in result["done"]:
        seconds = "" if check else f" in {one['seconds']:.1f} s"
        verb = "would be defragmented" if check else "defragmented"
        lines.append(f"{one['name']}: {verb}, {size(one['before'])} -> {size(one['after'])}{seconds}")
    return [*lines, *result["told"]] + ([] if result["done"] else ["nothing to defragment"])
