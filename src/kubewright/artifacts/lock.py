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
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "git checkout artifacts.lock.yml") from error
    try:
        entries = {
            name: Entry(
                name=name,
                version=str(entry["version"]),
                kind=str(entry.get("kind", "binary")),
                sources={key: entry[key] for key in ("debian", "upstream") if key in entry},
                reference=str(entry.get("reference", "")),
            )
            for name, entry in data["artifacts"].items()
        }
        kubernetes = data["kubernetes"]
        for name in KUBERNETES:
            entries[name] = Entry(name, str(kubernetes["version"]), "binary", {"debian": {}, "upstream": {}})
        return Lock(path, str(data["architecture"]), entries, kubernetes)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged: {error!r}", "git checkout artifacts.lock.yml") from error
