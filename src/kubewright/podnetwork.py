"""The pod network's configuration in etcd: what it is, and whether flanneld would take it.

flanneld's own parser decides, before anything is written: a value that it refuses would stop every node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from flanneld.config import parse_config, vxlan_config
from flanneld.errors import ConfigError
from kubewright.topology import Cluster

# Variables of role flannel on which all machines must agree.
SHARED = ("flannel_backend", "flannel_etcd_prefix")
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")
# Where pod_cidr itself is wrong, which is reported elsewhere, the rest is looked at beside a network that is right.
_SOUND = {"pod_cidr": "10.244.0.0/16", "pod_subnet_length": 24}


def network(cluster: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, Any]:
    """The value of PREFIX/config. `cluster`: the fact of this name; `backend`: flannel_backend."""
    return {"Network": cluster["pod_cidr"], "SubnetLen": cluster["pod_subnet_length"], "Backend": dict(backend)}


def problems(values: Mapping[str, Mapping[str, Any]], cluster: Cluster | None) -> list[str]:
    """What flanneld would refuse. `values`: host -> {variable: value}; of a wrong type: not looked at here."""
    found: dict[str, None] = {}
    for variables in values.values():
        prefix = variables.get("flannel_etcd_prefix")
        if isinstance(prefix, str) and not _PREFIX.fullmatch(prefix):
            found[
                f"flannel_etcd_prefix: {prefix!r} is not a key prefix; write it with a slash before each part and none "
                "at the end, as /coreos.com/network"
            ] = None
        backend = variables.get("flannel_backend", {"Type": "vxlan"})
        if isinstance(backend, dict):
            found |= dict.fromkeys(_refused(backend, cluster))
    return list(found)


def _refused(backend: Mapping[str, Any], cluster: Cluster | None) -> list[str]:
    computed = cluster.facts() if cluster else _SOUND
    shown = json.dumps(backend, default=str)
    try:
        vxlan_config(parse_config(json.dumps(network(computed, backend), default=str)))
    except ConfigError as error:
        return [f"flannel_backend: flanneld would refuse {shown} for pod_cidr {computed['pod_cidr']}: {error}"]
    return []
