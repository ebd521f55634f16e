"""Taking components away from this machine: what they were given, what their services made, and what they changed.

`plan` looks and lists steps, `remove` carries them out and looks again. A component's entries in the records go last,
so the same call again goes on after an interruption. What is there without a record of ours, and without a trace of
our binaries, belongs to others and stays; so do directories that are not empty.
"""

from __future__ import annotations

import base64
import glob
import os
import re
import shutil
import subprocess
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from . import (
    component,
    ending,
    files,
    generations,
    lock,
    mounts,
    placed,
    places,
    processes,
    restore,
    rules,
    sysprep,
    systemd,
    traces,
)
from .leavings import CATALOGUE, ORDER, OWN_DIRECTORIES, Leavings

_UNITS = "/etc/systemd/system"
_SHIMS = "/run/containerd/s"
_ROUNDS = 3
_KUBELET_CHAINS = ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")
# What looking and removing may meet on a machine that is broken.
_FAILURES = (OSError, subprocess.SubprocessError, LookupError, ValueError)


class Step(NamedTuple):
    """One thing to remove or to put back: what kind of thing, and which."""

    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


class Removal:
    """The removal of components from the machine that this runs on."""

    def __init__(self, names: list[str], options: places.Options) -> None:
        self._options = options
        self._here = present()
        # Data that stays when its component goes, by the plans: (directory, pattern of the names in it).
        self._kept: dict[str, dict[tuple[str, str], None]] = {}
        chosen = self._here if "all" in names else [name for name in self._here if name in names]
        self.names = chosen
        self.left: list[str] = []
        # Why components could not be looked at, of the last plan.
        self.blind: list[str] = []
        self._reload = False

    def plan(self) -> list[Step]:
        """Everything that is to be done now, in order; nothing where nothing of the components is left."""
        self._here = present()
        self.blind = []
        steps: list[Step] = []
        for name in [name for name in self.names if name in self._here]:
            try:
                steps += self._component(name)
            except _FAILURES as error:
                self.blind.append(f"{name}: what there is of it cannot be told: {error}")
        if not self.blind and not set(self._here) - set(self.names) and not self._kept:
            steps += _rest()
        return list(dict.fromkeys(steps))

    def remove(self) -> list[str]:
        """Carry the plan out, and out again until nothing is left to do; returns what could not be done and why."""
        failures: dict[str, None] = {}
        for _ in range(_ROUNDS):
            steps = self.plan()
            failures = dict.fromkeys(self.blind)
            if not steps:
                return self.blind
            for step in steps:
                # Records are what the next call goes by: they stay as long as something else does.
                if step.kind in ("record", "state") and failures:
                    continue
                try:
                    self._do(step)
                except _FAILURES as error:
                    failures[f"{step}: {error}"] = None
            if self._reload:
                systemd.daemon_reload()
                self._reload = False
        return list(failures) or [*(f"{step}: is there again" for step in self.plan()), *self.blind]

    def _remaining(self) -> set[str]:
        return set(self._here) - set(self.names)

    def _component(self, name: str) -> Iterator[Step]:
        if name not in _installed():
            # Whatever else is here by its name is of others by now.
            yield from self._data(name)
            yield from _when(self._options.data, Step("record", name))
            return
        entry, leavings = placed.entry(name), CATALOGUE.get(name, Leavings())
        targets: set[str] = set()
        for step in self._contents(name, entry, leavings):
            targets.add(step.target)
            yield step
        yield from self._empties(leavings, targets)
        if name in _records() or name in placed.read()["components"]:
            yield Step("record", name)

    def _empties(self, leavings: Leavings, going: set[str]) -> Iterator[Step]:
        """Directories that are empty once `going` is gone, from the inside out as the catalogue has them."""
        remaining = self._remaining()
        needed = {path for other in remaining for path in placed.entry(other).get("directories", [])}
        needed |= {path for other in remaining for path in CATALOGUE.get(other, Leavings()).empties}
        for path in leavings.empties:
            if path in needed or not os.path.isdir(path) or mounts.stays(path):
                continue
            if all(f"{path}/{name}" in going for name in os.listdir(path)):
                going = going | {path}
                yield Step("directory", path)

    def _contents(self, name: str, entry: dict[str, Any], leavings: Leavings) -> Iterator[Step]:
        yield from _unit_steps(name)
        if name == "kubelet":
            yield from _when(processes.within(processes.PODS), Step("end", "pods"))
            yield from _tree_steps([places.kubelet_root()])
            yield from (Step("scope", unit) for unit in ending.kubelet_scopes(systemd.scopes()))
        if name == "docker":
            yield from _when(processes.within(processes.CONTAINERS), Step("end", "containers"))
            yield from _when(os.path.isdir(_SHIMS), Step("sockets", _SHIMS))
        yield from self._network(name, entry)
        yield from self._data(name)
        yield from _tree_steps(leavings.trees)
        if name == "sysprep":
            yield from _sysprep_steps(self.left)
        yield from self._file_steps(name, entry, leavings)
        yield from self._store_steps(name, entry)
        yield from _sysctl_steps(name, entry)

    def _network(self, name: str, entry: dict[str, Any]) -> Iterator[Step]:
        if name == "flanneld":
            trace = traces.flannel()
            yield from _when(trace, Step("flannel", ", ".join(trace)))
        ours, loose = self._rule_tests(name, entry)
        for program in rules.programs() if name in ("kube-proxy", "kubelet", "docker", "flanneld") else ():
            found = rules.cut(rules.saved(program), ours, loose)
            self.left += [f"{program}: {kept}" for kept in found.kept]
            if found.script:
                yield Step("rules", f"{name} in {program}: {len(found.chains)} chains, {len(found.rules)} other rules")
        if name == "kube-proxy":
            yield from (Step("virtual server", server) for server in traces.virtual_servers())
            yield from (Step("ipset", one) for one in traces.ipsets() if one.startswith("KUBE-"))
        for device in traces.devices(name, entry.get("before", {}).get("devices", [])):
            yield Step("device", device)
        policy = entry.get("before", {}).get("forward")
        if policy and policy != traces.forward_policy():
            yield Step("forward", f"policy {policy}")

    def _rule_tests(self, name: str, entry: dict[str, Any]) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
        """Which chains are to go, and which rules beside those that lead there."""
        remaining = self._remaining()

        def ours(chain: str) -> bool:
            if name == "docker":
                return chain.startswith("DOCKER") and "docker0" not in entry.get("before", {}).get("devices", [])
            if name == "flanneld":
                return chain.startswith("FLANNEL-")
            if chain.startswith("CNI-"):
                return name == "kubelet"
            if chain in _KUBELET_CHAINS:
                return not remaining & {"kubelet", "kube-proxy"}
            return name == "kube-proxy" and chain.startswith("KUBE-")

        def loose(rule: str) -> bool:
            return name == "docker" and not entry.get("before", {}).get("devices") and traces.is_docker_rule(rule)

        return ours, loose

    def _data(self, name: str) -> Iterator[Step]:
        known = places.data(name, self._options) if name in _installed() else []
        kept = [(root, re.compile(parts)) for root, parts in placed.kept(name)]
        for root, parts in dict.fromkeys([*known, *kept]):
            names = sorted(os.listdir(root)) if os.path.isdir(root) else []
            there = [f"{root}/{part}" for part in names if parts.fullmatch(part)]
            if not self._options.data:
                if there:
                    self.left.append(f"{root}: data of {name}")
                    self._kept.setdefault(name, {})[root, parts.pattern] = None
                continue
            yield from _tree_steps(there)
            if os.path.isdir(root) and len(there) == len(names) and not any(map(mounts.stays, [root, *there])):
                yield Step("directory", root)

    def _file_steps(self, name: str, entry: dict[str, Any], leavings: Leavings) -> Iterator[Step]:
        originals = entry.get("originals", {})
        paths = set(entry.get("files", [])) | {path for pattern in leavings.files for path in glob.glob(pattern)}
        if leavings.unit and _is_ours(f"{_UNITS}/{leavings.unit}"):
            paths.add(f"{_UNITS}/{leavings.unit}")
        # What a run that was killed left of a file that it was about to replace.
        paths |= {
            path
            for directory in {os.path.dirname(p) for p in paths}
            for path in glob.glob(f"{directory}/.kubewright-*")
        }
        for path in sorted(paths):
            if path in originals:
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                continue
            if os.path.lexists(path):
                yield Step("file", path)
        for path in sorted({*entry.get("links", {}), *_old_links(name)}):
            if path not in originals and _is_our_link(path):
                yield Step("link", path)
        yield from (Step("original", path) for path, kept in originals.items() if not _stands(path, kept))

    def _store_steps(self, name: str, entry: dict[str, Any]) -> Iterator[Step]:
        artifacts = {*entry.get("links", {}).values(), *(_artifact(os.readlink(link)) for link in _old_links(name))}
        used = {a for other in self._remaining() for a in placed.entry(other).get("links", {}).values()}
        used |= {_artifact(os.readlink(link)) for other in self._remaining() for link in _old_links(other)}
        for artifact in sorted(artifacts - used):
            if os.path.isdir(f"{component.STORE}/{artifact}"):
                yield Step("tree", f"{component.STORE}/{artifact}")

    def _do(self, step: Step) -> None:
        kind, target = step
        if kind == "stop":
            ending.stop(target)
        elif kind == "end":
            ending.end(target, self._options.grace)
        elif kind == "mount":
            if target in mounts.points(mounts.now()):
                mounts.unmount(target)
        elif kind == "flannel":
            traces.clean_flannel()
        elif kind == "rules":
            name, _, rest = target.partition(" in ")
            rules.remove(rest.partition(":")[0], *self._rule_tests(name, placed.entry(name)))
        elif kind == "tree":
            _remove_tree(target)
        elif kind in ("file", "link", "enabled"):
            self._reload |= target.startswith(_UNITS)
            _unlink(target)
        elif kind == "original":
            _put_back(target)
        elif kind == "directory":
            _remove_empty(target)
        elif kind == "record":
            _forget(target, list(self._kept.get(target, ())))
        else:
            _COMMANDS[kind](target)


def present() -> list[str]:
    """Components of which something is here, in the order in which they go; those of others are not among them."""
    found = _installed() | set(placed.read().get("kept", {}))
    strangers = sorted(found - set(ORDER))
    return [*strangers, *(name for name in ORDER if name in found)]


def _installed() -> set[str]:
    """Components of which more is here than data."""
    found = {*_records(), *placed.read()["components"]}
    found |= {name for name, known in CATALOGUE.items() if known.unit and _is_ours(f"{_UNITS}/{known.unit}")}
    if any(glob.glob(pattern) for pattern in CATALOGUE["pki"].files):
        found.add("pki")
    hosts = sysprep.read("/etc/hosts")
    prepared = [sysprep.RECORD, *restore.OWN_FILES]
    if sysprep.without_block(hosts) != hosts or any(map(os.path.exists, prepared)):
        found.add("sysprep")
    return found


def _when(condition: Any, *steps: Step) -> tuple[Step, ...]:
    return steps if condition else ()


def _records() -> list[str]:
    if not os.path.isdir(component.RECORDS):
        return []
    return sorted(name[:-5] for name in os.listdir(component.RECORDS) if name.endswith(".json"))


def _is_ours(unit_file: str) -> bool:
    """Whether a unit starts a binary of our store: others have units of these names, too."""
    found = re.search(r"^ExecStart=(\S+)", files.read(unit_file), re.MULTILINE)
    return found is not None and (
        _is_our_link(found[1]) or found[1].startswith(tuple(f"{r}/" for r in placed.OWN_ROOTS))
    )


def _is_our_link(path: str) -> bool:
    return os.path.islink(path) and os.readlink(path).startswith(f"{component.STORE}/")


def _artifact(stored: str) -> str:
    return stored[len(component.STORE) + 1 :].partition("/")[0]


def _old_links(name: str) -> list[str]:
    """Links of a component's binaries by the record of its start, which is older than that of what was placed."""
    record = files.read_json(f"{component.RECORDS}/{name}.json") or {}
    return [path for path in record.get("ingredients", {}) if _is_our_link(path)]


def _unit_steps(name: str) -> Iterator[Step]:
    units = list(placed.entry(name).get("units", []))
    known = CATALOGUE.get(name, Leavings()).unit
    if known and (name in _records() or _is_ours(f"{_UNITS}/{known}")) and known not in units:
        units.append(known)
    for unit in units:
        state = systemd.states([unit]).get(unit, {})
        group = processes.of_unit(unit, state.get("Slice", ""))
        if state.get("ActiveState") not in ("inactive", "failed", None) or processes.within(group):
            yield Step("stop", unit)
        elif state.get("ActiveState") == "failed":
            yield Step("reset-failed", unit)
        for link in sorted(glob.glob(f"{_UNITS}/*.wants/{unit}") + glob.glob(f"{_UNITS}/*.requires/{unit}")):
            yield Step("enabled", link)
        for directory in sorted(glob.glob(f"{_UNITS}/*.service.requires")):
            if not set(os.listdir(directory)) - set(units):
                yield Step("directory", directory)
        for place in (_UNITS, "/run/systemd/system"):
            if os.path.islink(f"{place}/{unit}") and os.readlink(f"{place}/{unit}") == "/dev/null":
                yield Step("file", f"{place}/{unit}")


def _tree_steps(roots: Iterable[str]) -> Iterator[Step]:
    for root in roots:
        if not os.path.lexists(root):
            continue
        yield from (Step("mount", point) for point in mounts.below(root, mounts.now()))
        if not mounts.stays(root) or os.listdir(root):
            yield Step("tree", root)


def _remove_tree(root: str) -> None:
    if os.path.isdir(root):
        mounts.remove_tree(root)
    else:
        _unlink(root)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _remove_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _stands(path: str, original: dict[str, Any]) -> bool:
    if "link" in original:
        return os.path.islink(path) and os.readlink(path) == original["link"]
    content = base64.b64decode(original["content"])
    try:
        with open(path, "rb") as stream:
            return not os.path.islink(path) and stream.read() == content
    except OSError:
        return False


def _put_back(path: str) -> None:
    entries = placed.read()["components"].values()
    original = next(entry["originals"][path] for entry in entries if path in entry.get("originals", {}))
    if "link" in original:
        files.link_atomic(original["link"], path)
    else:
        content = base64.b64decode(original["content"])
        files.write_atomic(path, content, original["mode"], original["owner"], original["group"])


def _sysprep_steps(left: list[str]) -> Iterator[Step]:
    found = restore.settings()
    left += found.left
    yield from (Step("setting", what) for what in found.due)
    yield from _when(os.path.exists(sysprep.RECORD), Step("state", sysprep.RECORD))


def _sysctl_steps(name: str, entry: dict[str, Any]) -> Iterator[Step]:
    for key, value in entry.get("before", {}).get("sysctls", {}).items():
        now, own = placed.sysctl(key), placed.SYSCTLS.get(name, {}).get(key, "")
        # Another value than the service's own was set by somebody since.
        if now and now != value and own in ("", now):
            yield Step("sysctl", f"{key}={value}")


def _set_sysctl(target: str) -> None:
    key, _, value = target.partition("=")
    with open(placed.sysctl_path(key), "w", encoding="utf-8") as stream:
        stream.write(value)


def _forget(name: str, kept: list[tuple[str, str]]) -> None:
    """Remove a component's records, all but where its data is that was kept."""
    _unlink(f"{component.RECORDS}/{name}.json")
    # It may hold secrets.
    generations.forget_picture(name)
    record = placed.read()
    known = [record["components"].pop(name, None), record.get("kept", {}).pop(name, None)]
    if kept:
        record.setdefault("kept", {})[name] = kept
    if kept or known != [None, None]:
        placed.write(record)
    _drop_directories()


def _drop_directories() -> None:
    """Remove empty directories that we made and that no component left has declared."""
    record = placed.read()
    needed = {path for entry in record["components"].values() for path in entry["directories"]}
    made = {*record["directories"], *OWN_DIRECTORIES}
    for path in sorted(made - needed, key=len, reverse=True):
        if os.path.isdir(path) and not os.listdir(path) and not mounts.stays(path):
            os.rmdir(path)
    kept = [path for path in record["directories"] if os.path.isdir(path)]
    if kept != record["directories"]:
        placed.write({**record, "directories": kept})


def _rest() -> Iterator[Step]:
    """What no component has for itself, once none is left."""
    yield from _tree_steps((component.STORE, generations.BEFORE))
    for path in (files.DIGESTS, sysprep.RECORD, placed.PLACED):
        if os.path.exists(path):
            yield Step("state", path)
    for path in (component.RECORDS, places.STATE):
        if (
            os.path.isdir(path)
            and not mounts.stays(path)
            and not set(os.listdir(path))
            - {
                "before",
                "components",
                "digests.json",
                "placed.json",
                "sysprep.json",
            }
        ):
            yield Step("state", path)


def _drop_state(path: str) -> None:
    if os.path.isdir(path):
        if not os.listdir(path):
            os.rmdir(path)
        return
    if path == placed.PLACED:
        _drop_directories()
    _unlink(path)


_COMMANDS: dict[str, Callable[[str], None]] = {
    "reset-failed": systemd.reset_failed,
    "scope": ending.stop,
    "device": traces.delete_device,
    "ipset": traces.destroy_ipset,
    "virtual server": traces.delete_virtual_server,
    "forward": traces.set_forward,
    "sysctl": _set_sysctl,
    "setting": restore.undo,
    "state": _drop_state,
    "sockets": ending.drop_sockets,
}


def run(names: list[str], options: places.Options, *, check: bool) -> dict[str, Any]:
    """Remove, or only look. Returns {components, steps: [text], left: [text], failures: [text], member}."""
    removal = Removal(names, options)
    steps = [str(step) for step in removal.plan()]
    failures: list[str] = []
    if check:
        removal.left += removal.blind
    elif steps or removal.blind:
        failures = removal.remove()
    if not check and not failures and "all" in names and os.path.isdir(os.path.dirname(lock.LOCK)):
        # That of this run, or of one that has ended: nothing that anybody has to be told of.
        shutil.rmtree(os.path.dirname(lock.LOCK))
    members = places.members(options)
    if "all" in names and "etcd" not in removal.names:
        removal.left += [f"{place}: data of an etcd member, and no record says that it is ours" for place in members]
    return {
        "components": removal.names,
        "steps": steps,
        "left": list(dict.fromkeys(removal.left)),
        "failures": failures,
        "member": bool(members),
    }
