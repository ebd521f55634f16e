"""Which ports a machine needs, by its part in the cluster: one table for the preflight and for firewalls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubewright import podnetwork
from kubewright.topology import Machine

# Part -> TCP port -> who holds it, and whether other machines must reach it.
_ETCD: Mapping[int, tuple[str, bool]] = {2379: ("etcd", True), 2380: ("etcd", True)}
_MASTER: Mapping[int, tuple[str, bool]] = {
    10257: ("kube-controller-manager", False),
    10259: ("kube-scheduler", False),
}
# Plain HTTP on the loopback, for `kubectl get componentstatuses`.
_INSECURE_HEALTH: Mapping[int, tuple[str, bool]] = {
    10251: ("kube-scheduler", False),
    10252: ("kube-controller-manager", False),
}
_NODE: Mapping[int, tuple[str, bool]] = {
    10248: ("kubelet", False),
    10249: ("kube-proxy", False),
    10250: ("kubelet", True),
    10256: ("kube-proxy", True),
}
# An IP protocol of its own, without ports.
VRRP = "vrrp"
_NODE_PORTS = ("30000-32767/tcp", "30000-32767/udp")
# UDP ports of flannel's backends where the configuration names none; the others need none.
_BACKENDS = {"vxlan": 8472, "udp": 8285}


def watched(api_port: int) -> list[int]:
    """Every TCP port whose holder a machine should report."""
    return sorted({*_ETCD, *_MASTER, *_INSECURE_HEALTH, *_NODE, api_port})


def _table(machine: Machine, api_port: int) -> dict[int, tuple[str, bool]]:
    found: dict[int, tuple[str, bool]] = {}
    if machine.is_etcd:
        found |= _ETCD
    if machine.is_master:
        found |= {**_MASTER, api_port: ("kube-apiserver", True)}
    if machine.is_node:
        found |= _NODE
    if machine.is_lb or machine.has_proxy:
        # A local proxy listens on the loopback.
        found[api_port] = ("nginx (kube-lb)", machine.is_lb)
    return found


def holders(machine: Machine, api_port: int, *, insecure_health: bool = False) -> dict[int, str]:
    """TCP port -> the service of ours that needs it on this machine; `insecure_health`: of versions that have it."""
    insecure = _INSECURE_HEALTH if insecure_health and machine.is_master else {}
    return {port: holder for port, (holder, _) in {**_table(machine, api_port), **insecure}.items()}


def firewall(
    machine: Machine, api_port: int, backend: Mapping[str, Any] | None = None, further: list[str] | None = None
) -> list[str]:
    """What a firewall on this machine must let in, as `6443/tcp`, `30000-32767/udp` or, for VRRP, `vrrp`.

    `backend`: flannel's backend configuration; `further`: ports of the user's.
    """
    opened = [f"{port}/tcp" for port, (_, remote) in sorted(_table(machine, api_port).items()) if remote]
    if machine.is_node:
        usual = _BACKENDS.get(podnetwork.backend_type(backend))
        if usual:
            # flanneld knows its keys in any letter case, and 0 as the default.
            port = {key.lower(): value for key, value in (backend or {}).items()}.get("port") or usual
            opened.append(f"{port}/udp")
        opened += _NODE_PORTS
    if machine.is_lb:
        opened.append(VRRP)
    return opened + [port for port in further or [] if port not in opened]
