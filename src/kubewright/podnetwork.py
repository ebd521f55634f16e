"""The pod network's configuration in etcd: what it is, and whether flanneld would take it.

flanneld's own parser decides, before anything is written: a value that it refuses would stop every node.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any

from flanneld.backend.registry import check_backend
from flanneld.errors import ConfigError
from flanneld.subnet import change
from flanneld.subnet.config import parse_config
from kubewright.topology import Cluster

# Variables of role flannel on which all machines must agree.
SHARED = ("flannel_backend", "flannel_etcd_prefix")
_WITH_DEVICE = ("vxlan", "udp")
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")
# Where pod_cidr itself is wrong, which is reported elsewhere, the rest is looked at beside a network that is right.
_SOUND = {"pod_cidr": "10.244.0.0/16", "pod_subnet_length": 24}


def network(cluster: Mapping[str, Any], backend: Mapping[str, Any]) -> dict[str, Any]:
    """The value of PREFIX/config. `cluster`: the fact of this name; `backend`: flannel_backend."""
    return {"Network": cluster["pod_cidr"], "SubnetLen": cluster["pod_subnet_length"], "Backend": dict(backend)}


def refusals(before: str, after: str) -> list[str]:
    """Why running flannelds would not take over another PREFIX/config, both as text in etcd; empty when they do."""
    try:
        return change.refusals(parse_config(before), parse_config(after))
    except ConfigError as error:
        return [str(error)]


def backend_type(backend: Mapping[str, Any] | None) -> str:
    """The backend's type in lower case, vxlan where none is set; flanneld knows its keys in any letter case."""
    return str({key.lower(): value for key, value in (backend or {}).items()}.get("type") or "vxlan").lower()


def flannel_address(pod: str, length: int, backend: Mapping[str, Any] | None) -> str:
    """An address that answers for the machine of `pod`: the device's, or the bridge's where there is no device."""
    network = ipaddress.ip_interface(f"{pod}/{length}").network
    return str(network[0] if backend_type(backend) in _WITH_DEVICE else network[1])


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
        check_backend(parse_config(json.dumps(network(computed, backend), default=str)))
    except ConfigError as error:
        return [f"flannel_backend: flanneld would refuse {shown} for pod_cidr {computed['pod_cidr']}: {error}"]
    return []
