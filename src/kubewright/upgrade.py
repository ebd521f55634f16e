"""From what runs to what is wanted: the plan of an upgrade, the way back, and what is refused.

Pure. What runs is what machines say: their records and their store (src/kubewright/machine/generations.py). Order of an
upgrade: etcd, then for each minor version of Kubernetes the masters, then the nodes; of a rollback the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubewright import versions
from kubewright.errors import UserError

# Facts of machines: name -> component -> {artifacts, previous}, each artifact -> {link, version, sha256, stored}.
Generations = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]]
# Artifact -> {version, sha256}; an empty digest is not known yet.
Artifacts = Mapping[str, Mapping[str, Any]]

_SERVER, _KUBELET, _ETCD, _DOCKER = "kube-apiserver", "kubelet", "etcd", "dockerd"
KUBERNETES = (_SERVER, "kube-controller-manager", "kube-scheduler", _KUBELET, "kube-proxy", "kubectl")
# Its restart loses no packet, and its version changes with every change of its sources.
_UNNOTICED = ("flanneld",)
_MASTER_COMPONENTS = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")
_NODE_COMPONENTS = ("flanneld", "docker", "kubelet", "kube-proxy")
_MAX_ROUNDS = 3


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
    """One round over the cluster. `version`: the Kubernetes release; `drain`: machines whose pods have to leave."""

    version: str
    changes: tuple[Change, ...]
    drain: tuple[str, ...]

    def facts(self, machines: Generations) -> dict[str, Any]:
        """As plain data, for tasks: the machines that change, by what is done to them.

        `snapshot`: etcd is to be saved before, for no member has been changed yet.
        """
        parts: dict[str, set[str]] = {}
        for change in self.changes:
            parts.setdefault(change.machine, set()).add(change.component)
        etcd = [machine for machine, found in parts.items() if "etcd" in found]
        return {
            "version": self.version,
            "drain": list(self.drain),
            "snapshot": bool(etcd) and len(etcd) == len(running(machines, _ETCD)),
            "etcd": etcd,
            "masters": [machine for machine, found in parts.items() if found & set(_MASTER_COMPONENTS)],
            "nodes": [machine for machine, found in parts.items() if found & set(_NODE_COMPONENTS)],
        }


def changes(machines: Generations, wanted: Artifacts) -> list[Change]:
    """What differs between what runs and the artifacts wanted, in the order of machines and components."""
    found = []
    for machine, components in machines.items():
        for component, generations in components.items():
            for artifact, now in generations["artifacts"].items():
                want = wanted.get(artifact)
                if want and (now["version"] != want["version"] or want.get("sha256") not in ("", None, now["sha256"])):
                    found.append(Change(machine, component, artifact, str(now["version"]), str(want["version"])))
    return found


def ways_back(machines: Generations) -> tuple[list[Change], list[str]]:
    """What a rollback changes, and why it cannot be done as sentences."""
    found = []
    reasons: dict[str, list[str]] = {}
    for machine, components in machines.items():
        for component, generations in components.items():
            for artifact, then in generations["previous"].items():
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
    """The one round of a rollback: Kubernetes stays within its minor version, so nothing has to be between."""
    touched = list(dict.fromkeys(c.machine for c in found if c.component in _NODE_COMPONENTS))
    leaving = {"always": touched, "never": []}.get(drain, drains(found, live_restore=True))
    return Round(version, tuple(found), tuple(leaving))


def of_before(
    known: Artifacts, components: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
) -> dict[str, dict[str, Any]]:
    """The artifacts of a machine that goes back: what it ran before where there is such, else what it runs.

    `known`: the fact `artifacts`; `components`: the machine's generations.
    """
    result = {name: dict(artifact) for name, artifact in known.items()}
    for generations in components.values():
        for generation in (generations["artifacts"], generations["previous"]):
            for name, one in generation.items():
                if name in result and result[name]["sha256"] != one["sha256"]:
                    # The machine has its content: nothing is sent.
                    result[name].update(version=one["version"], sha256=one["sha256"], path="")
    return result


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


def running(machines: Generations, artifact: str) -> dict[str, str]:
    """Machine -> version that it runs of an artifact."""
    return {
        machine: str(generations["artifacts"][artifact]["version"])
        for machine, components in machines.items()
        for generations in components.values()
        if artifact in generations["artifacts"]
    }


def plan(
    machines: Generations,
    target: Artifacts,
    version: str,
    via: Sequence[str],
    *,
    live_restore: bool,
    drain: str = "auto",
) -> tuple[list[Round], list[str]]:
    """The rounds of an upgrade and every reason why it must not be done.

    `target`: artifacts of the last round. `version`: Kubernetes release of the last round. `via`: releases between, or
    none for the last ones of their minors. `drain`: auto, always or never.
    """
    servers = running(machines, _SERVER)
    if not servers:
        return [], [
            "none of the machines that were asked runs an API server, so nothing can be compared with it: name a "
            "master in --limit too; on bare machines site.yml installs a cluster"
        ]
    problems = _downgrades(machines, target)
    oldest = min(servers.values(), key=versions.numbers)
    goal = str(target.get(_SERVER, {}).get("version") or version)
    route = [*via, versions.hops(version, version)[0]] if via else versions.hops(oldest, version)
    if not problems:
        problems = [*_route_problems(machines, oldest, route), *_fit_problems(machines, target, goal)]
    if problems:
        return [], problems
    found = []
    for number, release in enumerate(route):
        last = number == len(route) - 1
        # Between, only Kubernetes is another; what its files will be is not known before they are there.
        wanted = target if last else {name: {"version": release} for name in KUBERNETES}
        differing = changes(_as_of(machines, route[number - 1]) if number else machines, wanted)
        touched = list(dict.fromkeys(c.machine for c in differing if c.component in _NODE_COMPONENTS))
        leaving = {"always": touched, "never": []}.get(drain, drains(differing, live_restore=live_restore))
        found.append(Round(release, tuple(differing), tuple(leaving)))
    return found, []


def _as_of(machines: Generations, release: str) -> Generations:
    """The machines after a round to a release."""
    return {
        machine: {
            component: {
                **generations,
                "artifacts": {
                    name: {**one, "version": release, "sha256": ""} if name in KUBERNETES else one
                    for name, one in generations["artifacts"].items()
                },
            }
            for component, generations in components.items()
        }
        for machine, components in machines.items()
    }


def _downgrades(machines: Generations, target: Artifacts) -> list[str]:
    found: dict[str, list[str]] = {}
    for change in changes(machines, target):
        reason = _refused_downgrade(change)
        if reason:
            found.setdefault(reason, []).append(change.machine)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def _route_problems(machines: Generations, oldest: str, route: Sequence[str]) -> list[str]:
    """What a way over these releases would violate, component by component, before every step."""
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
    if len(route) > _MAX_ROUNDS:
        found.append(
            f"{oldest} -> {route[-1]} takes {len(route)} rounds, one run does {_MAX_ROUNDS}; "
            f"first go to {route[_MAX_ROUNDS - 1]}"
        )
    # The API servers are first: beside the next release, everything else is what it is now.
    for artifact in versions.BEHIND:
        reasons: dict[str, list[str]] = {}
        for machine, version in running(machines, artifact).items():
            newest = max([oldest, *running(machines, _SERVER).values()], key=versions.minor)
            beside = versions.skew(artifact, version, max(newest, route[0], key=versions.minor))
            if beside:
                reasons.setdefault(beside, []).append(machine)
        found += [f"{', '.join(names)}: {reason}; bring it up first" for reason, names in reasons.items()]
    return found


def _fit_problems(machines: Generations, target: Artifacts, goal: str) -> list[str]:
    found = []
    members = running(machines, _ETCD)
    etcd = str(target[_ETCD]["version"]) if _ETCD in target else next(iter(members.values()), "")
    for machine, version in members.items():
        reason = versions.etcd_step(version, etcd)
        if reason:
            found.append(f"{machine}: {reason}")
    if etcd and (reason := versions.etcd_fits(etcd, goal)):
        found.append(reason)
    if _DOCKER in target and (reason := versions.docker_fits(str(target[_DOCKER]["version"]), goal)):
        found.append(reason)
    return found


def unasked(machines: Generations, wanted: Artifacts) -> list[Change]:
    """Changes of versions that site.yml must not make in passing: of a service that runs, but for those unnoticed."""
    return [c for c in changes(machines, wanted) if not c.is_rebuild and c.artifact not in _UNNOTICED]


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
