"""What a machine is, asked once at the start of a run."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import platform
import re
import shutil
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from . import arp, component, etcd, files, generations, health

_LISTEN = "0A"
# Programs of the distribution that run in units of ours.
_OUR_UNITS = ("/kube-lb.service",)
_VIP_CONFIG = "/opt/kubernetes/lb/keepalived.conf"


def listening(table: str) -> dict[int, str]:
    """Port -> socket inode of every listening socket of a /proc/net/tcp table."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            found[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return found


def _holders(inodes: dict[str, int]) -> dict[int, dict[str, Any]]:
    """Port -> {name: of the process that holds it, ours: whether the program or its unit was installed by us}."""
    found: dict[int, dict[str, Any]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        for link in links:
            if link.startswith("socket:[") and link[8:-1] in inodes:
                ours = program.startswith(component.STORE + "/") or _runs_in(
                    files.read(f"/proc/{pid}/cgroup"), _OUR_UNITS
                )
                found[inodes[link[8:-1]]] = {"name": files.read(f"/proc/{pid}/comm").strip(), "ours": ours}
    return found


def _runs_in(cgroups: str, units: tuple[str, ...]) -> bool:
    """Whether a /proc/PID/cgroup is that of one of the units."""
    return any(line.endswith(units) for line in cgroups.splitlines())


def interface_of(address: str, found: list[tuple[str, str]]) -> str:
    """The interface whose network an address is in, the narrowest of them; empty when there is none."""
    target = ipaddress.IPv4Address(address)
    all_ = [(ipaddress.IPv4Network(text), name) for name, text in found]
    fitting = [(network.prefixlen, name) for network, name in all_ if target in network]
    return max(fitting)[1] if fitting else ""


def partners(config: str) -> list[str]:
    """Addresses of those with whom a configuration of keepalived shares the virtual address."""
    found = re.search(r"unicast_peer \{(.*?)\}", config, re.DOTALL)
    return [address for address in found[1].split() if address != "127.0.0.1"] if found else []


def _accepts(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def _vip(address: str, port: int, found: list[tuple[str, str]]) -> dict[str, Any]:
    """Of a virtual address: {interface: that it belongs to, holder: hardware address of whoever has it now, partners}.

    `partners`: addresses of the load balancers that share it with this one by now, and accept connections.
    The wire is only asked for the holder until this machine is one of those that hold the address.
    """
    try:
        interface = interface_of(address, found)
    except ValueError:
        return {}
    config = files.read(_VIP_CONFIG)
    ours = f" {address}/32 " in config
    return {
        "interface": interface,
        "holder": "" if ours or not interface else arp.holder(interface, address),
        "partners": [partner for partner in partners(config) if _accepts(partner, port)],
    }


def _api_answers(port: int) -> bool:
    """Whether this machine's own API server is ready."""
    check = {"kind": "http", "url": f"https://127.0.0.1:{port}/readyz", "ca": "/opt/kubernetes/ssl/ca.pem"}
    return not health.probe(check)


def networks(table: str) -> list[tuple[str, str]]:
    """(interface, network) of every route of a /proc/net/route table that needs no gateway."""
    found = []
    for line in table.splitlines()[1:]:
        interface, destination, gateway, _, _, _, _, mask = line.split()[:8]
        if int(gateway, 16) == 0 and int(mask, 16):
            # The kernel prints addresses as the machine's own integers.
            address = socket.inet_ntoa(int(destination, 16).to_bytes(4, sys.byteorder))
            found.append((interface, f"{address}/{bin(int(mask, 16)).count('1')}"))
    return found


def _free(path: str) -> int:
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path or "/").free


def _peer_host(config: str) -> str:
    """The address at which the other members know this machine's etcd member; empty when there is none."""
    for line in config.splitlines():
        if line.startswith("ETCD_INITIAL_ADVERTISE_PEER_URLS="):
            return urlsplit(line.partition("=")[2]).hostname or ""
    return ""


def proxy_mode(config: str) -> str:
    """The mode in a configuration of kube-proxy; empty when there is none."""
    found = re.search(r"^mode: *(\w+)", config, re.MULTILINE)
    return found[1] if found else ""


def has_module(name: str, dependencies: str) -> bool:
    """Whether a modules.dep lists a module that can be loaded."""
    files_ = (line.partition(":")[0].rpartition("/")[2] for line in dependencies.splitlines())
    return any(file.partition(".ko")[0] == name for file in files_)


def _etcd_learner() -> bool:
    """Whether this machine's etcd member runs and has no vote yet."""
    tls = {"ca": "/opt/etcd/ssl/ca.pem", "cert": "/opt/etcd/ssl/client.pem", "key": "/opt/etcd/ssl/client-key.pem"}
    try:
        return etcd.learns({"url": "https://127.0.0.1:2379", **tls})
    except (etcd.EtcdError, OSError):
        return False


def certificates(text: str) -> list[str]:
    """SHA-256 of each certificate of a PEM text, however its lines are broken."""
    blocks = re.findall("-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    return [hashlib.sha256("".join(block.split()).encode()).hexdigest() for block in blocks]


def collect(
    ports: list[int], disks: list[str], etcd_data: str, cas: list[str], api_port: int = 0, vip: str = ""
) -> dict[str, Any]:
    """Facts of this machine.

    `api_port`: where an API server would answer. `vip`: a virtual address that this machine is to hold now and then.

    `cas`: files of CA certificates; the fact has `certificates` of those that are there.
    `ports`: held_ports tells which process holds them. `disks`: free_bytes tells the room at these paths.
    `etcd_data`: the data directory of an etcd member.
    """
    open_ports = {**listening(files.read("/proc/net/tcp6")), **listening(files.read("/proc/net/tcp"))}
    wanted = {inode: port for port, inode in open_ports.items() if port in ports}
    records = []
    if os.path.isdir(component.RECORDS):
        records = sorted(name[:-5] for name in os.listdir(component.RECORDS) if name.endswith(".json"))
    own_networks = networks(files.read("/proc/net/route"))
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "architecture": platform.machine(),
        "machine_id": files.read("/etc/machine-id").strip(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "free_bytes": {path: _free(path) for path in disks},
        "held_ports": {str(port): holder for port, holder in _holders(wanted).items()} if wanted else {},
        "networks": own_networks,
        "macs": arp.macs(),
        "vip": _vip(vip, api_port, own_networks) if vip else {},
        "api_ready": "kube-apiserver" in records and _api_answers(api_port),
        "cas": {path: certificates(files.read(path)) for path in cas if os.path.exists(path)},
        "components": records,
        "generations": {
            name: generations.describe(files.read_json(f"{component.RECORDS}/{name}.json") or {}, component.STORE)
            for name in records
        },
        "etcd_data": os.path.isdir(f"{etcd_data}/member"),
        "etcd_learner": "etcd" in records and _etcd_learner(),
        "etcd_peer": _peer_host(files.read("/opt/etcd/cfg/etcd")),
        "proxy": {
            "configured": proxy_mode(files.read("/opt/kubernetes/cfg/kube-proxy-config.yml")),
            "ip_vs": os.path.exists("/proc/net/ip_vs"),
            "ip_vs_module": has_module("ip_vs", files.read(f"/lib/modules/{platform.release()}/modules.dep")),
        },
        "now": time.time(),
    }
