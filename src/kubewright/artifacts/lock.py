"""The lock file: every artifact with its version and, per source, where it is and what its SHA-256 must be."""

from __future__ import annotations

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
    """The whole file."""

    path: Path
    architecture: str
    entries: Mapping[str, Entry]
    kubernetes: Mapping[str, Any]

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
    kubernetes = data["kubernetes"]
    for name in KUBERNETES:
        entries[name] = Entry(name, kubernetes["version"], "binary", {"debian": {}, "upstream": {}})
    return Lock(path, data["architecture"], entries, kubernetes)


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
