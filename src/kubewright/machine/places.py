"""Where on this machine the data of components lies, by their own configuration and the inventory."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from . import files, placed

STATE = "/var/lib/kubewright"
# The default of the role etcd.
SNAPSHOTS = "/var/lib/etcd-snapshots"
# Of every storage driver; what else is in the directory is not Docker's.
_DOCKER_DATA = re.compile(
    "aufs|btrfs|buildkit|containerd|containers|devicemapper|engine-id|fuse-overlayfs|image|network|overlay|overlay2"
    "|plugins|runtimes|swarm|tmp|trust|vfs|volumes|zfs"
)
# With what restores have moved aside, and what they leave when they are interrupted.
_ETCD_DATA = re.compile(r"member(\.before-.*)?|kubewright-restore\.json|\.kubewright-restoring")
_SNAPSHOTS = re.compile(r"(etcd-|before-upgrade|kubewright-scratch|\.partial-).*")


class Options(NamedTuple):
    """`data`: etcd's data and Docker's images and volumes, too. Directories are what the inventory says, used where the
    machine's own configuration is gone already. `grace`: seconds that containers have to end by themselves."""

    data: bool = False
    etcd_data: str = "/var/lib/etcd"
    docker_data: str = "/var/lib/docker"
    grace: float = 10.0


def members(options: Options) -> list[str]:
    """Directories with data of an etcd member."""
    roots = [*_etcd_roots(options), *(root for root, _ in placed.kept("etcd"))]
    found = dict.fromkeys(f"{root}/member" for root in roots)
    return [place for place in found if os.path.isdir(place) and os.listdir(place)]


def kubelet_root() -> str:
    """The kubelet's directory."""
    found = re.search(r"--root-dir=(/[^\s\"']+)", files.read("/opt/kubernetes/cfg/kubelet"))
    return found[1].rstrip("/") if found else "/var/lib/kubelet"


def _etcd_roots(options: Options) -> list[str]:
    configured = re.search(r"^ETCD_DATA_DIR=(/\S+)", files.read("/opt/etcd/cfg/etcd"), re.MULTILINE)
    named = [*([configured[1]] if configured else []), options.etcd_data, *placed.entry("etcd").get("directories", [])]
    return list(dict.fromkeys(path.rstrip("/") for path in named))


def data(name: str, options: Options) -> list[tuple[str, re.Pattern[str]]]:
    """Directories of a component's data, each with the names in it that are such."""
    if name == "docker":
        return [(root, _DOCKER_DATA) for root in _docker_roots(options)]
    if name == "etcd":
        own = [(root, _ETCD_DATA) for root in _etcd_roots(options)]
        return [*own, (f"{STATE}/snapshots", _SNAPSHOTS), *data("etcd-snapshot", options)]
    if name == "etcd-snapshot":
        configured = (files.read_json("/opt/etcd/cfg/etcd-snapshot.json") or {}).get("directory") or SNAPSHOTS
        named = [configured, SNAPSHOTS, *placed.entry(name).get("directories", [])]
        return [(root, _SNAPSHOTS) for root in dict.fromkeys(path.rstrip("/") for path in named)]
    return []


def _docker_roots(options: Options) -> list[str]:
    configured = files.read_json("/etc/docker/daemon.json") if "docker" in placed.read()["components"] else None
    named = str((configured or {}).get("data-root") or options.docker_data)
    return list(dict.fromkeys(path.rstrip("/") for path in (named, options.docker_data)))
