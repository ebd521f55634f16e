"""From what runs to what is wanted: the plan of an upgrade, the way back, and what is refused.

Pure. What runs is what machines say: their records and their store (src/kubewright/machine/generations.py). Order of an
upgrade: etcd, then for each minor version of Kubernetes the masters, then the nodes; of a rollback the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubewright import versions
from kubewright.errors import UserError

# Facts of machines: name -> component -> {artifacts, previous, changed, tried}; of the first two artifact -> {link,
# version, sha256, stored}, of the others {by, at}: the set of artifacts that `previous` gave way to, and when; and that
# with which the component was last begun to change, while it is not healthy with it.
Generations = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
# Whether a run is about a component of a machine: (machine, component).
Concerned = Callable[[str, str], bool]
# Artifact -> {version, sha256}; an empty digest is not known yet.
Artifacts = Mapping[str, Mapping[str, Any]]

_SERVER, _KUBELET, _ETCD, _DOCKER = "kube-apiserver", "kubelet", "etcd", "dockerd"
KUBERNETES = (_SERVER, "kube-controller-manager", "kube-scheduler", _KUBELET, "kube-proxy", "kubectl")
# Its restart loses no packet, and its version changes with every change of its sources.
_UNNOTICED = ("flanneld",)
_MASTER_COMPONENTS = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")
_NODE_COMPONENTS = ("flanneld", "docker", "kubelet", "kube-proxy")
_MAX_ROUNDS = 3
# Component -> the artifact that stands for it, and the part of a machine that has it.
_INSTALLED = {
    _ETCD: (_ETCD, "is_etcd"),
    **{name: (name, "is_master") for name in _MASTER_COMPONENTS},
    "docker": (_DOCKER, "is_node"),
    _KUBELET: (_KUBELET, "is_node"),
    "kube-proxy": ("kube-proxy", "is_node"),
}


def _every(_machine: str, _component: str) -> bool:
    return True


@dataclass(frozen=True)
class Change:
    """An artifact of a component of a machine that is to be another one."""

    machine: str
    component: str
    artifact: str
    old: str
    new: str

    @property
    def is_rebuild(self) -> bool:
        """The same version with another content."""
        return self.old == self.new


@dataclass(frozen=True)
class Round:
    """One round over the cluster. `version`: the Kubernetes release; `drain`: machines whose pods have to leave.

    `snapshot`: etcd is to be saved before, for no member has been changed yet.
    """

    version: str
    changes: tuple[Change, ...]
    drain: tuple[str, ...]
    snapshot: bool = False

    def facts(self) -> dict[str, Any]:
        """As plain data, for tasks: the machines that change, by what is done to them."""
        parts: dict[str, set[str]] = {}
        for change in self.changes:
            parts.setdefault(change.machine, set()).add(change.component)
        return {
            "version": self.version,
            "drain": list(self.drain),
            "snapshot": self.snapshot,
            "etcd": [machine for machine, found in parts.items() if "etcd" in found],
            "masters": [machine for machine, found in parts.items() if found & set(_MASTER_COMPONENTS)],
            "nodes": [machine for machine, found in parts.items() if found & set(_NODE_COMPONENTS)],
        }


def changes(machines: Generations, wanted: Artifacts, concerned: Concerned = _every) -> list[Change]:
    """What differs between what runs and the artifacts wanted, in the order of machines and components."""
    found = []
    for machine, components in machines.items():
        for component, generations in components.items():
            if not concerned(machine, component):
                continue
            for artifact, now in generations["artifacts"].items():
                want = wanted.get(artifact)
                if want and (now["version"] != want["version"] or want.get("sha256") not in ("", None, now["sha256"])):
                    found.append(Change(machine, component, artifact, str(now["version"]), str(want["version"])))
    return found


def last_set(machines: Generations) -> str:
    """Name of the set of artifacts that binaries were changed to last, also of those that have gone back since."""
    return _newest(machines, "changed")[0]


def last_change(machines: Generations) -> float:
    """When that was, in seconds of the epoch; 0 for never."""
    return _newest(machines, "changed")[1]


def in_vain(machines: Generations) -> float:
    """When an upgrade was begun after the last one that changed anything, of which nothing is left; 0 for none."""
    (last, changed), (tried, begun) = _newest(machines, "changed"), _newest(machines, "tried")
    return begun if begun > changed and tried != last else 0.0


def _newest(machines: Generations, key: str) -> tuple[str, float]:
    """The set of artifacts that a fact {by, at} was last about, and when; an empty name for none."""
    found = [one for components in machines.values() for part in components.values() if (one := part.get(key))]
    return max(((str(one["by"]), float(one["at"])) for one in found), key=lambda one: one[1], default=("", 0.0))


def _before(generations: Mapping[str, Mapping[str, Any]], last: str) -> Mapping[str, Any]:
    """What a component goes back to: nothing when the last upgrade has not reached it."""
    changed = generations.get("changed")
    return generations["previous"] if not changed or changed["by"] == last else {}


def ways_back(machines: Generations, concerned: Concerned = _every) -> tuple[list[Change], list[str]]:
    """What a rollback of the last upgrade changes, and why it cannot be done as sentences."""
    found = []
    reasons: dict[str, list[str]] = {}
    last = last_set(machines)
    for machine, components in machines.items():
        for component, generations in components.items():
            if not concerned(machine, component):
                continue
            for artifact, then in _before(generations, last).items():
                now = generations["artifacts"].get(artifact)
                if not now or now["sha256"] == then["sha256"]:
                    continue
                change = Change(machine, component, artifact, str(now["version"]), str(then["version"]))
                found.append(change)
                reason = _refused_downgrade(change)
                if reason and artifact == _ETCD:
                    reason += "; --skip-tags etcd leaves it as it is"
                elif not reason and not then["stored"]:
                    reason = (
                        f"{artifact} {then['version']} is no longer in /opt/kubewright/store there; go there with "
                        "upgrade.yml and -e artifacts_lock=... of that time"
                    )
                if reason:
                    reasons.setdefault(reason, []).append(machine)
    return found, [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _refused_downgrade(change: Change) -> str:
    if change.artifact == _ETCD:
        return versions.etcd_step(change.old, change.new)
    if change.artifact in KUBERNETES and versions.minor(change.new) < versions.minor(change.old):
        release = ".".join(map(str, versions.minor(change.old)))
        return (
            f"{change.artifact} {change.old} cannot go back to {change.new}: Kubernetes does not go back across minor "
            f"versions; allowed are releases of {release}"
        )
    return ""


def way_back(found: Sequence[Change], version: str, drain: str) -> Round:
    """The one round of a rollback: Kubernetes stays within its minor version, so nothing has to be between.

    No snapshot: it would take the place of the one of before the upgrade.
    """
    touched = list(dict.fromkeys(c.machine for c in found if c.component in _NODE_COMPONENTS))
    leaving = {"always": touched, "never": []}.get(drain, drains(found, live_restore=True))
    return Round(version, tuple(found), tuple(leaving))


def of_machine(
    known: Artifacts, components: Mapping[str, Mapping[str, Mapping[str, Any]]], back_from: str | None = None
) -> dict[str, dict[str, Any]]:
    """The artifacts of a machine that keeps what it runs, or that goes back to before the set of artifacts `back_from`.

    `known`: the fact `artifacts`, for what it does not run yet; `components`: the machine's generations.
    """
    result = {name: dict(artifact) for name, artifact in known.items()}
    lost = []
    for generations in components.values():
        before = _before(generations, back_from) if back_from is not None else {}
        for name, one in {**generations["artifacts"], **before}.items():
            if name not in result or result[name]["sha256"] == one["sha256"]:
                continue
            if one["stored"] or name in before:
                # The machine has its content: nothing is sent.
                result[name].update(version=one["version"], sha256=one["sha256"], path="")
            elif name not in _UNNOTICED:
                lost.append(f"{name} {one['version']}")
    if lost:
        raise UserError(
            f"{', '.join(lost)}: what this machine runs is no longer in its /opt/kubewright/store, and the inventory "
            "asks for another one: nothing has been changed",
            "set artifacts_lock and kube_version to what it ran, then it can be sent again",
        )
    return result


def release_of(components: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The release of Kubernetes that a machine runs, of its API server where it has one; empty for none."""
    only = {"": components}
    return versions.release({**running(only, _KUBELET), **running(only, _SERVER)}.get("", ""))


def drains(found: Collection[Change], *, live_restore: bool) -> list[str]:
    """Machines whose pods must leave before: for a new minor version of the kubelet, and for another Docker.

    Containers outlive a restart of dockerd with live-restore, which Docker promises between patch releases only
    ("Live restore during upgrade" in its documentation).
    """
    names = []
    for change in found:
        minor_differs = versions.minor(change.old) != versions.minor(change.new)
        docker = change.component == "docker" and change.artifact in (_DOCKER, "containerd")
        if (change.artifact == _KUBELET and minor_differs) or (docker and (minor_differs or not live_restore)):
            names.append(change.machine)
    return list(dict.fromkeys(names))


def running(machines: Generations, artifact: str, concerned: Concerned = _every) -> dict[str, str]:
    """Machine -> version that it runs of an artifact, of those that are concerned."""
    return {
        machine: str(generations["artifacts"][artifact]["version"])
        for machine, components in machines.items()
        for component, generations in components.items()
        if artifact in generations["artifacts"] and concerned(machine, component)
    }


def plan(
    machines: Generations,
    target: Artifacts,
    version: str,
    via: Sequence[str],
    *,
    live_restore: bool,
    drain: str = "auto",
    concerned: Concerned = _every,
    silent: Sequence[str] = (),
) -> tuple[list[Round], list[str]]:
    """The rounds of an upgrade and every reason why it must not be done.

    `target`: artifacts of the last round. `version`: Kubernetes release of the last round. `via`: releases between, or
    none for the last ones of their minors. `drain`: auto, always or never. `concerned`: what the run may change; the
    rules look at all machines, also at what stays as it is. `silent`: masters and nodes of which nothing is known.
    """
    servers = running(machines, _SERVER)
    if not servers:
        return [], [
            "none of the machines that were asked runs an API server, so nothing can be compared with it: name a "
            "master in --limit too; on bare machines site.yml installs a cluster"
        ]
    goal = str(versions.Version.parse(versions.release(version)))
    moving = running(machines, _SERVER, concerned)
    oldest = min(moving.values(), key=versions.numbers) if moving else goal
    asked = [str(versions.Version.parse(hop, "upgrade_via")) for hop in via] or versions.hops(oldest, goal)[:-1]
    # A run that goes on leaves out what all masters have behind them.
    between = [hop for hop in asked if versions.numbers(hop) > versions.numbers(oldest)]
    route = [*between, goal] if moving else [goal]
    steps = [(release, concerned) for release in route]
    # Where a round of an earlier run has failed, it ends before the next one begins.
    late = _behind(machines, oldest, concerned) if len(route) > 1 else []
    begin = machines
    if late:
        release, only_late = versions.release(oldest), _only_nodes(late, concerned)
        steps.insert(0, (release, only_late))
        begin = _as_of(machines, _kubernetes(release), only_late)
    problems = _downgrades(machines, target, concerned)
    if not problems:
        problems = _route_problems(oldest, route) + _skew_problems(begin, route, concerned)
        problems += _length_problems(oldest, [release for release, _ in steps])
        problems += _fit_problems(machines, target, goal, concerned)
        problems += _silence_problems(changes(machines, target, concerned), silent)
        problems += [reason for hop in route[:-1] for reason in _downgrades(machines, _kubernetes(hop), concerned)]
    if problems:
        return [], problems
    found = []
    state = machines
    for number, (release, changing) in enumerate(steps):
        last = number == len(steps) - 1
        # All else changes in the first round.
        wanted = target if last else {**target, **_kubernetes(release)}
        differing = changes(state, wanted, changing)
        snapshot = _is_first_of_etcd(differing, state, wanted)
        state = _as_of(state, wanted, changing)
        touched = list(dict.fromkeys(c.machine for c in differing if c.component in _NODE_COMPONENTS))
        leaving = {"always": touched, "never": []}.get(drain, drains(differing, live_restore=live_restore))
        found.append(Round(release, tuple(differing), tuple(leaving), snapshot))
    return found, []


def _behind(machines: Generations, server: str, concerned: Concerned) -> list[str]:
    """Machines whose kubelet or kube-proxy is of an older minor version than the API servers."""
    found = [
        machine
        for artifact in (_KUBELET, "kube-proxy")
        for machine, version in running(machines, artifact, concerned).items()
        if versions.minor(version) < versions.minor(server)
    ]
    return list(dict.fromkeys(found))


def _only_nodes(names: Collection[str], concerned: Concerned) -> Concerned:
    return lambda machine, component: (
        machine in names and component in _NODE_COMPONENTS and concerned(machine, component)
    )


def _is_first_of_etcd(differing: Sequence[Change], machines: Generations, wanted: Artifacts) -> bool:
    """Whether members change of which none has, also outside of the run, what is wanted."""
    late = {change.machine for change in changes(machines, wanted) if change.component == "etcd"}
    return any(change.component == "etcd" for change in differing) and late >= set(running(machines, _ETCD))


def _silence_problems(found: Sequence[Change], silent: Sequence[str]) -> list[str]:
    """What is not known of machines that did not answer, where it matters."""
    crossing = any(c.artifact in KUBERNETES and versions.minor(c.old) != versions.minor(c.new) for c in found)
    if not crossing or not silent:
        return []
    return [
        f"{', '.join(silent)}: no answer, so nobody knows what would run there beside another minor version of "
        "Kubernetes; bring it back first, or take it out of the cluster (remove.yml with -e dead=true)"
    ]


def _kubernetes(release: str) -> Artifacts:
    """A release of which nobody knows yet what its files will be."""
    return {name: {"version": release} for name in KUBERNETES}


def _as_of(machines: Generations, wanted: Artifacts, concerned: Concerned) -> Generations:
    """The machines after a round."""
    return {
        machine: {
            component: {
                **generations,
                "artifacts": {
                    name: {**one, "sha256": "", **wanted[name]} if name in wanted else one
                    for name, one in generations["artifacts"].items()
                },
            }
            if concerned(machine, component)
            else generations
            for component, generations in components.items()
        }
        for machine, components in machines.items()
    }


def _downgrades(machines: Generations, target: Artifacts, concerned: Concerned) -> list[str]:
    found: dict[str, list[str]] = {}
    for change in changes(machines, target, concerned):
        reason = _refused_downgrade(change)
        if reason:
            found.setdefault(reason, []).append(change.machine)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def _route_problems(oldest: str, route: Sequence[str]) -> list[str]:
    """What is wrong with the releases that API servers go through."""
    found = []
    before = oldest
    for release in route:
        step = versions.minor(release)[1] - versions.minor(before)[1]
        if step > 1 or step < 0:
            found.append(
                f"API servers go one minor version at a time: {before} -> {release} is not such a step; "
                f"upgrade_via: [{', '.join(repr(hop) for hop in versions.hops(oldest, route[-1])[:-1])}]"
            )
        before = release
    return found


def _length_problems(oldest: str, releases: Sequence[str]) -> list[str]:
    if len(releases) <= _MAX_ROUNDS:
        return []
    return [
        f"{oldest} -> {releases[-1]} takes {len(releases)} rounds, one run does {_MAX_ROUNDS}; "
        f"first go to {releases[_MAX_ROUNDS - 1]}"
    ]


def _skew_problems(machines: Generations, route: Sequence[str], concerned: Concerned) -> list[str]:
    """What would run beside API servers that it must not run beside, in the first round in which there is such."""
    state = machines
    for release in route:
        found: dict[str, list[str]] = {}
        # The API servers are first: beside the next release, everything else is what it was before.
        coming = [release] if running(state, _SERVER, concerned) else []
        newest = max([*running(state, _SERVER).values(), *coming], key=versions.minor)
        for artifact in versions.BEHIND:
            for machine, version in running(state, artifact).items():
                if reason := versions.skew(artifact, version, newest):
                    found.setdefault(f"{reason}; bring it up first", []).append(machine)
        state = _as_of(state, _kubernetes(release), concerned)
        # A node may ask any of them, also one that this run leaves as it is.
        oldest = min(running(state, _SERVER).values(), key=versions.minor)
        for artifact in (_KUBELET, "kube-proxy"):
            for machine, version in running(state, artifact, concerned).items():
                if versions.minor(version) > versions.minor(oldest):
                    reason = f"{versions.skew(artifact, version, oldest)}; the API servers of all masters come first"
                    found.setdefault(reason, []).append(machine)
        if found:
            return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]
    return []


def _fit_problems(machines: Generations, target: Artifacts, goal: str, concerned: Concerned) -> list[str]:
    etcd = str(target[_ETCD]["version"]) if _ETCD in target else ""
    members, coming = running(machines, _ETCD), running(machines, _ETCD, concerned) if etcd else {}
    steps = {machine: versions.etcd_step(version, etcd) for machine, version in coming.items()}
    found = [f"{machine}: {reason}" for machine, reason in steps.items() if reason]
    # As it all is in the end.
    server = str(target.get(_SERVER, {}).get("version") or goal)
    servers = {**running(machines, _SERVER), **dict.fromkeys(running(machines, _SERVER, concerned), server)}
    members |= dict.fromkeys(coming, etcd)
    pairs = {(one, other): None for one in members.values() for other in servers.values()}
    found += dict.fromkeys(reason for one, other in pairs if (reason := versions.etcd_fits(one, other)))
    if _DOCKER in target and running(machines, _DOCKER, concerned):
        found += filter(None, [versions.docker_fits(str(target[_DOCKER]["version"]), server)])
    return found


def unasked(machines: Generations, wanted: Artifacts, concerned: Concerned = _every) -> list[Change]:
    """Changes of versions that site.yml must not make in passing: of a service that runs, but for those unnoticed."""
    found = changes(machines, wanted, concerned)
    return [c for c in found if not c.is_rebuild and c.artifact not in _UNNOTICED]


def strange(
    machines: Generations, wanted: Artifacts, parts: Mapping[str, Mapping[str, Any]], concerned: Concerned = _every
) -> list[Change]:
    """Components that machines have not had yet, and would get in a version that none of the others runs.

    `parts`: machine -> {is_etcd, is_master, is_node}. Only machines that answered count, on either side.
    """
    found = []
    for machine, components in machines.items():
        for component, (artifact, part) in _INSTALLED.items():
            if component in components or not parts.get(machine, {}).get(part) or not concerned(machine, component):
                continue
            others = running(machines, artifact) or (running(machines, _SERVER) if artifact in KUBERNETES else {})
            version = str(wanted[artifact]["version"])
            if others and version not in others.values():
                have = ", ".join(sorted(set(others.values())))
                found.append(Change(machine, component, artifact, have, version))
    return found


def table(found: Sequence[Change]) -> list[str]:
    """The changes as lines: artifact, from -> to, machines."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for change in found:
        new = f"{change.new} (rebuilt)" if change.is_rebuild else change.new
        rows.setdefault((change.component, change.artifact, change.old, new), []).append(change.machine)
    cells = [(part if part == name else f"{part}/{name}", f"{old} -> {new}", ", ".join(names))
             for (part, name, old, new), names in rows.items()]  # fmt: skip
    widths = [max((len(row[column]) for row in cells), default=0) for column in (0, 1)]
    return [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in cells]


def at_once(wanted: str, nodes: int) -> int:
    """How many of so many nodes change at the same time; a percentage is rounded down, but to one at least."""
    match = re.fullmatch(r"([1-9]\d*)(%?)", wanted.strip())
    if not match or (match[2] and int(match[1]) > 100):
        raise UserError(
            f"upgrade_nodes_at_once: {wanted!r} is neither a number of nodes nor a percentage",
            "write for example '2' or '20%'",
        )
    return max(1, nodes * int(match[1]) // 100) if match[2] else int(match[1])


def refusal(problems: Sequence[str], what: str) -> str:
    """All problems as one message."""
    lines = [f"{what} is refused, nothing has been changed:"]
    return "\n".join([*lines, *(f"  - {problem}" for problem in problems)])
