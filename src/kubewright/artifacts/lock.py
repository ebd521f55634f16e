"""The lock file: every artifact with its version and, per source, where it is and what its SHA-256 must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubewright.errors import UserError

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")


@dataclass(frozen=True)
class Entry:
    """One artifact. `kind` is binary or image; `sources` maps a source to what it needs."""

    name: str
    version: str
    kind: str
    sources: Mapping[str, Mapping[str, Any]]
    reference: str = ""


@dataclass(frozen=True)
class Lock:
    """The whole file. `suites`: further suites of the host's Debian archive that its packages come from."""

    path: Path
    architecture: str
    entries: Mapping[str, Entry]
    kubernetes: Mapping[str, Any]

    suites: tuple[str, ...] = ()

    @property
    def kubernetes_version(self) -> str:
        """1.20.2, or 1.20.2+name for a build that the file gives a name of its own."""
        build = self.kubernetes.get("build")
        return f"{self.kubernetes['version']}+{build}" if build else str(self.kubernetes["version"])

    def entry(self, name: str) -> Entry:
        """The entry of this name; UserError when there is none."""
        if name not in self.entries:
            raise UserError(f"{self.path}: no artifact {name!r}", f"there are {', '.join(sorted(self.entries))}")
        return self.entries[name]


def load(path: Path) -> Lock:
    """Read and check the lock file; UserError names what is wrong with it."""
    try:
        text = path.read_text()
    except OSError as error:
        raise _unreadable(path, error) from error
    return parse(text, path)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read: {error}", "git checkout artifacts.lock.yml")


def parse(text: str, path: Path) -> Lock:
    """Check the text of a lock file; `path` is what messages call it."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from error
    data = _whole(data, path)
    wrong = _wrong(data)
    if wrong:
        raise UserError(f"{path}: {wrong}", "correct it, or git checkout artifacts.lock.yml")
    entries = {
        name: Entry(
            name=name,
            version=entry["version"],
            kind=entry.get("kind", "binary"),
            sources={key: entry[key] for key in ("debian", "upstream") if key in entry},
            reference=entry.get("reference", ""),
        )
        for name, entry in data["artifacts"].items()
    }
    lock = Lock(path, data["architecture"], entries, data["kubernetes"], tuple(data.get("suites") or ()))
    for name in KUBERNETES:
        entries[name] = Entry(name, lock.kubernetes_version, "binary", {"debian": {}, "upstream": {}})
    return lock


def _whole(data: Any, path: Path) -> Any:
    """With what it `extends`, another lock file: entries of artifacts and keys of kubernetes replace those there."""
    if not isinstance(data, dict) or not isinstance(data.get("extends"), str):
        return data
    base_path = path.parent / data["extends"]
    try:
        base = _whole(yaml.safe_load(base_path.read_text()), base_path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: extends {base_path}, which cannot be read: {error}", "correct extends") from error
    if not isinstance(base, dict):
        return base
    both = {key: {**(base.get(key) or {}), **(data.get(key) or {})} for key in ("kubernetes", "artifacts")}
    return {**base, **data, **both}


_PACKAGE: dict[str, Any] = {"package": str, "version": str, "sha256": str}
_SHAPE = {
    "architecture": str,
    "kubernetes": {
        "version": str,
        "commit": str,
        "upstream": str,
        "debian": {"package": str, "version": str, "files": dict, "toolchain": list},
    },
    "artifacts": dict,
}
_KINDS = {str: "text (write a number in quotes)", dict: "mapping", list: "list"}
_BINARY: dict[str, Any] = {"version": str}
_IMAGE: dict[str, Any] = {"version": str, "reference": str, "debian": dict}
_SOURCES: dict[str, Any] = {"debian": {**_PACKAGE, "member": str}, "upstream": {"url": str}}


def _wrong(data: Any) -> str:
    """What a lock file lacks, or has of another type than it must be; empty when all is well."""
    wrong = _misfit(data, _SHAPE, "")
    if wrong:
        return wrong
    suites = data.get("suites", [])
    if not (
        isinstance(suites, list) and all(isinstance(s, str) and re.fullmatch(r"[a-z][a-z0-9-]*", s) for s in suites)
    ):
        return f"suites is {suites!r}, which is no list of Debian's suites, such as [trixie]"
    build = data["kubernetes"].get("build", "none")
    if not (isinstance(build, str) and re.fullmatch(r"[0-9A-Za-z.-]{1,30}", build)):
        return f"kubernetes.build is {build!r}, which is no name of letters, digits, '.' and '-'"
    parts: list[tuple[Any, Mapping[str, Any], str]] = [
        (tool, _PACKAGE, "kubernetes.debian.toolchain") for tool in data["kubernetes"]["debian"]["toolchain"]
    ]
    for name, entry in data["artifacts"].items():
        image = isinstance(entry, dict) and entry.get("kind") == "image"
        shape = _IMAGE if image else _BINARY
        parts.append((entry, shape, f"artifacts.{name}"))
        if isinstance(entry, dict):
            parts += [(entry[key], _SOURCES[key], f"artifacts.{name}.{key}") for key in _SOURCES if key in entry]
    return next(filter(None, (_misfit(*part) for part in parts)), "")


def _misfit(data: Any, shape: Mapping[str, Any], where: str) -> str:
    if not isinstance(data, dict):
        return f"{where or 'the file'}: {data!r} is no mapping"
    for key, wanted in shape.items():
        place = f"{where}.{key}" if where else key
        if key not in data:
            return f"{place} is missing"
        if isinstance(wanted, dict):
            wrong = _misfit(data[key], wanted, place)
            if wrong:
                return wrong
        elif not isinstance(data[key], wanted):
            return f"{place} is {data[key]!r}, which is no {_KINDS[wanted]}"
    return ""
