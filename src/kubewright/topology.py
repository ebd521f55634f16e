"""The cluster, computed once from the inventory: who does what, under which addresses.

Pure: takes plain variables, returns a frozen `Cluster` or every problem found. Nothing here touches a machine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubewright import endpoint, versions

Network = ipaddress.IPv4Network
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Machine:
    """One host of the inventory in the roles that it plays.

    `has_proxy`: it reaches the API servers through an nginx on its own loopback.
    """

    name: str
    address: str
    node_name: str
    is_etcd: bool = False
    is_master: bool = False
    is_node: bool = False
    is_tainted: bool = False
    is_lb: bool = False
    has_proxy: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Everything that more than one machine must agree on."""

    name: str
    kube_version: str
    machines: tuple[Machine, ...]
    pod_cidr: Network
    pod_subnet_length: int
    service_cidr: Network
    dns_domain: str
    network_mode: str
    api_port: int
    api_endpoint_mode: str
    api_vip: str
    api_vip_router_id: int
    api_endpoint: str
    api_extra_sans: tuple[str, ...]
    pki_expiry_hours: int
    pki_ca_expiry_hours: int
    # Where the password of the CAs' keys is, `env:NAME` or `file:PATH`; empty for keys that are not encrypted.
    pki_ca_password: str = ""

    def machine(self, name: str) -> Machine:
        """The machine of this inventory name; KeyError when there is none."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise KeyError(name)

    def etcd_members(self) -> tuple[Machine, ...]:
        """Machines that run an etcd member, in inventory order."""
        return tuple(m for m in self.machines if m.is_etcd)

    def masters(self) -> tuple[Machine, ...]:
        """Machines that run the control plane, in inventory order."""
        return tuple(m for m in self.machines if m.is_master)

    def nodes(self) -> tuple[Machine, ...]:
        """Machines that run a kubelet (and so docker, kube-proxy and flanneld), in inventory order."""
        return tuple(m for m in self.machines if m.is_node)

    @property
    def api_service_address(self) -> str:
        """The ClusterIP of the `kubernetes` Service: the first address of the service network."""
        return str(self.service_cidr[1])

    @property
    def dns_service_address(self) -> str:
        """The ClusterIP reserved for cluster DNS: the second address (.2) as the documents use it."""
        return str(self.service_cidr[2])

    def proxies(self) -> tuple[Machine, ...]:
        """Machines that run an nginx in front of the API servers: the group `lb`, or nodes with a local proxy."""
        return tuple(m for m in self.machines if m.is_lb or m.has_proxy)

    @property
    def api_url(self) -> str:
        """Where the machines reach the API, the same on all of them. Masters that proxy locally are it themselves."""
        hosts = {"vip": self.api_vip, "local_proxy": "127.0.0.1", "single": self.masters()[0].address}
        if self.api_endpoint_mode == "external":
            return f"https://{self.api_endpoint}"
        return f"https://{hosts[self.api_endpoint_mode]}:{self.api_port}"

    @property
    def api_outside_urls(self) -> tuple[str, ...]:
        """Where others than the machines reach the API: the one address of all, or those of the masters."""
        if self.api_endpoint_mode == "local_proxy":
            return tuple(f"https://{m.address}:{self.api_port}" for m in self.masters())
        return (self.api_url,)

    def facts(self) -> dict[str, Any]:
        """The cluster as plain data for templates: the fact `cluster`."""
        members = self.etcd_members()
        return {
            "name": self.name,
            "kube_version": self.kube_version,
            "features": versions.features(self.kube_version),
            "pod_cidr": str(self.pod_cidr),
            "pod_subnet_length": self.pod_subnet_length,
            "service_cidr": str(self.service_cidr),
            "dns_domain": self.dns_domain,
            "network_mode": self.network_mode,
            "api_port": self.api_port,
            "api_url": self.api_url,
            "api_outside_urls": list(self.api_outside_urls),
            "api_endpoint_mode": self.api_endpoint_mode,
            "api_vip": self.api_vip,
            "api_vip_router_id": self.api_vip_router_id,
            "api_servers": [f"{m.address}:{self.api_port}" for m in self.masters()],
            # From a master, with the administrator's certificate.
            "api_access": {
                "server": f"https://127.0.0.1:{self.api_port}",
                "ca": "/opt/kubernetes/ssl/ca.pem",
                "cert": "/opt/kubernetes/ssl/admin.pem",
                "key": "/opt/kubernetes/ssl/admin-key.pem",
            },
            "api_service_address": self.api_service_address,
            "dns_service_address": self.dns_service_address,
            "master_count": len(self.masters()),
            "proxies": [m.name for m in self.proxies()],
            "lb_addresses": [m.address for m in self.machines if m.is_lb],
            "etcd_endpoints": [f"https://{m.address}:2379" for m in members],
            "etcd_initial_cluster": ",".join(f"{m.name}=https://{m.address}:2380" for m in members),
            "hosts_entries": [f"{m.address} {m.name}" for m in self.machines],
            "machines": {
                m.name: {
                    "name": m.name,
                    "address": m.address,
                    "node_name": m.node_name,
                    "is_etcd": m.is_etcd,
                    "is_master": m.is_master,
                    "is_node": m.is_node,
                    "is_tainted": m.is_tainted,
                    "is_lb": m.is_lb,
                    "has_proxy": m.has_proxy,
                    "labels": dict(m.labels),
                }
                for m in self.machines
            },
        }


def _network(variables: Mapping[str, Any], key: str, problems: list[str]) -> Network | None:
    value = variables.get(key)
    try:
        return ipaddress.IPv4Network(str(value))
    except ValueError as error:
        problems.append(f"{key}: {value!r} is not an IPv4 network ({error}); write it as 10.244.0.0/16")
        return None


def _address(name: str, host: Mapping[str, Any], problems: list[str]) -> str:
    value = host.get("machine_address") or host.get("ansible_host") or name
    try:
        return str(ipaddress.IPv4Address(str(value)))
    except ValueError:
        problems.append(
            f"{name}: {value!r} is not an IPv4 address; set ansible_host, or machine_address when machines "
            "know each other by another address than the one Ansible connects to"
        )
        return ""


def _machines(
    variables: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    mode: str,
    problems: list[str],
) -> tuple[Machine, ...]:
    etcd, masters, nodes, balancers = (groups.get(g, []) for g in ("etcd", "kube_master", "kube_node", "lb"))
    masters_are_nodes = bool(variables.get("kube_masters_are_nodes"))
    by_address = variables.get("kube_node_name_from") == "address"
    machines = []
    for name, host in hosts.items():
        address = _address(name, host, problems)
        is_master, listed = name in masters, name in nodes
        node_name = address if by_address else name
        if not by_address and not _NAME.fullmatch(name):
            problems.append(
                f"{name}: not a valid node name (lower-case letters, digits, '-' and '.'); rename the host in the "
                "inventory or set kube_node_name_from: address"
            )
        machines.append(
            Machine(
                name=name,
                address=address,
                node_name=node_name,
                is_etcd=name in etcd,
                is_master=is_master,
                is_node=listed or (is_master and masters_are_nodes),
                is_tainted=is_master and not listed,
                is_lb=name in balancers,
                has_proxy=mode == "local_proxy" and listed and not is_master,
                labels={str(k): str(v) for k, v in dict(host.get("kube_node_labels") or {}).items()},
            )
        )
    return tuple(machines)


def _check_counts(machines: tuple[Machine, ...], problems: list[str]) -> None:
    members = [m for m in machines if m.is_etcd]
    if not members:
        problems.append("etcd: the group is empty; put 1, 3 or 5 machines into the inventory group 'etcd'")
    if not any(m.is_master for m in machines):
        problems.append("kube_master: the group is empty; put at least one machine into the group 'kube_master'")
    if not any(m.is_node for m in machines):
        problems.append("kube_node: the group is empty; put at least one machine into the group 'kube_node'")


def _check_unique(machines: tuple[Machine, ...], problems: list[str]) -> None:
    seen: dict[str, str] = {}
    for machine in machines:
        if machine.address and machine.address in seen:
            problems.append(f"{machine.name}: address {machine.address} is also that of {seen[machine.address]}")
        seen.setdefault(machine.address, machine.name)
    names: dict[str, str] = {}
    for machine in machines:
        key = machine.node_name.lower()
        if key and key in names:
            problems.append(f"{machine.name}: node name {key} is also that of {names[key]}")
        names.setdefault(key, machine.name)


def _check_networks(
    pods: Network | None,
    services: Network | None,
    subnet_length: int,
    machines: tuple[Machine, ...],
    problems: list[str],
) -> None:
    if pods and services and pods.overlaps(services):
        problems.append(f"pod_cidr {pods} and service_cidr {services} overlap; choose two disjoint networks")
    for label, network in (("pod_cidr", pods), ("service_cidr", services)):
        if not network:
            continue
        inside = [m.name for m in machines if m.address and ipaddress.IPv4Address(m.address) in network]
        if inside:
            problems.append(f"{label} {network} contains the addresses of {', '.join(inside)}; choose another network")
    if services and services.prefixlen > 28:
        problems.append(f"service_cidr {services} is too small; use /28 or larger")
    if pods:
        if not pods.prefixlen + 2 <= subnet_length <= 30:
            problems.append(
                f"flannel_subnet_length: {subnet_length} does not fit pod_cidr {pods}; "
                f"it must be between {pods.prefixlen + 2} and 30"
            )
        else:
            room = 2 ** (subnet_length - pods.prefixlen) - 1
            wanted = sum(m.is_node for m in machines)
            if wanted > room:
                problems.append(
                    f"pod_cidr {pods} has room for {room} machines with a /{subnet_length} each, the inventory has "
                    f"{wanted}; use a larger pod_cidr or a larger flannel_subnet_length"
                )


def _check_password(source: str, problems: list[str]) -> None:
    kind, _, rest = source.partition(":")
    if source and not (rest and (kind == "env" or (kind == "file" and rest.startswith("/")))):
        # The value may be the password itself.
        problems.append("pki_ca_password is neither env:NAME nor file:/PATH; write where the password is")


def build(
    variables: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
) -> tuple[Cluster | None, list[str]]:
    """Compute the cluster.

    `variables`: the cluster-wide variables (defaults of role preflight overlaid by the inventory).
    `hosts`: inventory name -> host variables (`ansible_host`, `machine_address`, `kube_node_labels`), in inventory
    order. `groups`: group -> host names. Returns the cluster, or None, and every problem as a sentence.
    """
    problems: list[str] = []
    mode = endpoint.mode_of(variables, groups)
    machines = _machines(variables, hosts, groups, mode, problems)
    _check_counts(machines, problems)
    _check_unique(machines, problems)
    pods = _network(variables, "pod_cidr", problems)
    services = _network(variables, "service_cidr", problems)
    subnet_length = int(variables.get("flannel_subnet_length", 24))
    _check_networks(pods, services, subnet_length, machines, problems)
    networks = {"pod_cidr": pods, "service_cidr": services}
    problems += endpoint.problems(mode, variables, machines, networks)
    _check_password(str(variables.get("pki_ca_password") or ""), problems)
    network_mode = str(variables.get("network_mode"))
    problems += versions.check(str(variables.get("kube_version")), network_mode)
    if problems or pods is None or services is None:
        return None, problems
    return (
        Cluster(
            name=str(variables["cluster_name"]),
            kube_version=str(versions.Version.parse(str(variables["kube_version"]))),
            machines=machines,
            pod_cidr=pods,
            pod_subnet_length=subnet_length,
            service_cidr=services,
            dns_domain=str(variables["dns_domain"]),
            network_mode=network_mode,
            api_port=int(variables["api_port"]),
            api_endpoint_mode=mode,
            api_vip=str(variables.get("api_vip") or ""),
            api_vip_router_id=int(variables.get("api_vip_router_id", 51)),
            api_endpoint=str(variables.get("api_endpoint") or ""),
            api_extra_sans=tuple(str(s) for s in variables.get("api_extra_sans") or ()),
            pki_expiry_hours=int(variables.get("pki_expiry_hours", 8760)),
            pki_ca_expiry_hours=int(variables.get("pki_ca_expiry_hours", 87600)),
            pki_ca_password=str(variables.get("pki_ca_password") or ""),
        ),
        [],
    )
