"""Everything that can be known to be wrong before anything is changed, all of it at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubewright import ports, versions
from kubewright.topology import Cluster, Machine

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
OLDEST_PYTHON = (3, 9)
# Linux cuts the names of processes to so many characters.
_COMM = 15
# Made by what we install, inside the pod network.
_OWN_INTERFACES = ("cni0", "docker0", "flannel")


def python_is_new_enough(version: str) -> bool:
    """Whether what runs on machines would run with a Python of this version, such as `3.11.2`."""
    return tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_PYTHON


@dataclass(frozen=True)
class Room:
    """Bytes that a machine must have free at a path, for a `component` that it has not had yet; empty: for any."""

    path: str
    bytes: int
    component: str = ""


@dataclass(frozen=True)
class Limits:
    """What the inventory allows: `architecture` in Debian's words, skew in seconds, room on disks."""

    architecture: str
    max_clock_skew: float
    rooms: Sequence[Room]


def _needs(room: Room, facts: Mapping[str, Any], machine: Machine | None) -> bool:
    if not room.component:
        return not facts["components"]
    part = {"etcd": machine.is_etcd, "docker": machine.is_node}[room.component] if machine else True
    return part and room.component not in facts["components"]


def machine_problems(facts: Mapping[str, Any], limits: Limits, machine: Machine | None) -> list[str]:
    """What is wrong with a machine. `machine`: its part in the cluster, None where that is not known."""
    found = []
    wanted = ARCHITECTURES.get(limits.architecture, limits.architecture)
    if facts["architecture"] != wanted:
        found.append(
            f"architecture is {facts['architecture']}, the artifacts are for {wanted} (artifacts_architecture)"
        )
    if not python_is_new_enough(facts["python"]):
        found.append(f"Python is {facts['python']}, 3.9 or newer is needed; set ansible_python_interpreter")
    if not facts["systemd"]:
        found.append("systemd does not run this machine; kubewright needs it")
    for room in limits.rooms:
        free = facts["free_bytes"][room.path]
        if free < room.bytes and _needs(room, facts, machine):
            found.append(f"{room.path} has {free >> 20} MiB free, {room.bytes >> 20} MiB are needed; free some space")
    if facts["skew_seconds"] > limits.max_clock_skew:
        found.append(
            f"its clock is off by {facts['skew_seconds']:.1f} s (allowed {limits.max_clock_skew:g} s);"
            " certificates and etcd need a common time: start chrony or set the clock"
        )
    return found


def place_problems(machine: Machine, facts: Mapping[str, Any], cluster: Cluster) -> list[str]:
    """What keeps a machine from its part in the cluster."""
    found = []
    expected = ports.holders(
        machine, cluster.api_port, insecure_health=versions.features(cluster.kube_version)["insecure_health_ports"]
    )
    for port, holder in facts["held_ports"].items():
        owner = expected.get(int(port))
        if owner and not holder["ours"]:
            whose = "another " if holder["name"] == owner[:_COMM] else ""
            found.append(
                f"port {port} is held by {whose}{holder['name']!r}, {owner} needs it; stop that process or move it"
            )
    for interface, text in facts["networks"]:
        network = ipaddress.IPv4Network(text)
        for label, ours in (("pod_cidr", cluster.pod_cidr), ("service_cidr", cluster.service_cidr)):
            if network.overlaps(ours) and not interface.startswith(_OWN_INTERFACES):
                found.append(
                    f"its interface {interface} is in {network}, which overlaps {label} {ours}; change {label}"
                )
    return found


def machines_problems(facts: Mapping[str, Mapping[str, Any]], limits: Limits, cluster: Cluster | None) -> list[str]:
    """What is wrong with the machines, by machine name, including what only shows when they are compared."""
    found = []
    identities: dict[str, str] = {}
    for name, known in facts.items():
        machine = cluster.machine(name) if cluster else None
        found += [f"{name}: {problem}" for problem in machine_problems(known, limits, machine)]
        identity = known["machine_id"]
        if identity and identity in identities:
            found.append(
                f"{name}: has the same /etc/machine-id as {identities[identity]} (cloned?), so both get the same MAC "
                "addresses: empty the file on one of them, run systemd-machine-id-setup and reboot it"
            )
        identities.setdefault(identity, name)
    return found


def cluster_problems(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]], *, restoring: bool = False) -> list[str]:
    """What keeps the machines from becoming, or staying, this cluster. `restoring`: members without data may be."""
    found = []
    for name, known in facts.items():
        found += [f"{name}: {problem}" for problem in place_problems(cluster.machine(name), known, cluster)]
    members = {m.name for m in cluster.etcd_members()}
    formed = sorted(name for name in members & set(facts) if "etcd" in facts[name]["components"])
    for name in sorted(members & set(facts)):
        known = facts[name]
        if name in formed and not known["etcd_data"] and not restoring:
            found.append(
                f"{name}: its etcd member ran before and its data in etcd_data_dir is gone; a new empty member would "
                f"split the cluster: playbooks/ops/restore_member.yml -e etcd_restore_member={name} gives it the data "
                "of the others; when these have no quorum, playbooks/ops/restore.yml restores all of them"
            )
        address = str(cluster.machine(name).address)
        if name in formed and known["etcd_data"] and known["etcd_peer"] not in ("", address):
            found.append(
                f"{name}: the other etcd members know it at {known['etcd_peer']}, the inventory has {address}; set "
                f"machine_address back, or first run etcdctl member update ID --peer-urls=https://{address}:2380 and "
                "write the same into /opt/etcd/cfg/etcd there"
            )
    return found


def vip_problems(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]], leaving: Collection[str] = ()) -> list[str]:
    """What keeps the machines of the group lb from holding the virtual address.

    `leaving`: addresses of machines that this run takes out of the cluster.
    """
    if cluster.api_endpoint_mode != "vip":
        return []
    found = []
    balancers = [m.name for m in cluster.machines if m.is_lb]
    owners = {mac: name for name, known in facts.items() for mac in known["macs"]}
    silent = [name for name in balancers if name not in facts]
    # Nodes and masters lose the address in this run when they are to hold it no more.
    sharing = {m.address for m in cluster.machines if m.is_lb or (m.name in facts and (m.is_node or m.is_master))}
    for name in [name for name in balancers if name in facts]:
        vip = facts[name]["vip"]
        if not vip.get("interface"):
            seen = ", ".join(f"{interface} {network}" for interface, network in facts[name]["networks"])
            found.append(
                f"{name}: api_vip {cluster.api_vip} is in none of its networks ({seen}); choose a free address of the "
                "network that it shares with the other machines in lb"
            )
        elif vip["holder"] and owners.get(vip["holder"]) not in balancers:
            who = f" (that is {owners[vip['holder']]})" if vip["holder"] in owners else ""
            # One that does not know of its new partner would not give the address up.
            hint = f", or, if {' or '.join(silent)} has it, bring that into this run" if silent and not who else ""
            found.append(
                f"{name}: api_vip {cluster.api_vip} is already taken: {vip['holder']}{who} answers for it on "
                f"{vip['interface']}; choose an address that nobody has{hint}"
            )
        found += [
            f"{name}: {partner} has shared api_vip with it, is not in the group lb any more, and is still a load "
            "balancer: both would hold the address; write it into lb again and use playbooks/ops/remove.yml, or stop "
            "it: systemctl disable --now kube-lb-vip kube-lb there. If the address is another machine's now, delete it "
            f"from unicast_peer in /opt/kubernetes/lb/keepalived.conf of {name}"
            for partner in vip.get("partners", [])
            if partner not in sharing and partner not in leaving
        ]
    return found


def changes_balancers(stages: Collection[str], artifacts_change: object, *, restoring: bool) -> bool:
    """Whether a run may change who holds the virtual address: only then `vip_problems` are a reason to refuse it.

    A backup, and all the more a restore, must not wait for a load balancer. `stages`: that the tags leave;
    `artifacts_change`: what the playbook says of itself, `none` where it brings no component.
    """
    return "lb" in stages and artifacts_change != "none" and not restoring


# In the order in which they go: whoever uses the next one first.
_LB_COMPONENTS = ("kube-lb-vip", "kube-lb-check", "kube-lb")


def lb_leavings(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Machine -> its components of the load balancer that it has no part in any more; only machines that have some."""
    found = {}
    for name, known in facts.items():
        machine = cluster.machine(name)
        wanted = _LB_COMPONENTS if machine.is_lb else _LB_COMPONENTS[1:] if machine.has_proxy else ()
        found[name] = [part for part in _LB_COMPONENTS if part in known["components"] and part not in wanted]
    return {name: parts for name, parts in found.items() if parts}


def outside(groups: Mapping[str, Sequence[str]], run: Collection[str], *, everybody: bool = False) -> list[str]:
    """Machines outside of a run that are asked all the same: all masters where the run has none, members likewise.

    `everybody`: the rules about versions look at all of the cluster.
    """
    found = []
    for group in ("kube_master", "etcd", "kube_node"):
        members = groups.get(group, [])
        if everybody or (group != "kube_node" and not set(members) & set(run)):
            found += [name for name in members if name not in run]
    return list(dict.fromkeys(found))


def helpers(names: Sequence[str], facts: Mapping[str, Mapping[str, Any]], key: str = "") -> list[str]:
    """Machines in the order in which to turn to them: those where the fact `key` is true, that answered, all others."""
    known = [name for name in names if name in facts]
    good = [name for name in known if key and facts[name].get(key)]
    return list(dict.fromkeys([*good, *known, *names]))


def etcd_is_new(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no member has ever been healthy, so that a new cluster may be formed. Unseen members count as formed."""
    members = [m.name for m in cluster.etcd_members()]
    return all(name in facts and "etcd" not in facts[name]["components"] for name in members)


def etcd_joining(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Machines of the run that become members of a living etcd, in inventory order: one after the other."""
    if etcd_is_new(cluster, facts):
        return []
    return [
        m.name
        for m in cluster.etcd_members()
        if m.name in facts and ("etcd" not in facts[m.name]["components"] or facts[m.name]["etcd_learner"])
    ]


def etcd_count_problems(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(problems, warnings): an even number of members must not form a cluster; a living one may have it for a while."""
    members = [m.name for m in cluster.etcd_members()]
    if len(members) % 2:
        return [], []
    text = (
        f"etcd: {len(members)} members ({', '.join(members)}); an even number tolerates no more "
        f"failures than {len(members) - 1} do and can split: use an odd number"
    )
    return ([text], []) if etcd_is_new(cluster, facts) else ([], [text])


def report(problems: list[str]) -> str:
    """All problems as one message."""
    noun = "problem" if len(problems) == 1 else "problems"
    lines = [f"{len(problems)} {noun} found, nothing has been changed:"]
    return "\n".join([*lines, *(f"  - {problem}" for problem in problems)])
