"""Machines that are added to a cluster or leave it: what is refused, and which stages whom it concerns. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kubewright.errors import UserError

GROUPS = ("etcd", "kube_master", "kube_node", "lb")
# Whole stages of a machine that is added; `hosts` is the part of sysprep that concerns the names of the others.
_OWN = ("sysprep", "pki")
Machines = Mapping[str, Mapping[str, Any]]


def names(value: object) -> list[str]:
    """Machines as they are said on the command line: `node03`, or several with commas or spaces between."""
    words = value if isinstance(value, (list, tuple)) else str(value or "").replace(",", " ").split()
    return list(dict.fromkeys(map(str, words)))


def pattern(patterns: Sequence[str], value: object) -> str:
    """A pattern of Ansible's for hosts: all of `patterns` (commas as in `names`), without the machines of `value`."""
    return ":".join([*(name for one in patterns for name in names(one)), *(f"!{name}" for name in names(value))])


def without(groups: Mapping[str, Sequence[str]], leaving: Collection[str]) -> dict[str, list[str]]:
    """The groups of the inventory as they are without the machines that leave."""
    return {group: [name for name in members if name not in leaving] for group, members in groups.items()}


def leaving_problems(groups: Mapping[str, Sequence[str]], leaving: Sequence[str]) -> list[str]:
    """Why these machines must not leave the cluster of the inventory; the health of etcd is another question."""
    if not leaving:
        return []
    after = without(groups, leaving)
    found = [
        f"{', '.join(leaving)}: {what}; add another one first"
        for group, what in (
            ("kube_master", "no master would be left, and the cluster could not be changed any more"),
            ("etcd", "no etcd member would be left, and everything the cluster knows would be gone"),
            ("kube_node", "no node would be left for pods to run on"),
        )
        if groups.get(group) and not after[group]
    ]
    members = [name for name in leaving if name in groups.get("etcd", [])]
    if len(members) > 1:
        found.append(
            f"{', '.join(members)}: etcd members leave one at a time, so that each time the others can be asked "
            "first: name one of them"
        )
    return found


def moving(
    named: Sequence[str], groups: Mapping[str, Sequence[str]], hosts: Machines, *, by_address: bool
) -> list[dict[str, Any]]:
    """The machines that are added or leave: {name, address, node_name, is_etcd, is_master, is_lb, known}.

    `hosts`: inventory name -> host variables. One that is not in the inventory any more may be anything, so it is
    looked for everywhere; it has no address.
    """
    found = []
    for name in named:
        variables = hosts.get(name)
        address = str(variables.get("machine_address") or variables.get("ansible_host") or name) if variables else ""
        found.append(
            {
                "name": name,
                "address": address,
                "node_name": address if by_address and address else name,
                "is_etcd": variables is None or name in groups.get("etcd", []),
                "is_master": variables is None or name in groups.get("kube_master", []),
                "is_lb": variables is None or name in groups.get("lb", []),
                "known": variables is not None,
            }
        )
    return found


def check_added(named: Sequence[str], machines: Machines) -> None:
    """UserError unless machines were named that are in the groups of the inventory."""
    if not named:
        raise UserError("add.yml was not told which machine", "-e machine=NAME; several with commas between")
    unknown = [name for name in named if name not in machines]
    if unknown:
        near = [close for name in unknown for close in difflib.get_close_matches(name, list(machines), 1)]
        hint = f"did you mean {', '.join(near)}?" if near else f"those groups have {', '.join(machines)}"
        raise UserError(
            f"machine: {', '.join(unknown)} is in none of the groups {', '.join(GROUPS)} of the inventory",
            f"write it there first; {hint}",
        )


def check_leaving(leaving: Sequence[Mapping[str, Any]], answers: Collection[str], *, dead: bool, limit: object) -> None:
    """UserError unless machines were named, and those that are to be removed alive answer.

    `answers`: machines that can be reached.
    """
    if not leaving:
        raise UserError("remove.yml was not told which machine", "-e machine=NAME; several with commas between")
    if limit:
        raise UserError(
            "remove.yml has work on the other machines too, and --limit keeps it from them: nothing has been changed",
            "name the machine by -e machine=NAME, without --limit",
        )
    if dead:
        return
    silent = [str(m["name"]) for m in leaving if m["known"] and m["name"] not in answers]
    if silent:
        raise UserError(
            f"{', '.join(silent)} cannot be reached, so its pods cannot leave it in good order and its files cannot "
            "be removed: nothing has been changed",
            "bring it back, or add -e dead=true: then the cluster forgets it, and its own files stay",
        )


def stages(machines: Machines, changed: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Machine -> stages of site.yml that it has to go through because of `changed`, machines that came or leave.

    `machines`: those of the cluster as it is to be. A machine that is added goes through all of its stages. Others are
    touched where names, certificates or endpoints of theirs change: the names of machines in /etc/hosts everywhere;
    for a master the SANs of the API servers' certificate, and who reaches the API through which address; for a load
    balancer the same, as it may be the first or the last one, and who its partners are; for a member of etcd the
    endpoints of API servers and flanneld, and what the other members ask before they take a snapshot.
    """
    new = {str(m["name"]) for m in changed}
    masters_change = any(m["is_master"] or m["is_lb"] for m in changed)
    etcd_changes = any(m["is_etcd"] for m in changed)
    found = {}
    for name, machine in machines.items():
        own = name in new
        wanted = [*_OWN] if own else ["hosts"]
        # Also for a node: the controller's list of certificates says who uses them.
        if machine["is_master"] and not own:
            wanted.append("pki")
        if machine["is_etcd"] and (own or etcd_changes):
            wanted.append("etcd")
        if machine["is_node"] and (own or etcd_changes):
            wanted.append("flannel")
        if machine["is_node"] and own:
            wanted += ["docker", "verify"]
        if machine["is_master"] and (own or masters_change or etcd_changes):
            wanted.append("master")
        if (machine["is_node"] or machine.get("is_lb")) and (own or masters_change):
            wanted.append("lb")
        if machine["is_node"] and (own or masters_change):
            wanted += ["bootstrap", "proxy"]
        found[name] = wanted
    return found


def lines_to_delete(changed: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """What is left for a person to do when machines have left: their lines in the inventory."""
    found = []
    for machine in changed:
        name = str(machine["name"])
        inside = [group for group in GROUPS if name in groups.get(group, [])]
        if inside:
            found.append(
                f"now delete {name} from the inventory (groups {', '.join(inside)}, host_vars/{name}): "
                "site.yml would add it again"
            )
    return found


def plan(machines: Machines, changed: Sequence[Mapping[str, Any]], verb: str) -> list[str]:
    """What is going to happen, for the screen. `verb`: what happens to the machines, such as `leaves`."""
    found = []
    etcd = sum(bool(m["is_etcd"]) for m in machines.values())
    masters = sum(bool(m["is_master"]) for m in machines.values())
    for machine in changed:
        parts = [
            part
            for key, part in (("is_etcd", "etcd"), ("is_master", "control plane"), ("is_lb", "load balancers"))
            if machine[key] and machine["known"]
        ]
        found.append(f"{machine['name']} {verb} the cluster{' and ' * bool(parts)}{', '.join(parts)}")
    if any(m["is_etcd"] and m["known"] for m in changed):
        found.append(f"etcd: {etcd} members then, {etcd // 2 + 1} of them must work, {etcd - etcd // 2 - 1} may fail")
    if any(m["is_master"] and m["known"] for m in changed):
        found.append(f"control plane: {masters} {'master' if masters == 1 else 'masters'} then")
    return found
