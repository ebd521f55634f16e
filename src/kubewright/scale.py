"""Machines that are added to a cluster or leave it: what is refused, and which stages whom it concerns. Pure."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kubewright import stages as stages_of_site
from kubewright.errors import UserError

GROUPS = ("etcd", "kube_master", "kube_node", "lb")
# Whole stages of a machine that is added; `hosts` is the part of sysprep that concerns the names of the others.
_OWN = ("sysprep", "pki")
# Stages that only machines go through that are added.
_NEWCOMERS = ("docker", "verify")
# Of machines that are gone from the inventory, too. Everything else that Ansible takes for hosts is a pattern.
_NAME = re.compile(r"[A-Za-z0-9][-.\w]*", re.ASCII)
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


def name_problems(groups: Mapping[str, Sequence[str]], leaving: Sequence[str]) -> list[str]:
    """Which of these are no names of single machines: Ansible would take them for many, or for the controller."""
    found = []
    for name in leaving:
        if name in groups:
            found.append(f"machine: {name} is a group of the inventory; name the machines one by one")
        elif name in groups.get("all", []):
            continue
        elif name == "localhost" or _is_loopback(name):
            found.append(f"machine: {name} is this controller, and not in the inventory")
        elif not _NAME.fullmatch(name):
            found.append(f"machine: {name!r} is no name of a machine; several go with commas between")
    return found


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.IPv4Address(name).is_loopback


def check_typed(
    named: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    stages_of_run: Collection[str],
    *,
    check: bool,
) -> None:
    """UserError for what can be known to be wrong with the command line of a removal before anybody is asked.

    `addresses`: machines of the cluster -> their address. `stages_of_run`: those that --tags and --skip-tags leave.
    """
    if not named:
        raise UserError("remove.yml was not told which machine", "-e machine=NAME; several with commas between")
    found = name_problems(groups, named)
    for name in named:
        of = [machine for machine, address in addresses.items() if name == address and name != machine]
        found += [f"machine: {name} is the address of {machine}; say {machine}" for machine in of]
    if found:
        raise UserError("; ".join(found), "nothing has been changed")
    missing = [stage for stage in stages_of_site.STAGES if stage not in (*_NEWCOMERS, *stages_of_run)]
    if missing and not check:
        raise UserError(
            "remove.yml with --tags or --skip-tags would stop the machine while others still need it: "
            f"{', '.join(missing)} would be left out; nothing has been changed",
            "leave the tags away; with --check they are fine",
        )


def leaving_problems(groups: Mapping[str, Sequence[str]], leaving: Sequence[str]) -> list[str]:
    """Why these machines must not leave the cluster of the inventory; the health of etcd is another question."""
    if not leaving:
        return []
    found = name_problems(groups, leaving)
    if found:
        return found
    after = without(groups, leaving)
    found += [
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

    `hosts`: inventory name -> host variables, of machines in the groups. One that is in none of them any more may be
    anything, so it is looked for everywhere; it has no address, unless it is called by it.
    """
    found = []
    for name in named:
        variables = hosts.get(name)
        address = address_of(name, variables) if variables is not None or _is_address(name) else ""
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


def address_of(name: str, variables: Mapping[str, Any] | None) -> str:
    """The address of a machine of the inventory."""
    known = variables or {}
    return str(known.get("machine_address") or known.get("ansible_host") or name)


def check_added(named: Sequence[str], machines: Machines, answers: Collection[str]) -> None:
    """UserError unless machines were named that are in the groups of the inventory, and answer.

    `answers`: machines that can be reached.
    """
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
    silent = [name for name in named if name not in answers]
    if silent:
        raise UserError(
            f"{', '.join(silent)} cannot be reached, or is left out by --limit, so it cannot join: nothing has been "
            "changed",
            "bring it up, or name only others",
        )


def check_leaving(leaving: Sequence[Mapping[str, Any]], answers: Collection[str], *, dead: bool, limit: object) -> None:
    """UserError unless those that are to be removed alive answer.

    `answers`: machines that can be reached.
    """
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


def check_known(unknown: Sequence[str], found: Collection[str], machines: Collection[str]) -> None:
    """UserError for machines that are not in the inventory, and of which the cluster knows nothing either.

    `found`: of them, those that etcd has as a member or the API as a node. `machines`: those of the cluster.
    """
    strangers = [name for name in unknown if name not in found]
    if strangers:
        near = [close for name in strangers for close in difflib.get_close_matches(name, list(machines), 1)]
        raise UserError(
            f"machine: neither the inventory nor the cluster knows {', '.join(strangers)}: nothing has been changed",
            f"did you mean {', '.join(near)}?" if near else f"the inventory has {', '.join(machines)}",
        )


def check_complete(present: Sequence[str], now: Collection[str], work: str) -> None:
    """UserError when a machine that was there when the work began has failed.

    The others may still need who leaves, and who is added may lack a part. `work`: such as `the removal of node02`.
    """
    lost = [name for name in present if name not in now]
    if lost:
        raise UserError(
            f"{', '.join(lost)} failed on the way (above), so {work} stops here",
            "mend that; the same command again goes on",
        )


def check_emptied(done: Mapping[str, Mapping[str, Any] | None]) -> None:
    """UserError for machines that still have what would take part in the cluster.

    `done`: machine -> result of its reset, None where there is none.
    """
    left = [name for name, result in done.items() if not result or result.get("failed") or result.get("unreachable")]
    if left:
        raise UserError(
            f"{', '.join(left)} could not be emptied (above), so the cluster still knows it: keep it in the inventory",
            "mend that; the same command again goes on, or with -e dead=true when it will never answer again",
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
