"""Brings the Debian parts of the lock file up to what the archive offers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import yaml

from kubewright.artifacts.lock import load, parse
from kubewright.errors import UserError
from kubewright.files import write_file

_HEADER = """---
# Every artifact: version, where each source has it, and the sha256 that it must have.
# `python -m kubewright.artifacts lock` brings the Debian parts up to what the archive offers.
"""


class Archive(Protocol):
    """What is asked of an archive; see `debian.Apt`."""

    def candidate(self, package: str) -> tuple[str, str]:
        """(version, SHA-256) of a binary package."""

    def source_candidate(self, package: str) -> tuple[str, dict[str, str]]:
        """(version, {file: SHA-256}) of a source package."""


class _Indented(yaml.SafeDumper):
    """Indents lists, as yamllint and people expect."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Never without indentation."""
        del indentless
        super().increase_indent(flow, indentless=False)


def upstream_version(version: str) -> str:
    """The version of the software itself in a Debian version (deb-version(7)): 1.6.20 of 1.6.20~ds1-1+deb12u3."""
    upstream = version.partition(":")[2] or version
    upstream = upstream.rpartition("-")[0] or upstream
    # Debian's way to go back: 1.20.5+really1.20.2 is 1.20.2.
    upstream = upstream.rpartition("+really")[2]
    found = re.match(r"\d+(\.\d+)*", upstream)
    return found[0] if found else upstream


def refresh(data: dict[str, Any], archive: Archive) -> list[str]:
    """Change versions and digests of a lock file's Debian parts in place; returns `name: old -> new` of each change.

    UserError when Debian has moved to another version of the software: whether kubewright works with it is for
    a person to say.
    """
    changes: dict[str, None] = {}
    entries = [(name, entry) for name, entry in (data.get("artifacts") or {}).items() if "debian" in entry]
    # A file that extends another one may leave all this to it.
    kubernetes = data.get("kubernetes") or {}
    source = kubernetes.get("debian")
    tools = [(t["package"], t) for t in source["toolchain"]] if source else []
    packages = [(name, entry["debian"]) for name, entry in entries] + tools
    offered = {package: archive.candidate(package) for package in {part["package"] for _, part in packages}}
    moved = [
        (name, str(entry["version"]), upstream_version(offered[entry["debian"]["package"]][0]))
        for name, entry in entries
        # The version of an image is ours: it names a set of programs.
        if entry.get("kind") != "image"
    ]
    if source:
        version, files = archive.source_candidate(source["package"])
        moved.append(("kubernetes", str(kubernetes["version"]), upstream_version(version)))
    _check_same(moved)
    for name, part in packages:
        new, sha256 = offered[part["package"]]
        if part["version"] != new:
            changes[f"{name}: {part['version']} -> {new}"] = None
        elif part["sha256"] != sha256:
            changes[f"{name}: {new}: sha256 {part['sha256'][:12]} -> {sha256[:12]}"] = None
        part["version"], part["sha256"] = new, sha256
    if source:
        if (source["version"], source["files"]) != (version, files):
            changes[f"kubernetes: {source['version']} -> {version}"] = None
        source["version"], source["files"] = version, files
    return list(changes)


def _check_same(versions: list[tuple[str, str, str]]) -> None:
    moved = [f"{name} from {locked} to {offered}" for name, locked, offered in versions if locked != offered]
    if moved:
        raise UserError(
            f"the archive has moved on to other versions of the software: {', '.join(moved)}",
            "kubewright was not tested with them. Write these versions as `version:` (and `upstream:`, for Kubernetes "
            "`commit:`) into the lock file and run again, or use artifacts_source: upstream, mirror or local",
        )


def rewrite(path: Path, archive: Archive) -> list[str]:
    """Refresh the lock file; the file is either the old one or the new one, whatever happens. Returns the changes."""
    load(path)
    data = yaml.safe_load(path.read_text())
    changes = refresh(data, archive)
    if changes:
        _replace(path.resolve(), _HEADER + yaml.dump(data, Dumper=_Indented, sort_keys=False, width=120))
    return changes


def _replace(path: Path, text: str) -> None:
    parse(text, path)
    try:
        write_file(path, text, path.stat().st_mode & 0o777)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}", "the old one is still there") from error
