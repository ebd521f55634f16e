"""Debian's packages and source packages, through a private apt that leaves the host's own alone.

What apt delivers is verified twice: by the archive's signed index, and by the SHA-256 of the lock file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubewright.artifacts.store import disk_errors
from kubewright.errors import UserError

_HOST_SOURCES = Path("/etc/apt")


def with_sources(text: str, *, deb822: bool) -> str:
    """The same list of sources with source packages added."""
    if deb822:
        return re.sub(r"(?m)^Types:\s*deb\s*$", "Types: deb deb-src", text)
    lines = [line for line in text.splitlines() if line.startswith("deb ")]
    return "\n".join([*lines, *(f"deb-src {line[4:]}" for line in lines)]) + "\n"


class Apt:
    """apt with its own state below `root`, using the host's sources and keys."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._updated = False

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "APT_CONFIG": str(self._root / "apt.conf"),
            "LC_ALL": "C",
            "DEBIAN_FRONTEND": "noninteractive",
        }

    def _prepare(self) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "etc", "download"):
            (self._root / part).mkdir(parents=True, exist_ok=True)
        for old in (self._root / "etc").iterdir():
            old.unlink()
        candidates = [_HOST_SOURCES / "sources.list", *sorted((_HOST_SOURCES / "sources.list.d").glob("*"))]
        for path in candidates:
            if path.suffix in (".list", ".sources") and path.is_file():
                text = with_sources(path.read_text(), deb822=path.suffix == ".sources")
                (self._root / "etc" / path.name).write_text(text)
        (self._root / "apt.conf").write_text(
            f'Dir::Etc::SourceList "/dev/null";\n'
            f'Dir::Etc::SourceParts "{self._root}/etc";\n'
            f'Dir::State::Lists "{self._root}/state/lists";\n'
            f'Dir::Cache "{self._root}/cache";\n'
            'APT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )

    def _run(self, *argv: str) -> str:
        if not shutil.which(argv[0]):
            raise UserError(
                f"this machine has no {argv[0]}: the source 'debian' needs a Debian controller",
                "use artifacts_source: upstream, mirror or local",
            )
        reply = subprocess.run(
            argv, cwd=self._root / "download", env=self._environment(), capture_output=True, text=True, check=False
        )
        if reply.returncode:
            last = [line for line in reply.stderr.splitlines() if line.startswith(("E:", "Err"))] or [
                reply.stderr.strip()
            ]
            raise UserError(f"{' '.join(argv[:2])}: {'; '.join(last)}", "can this machine reach its Debian mirror?")
        return reply.stdout

    def update(self) -> None:
        """Fetch the package indexes, once per process."""
        if self._updated:
            return
        with disk_errors(self._root):
            self._prepare()
            self._run("apt-get", "update", "-q")
        self._updated = True

    def candidate(self, package: str) -> tuple[str, str]:
        """(version, SHA-256) that the archive offers for a binary package."""
        self.update()
        fields: dict[str, str] = {}
        for line in self._run("apt-cache", "show", "--no-all-versions", package).splitlines():
            key, separator, value = line.partition(": ")
            if separator:
                fields.setdefault(key, value)
        return fields["Version"], fields["SHA256"]

    def source_candidate(self, package: str) -> tuple[str, dict[str, str]]:
        """(version, {file: SHA-256}) of a source package."""
        self.update()
        text = self._run("apt-cache", "showsrc", "--only-source", package)
        version = re.search(r"^Version: (\S+)", text, re.MULTILINE)
        block = re.search(r"^Checksums-Sha256:\n((?: .*\n)+)", text, re.MULTILINE)
        if not version or not block:
            raise UserError(f"{package}: the archive has no such source package")
        fields = [line.split() for line in block[1].splitlines()]
        return version[1], {name: digest for digest, _, name in fields}

    def fetch(self, package: str, version: str, sha256: str) -> Path:
        """The .deb of exactly this version and content."""
        self.update()
        try:
            self._run("apt-get", "download", "-q", f"{package}={version}")
        except UserError as error:
            offered = self.candidate(package)[0]
            if offered == version:
                raise
            raise UserError(
                f"{package} {version} is locked, but the archive now offers {offered}",
                "run `python -m kubewright.artifacts lock` and look at the change of artifacts.lock.yml",
            ) from error
        [path] = (self._root / "download").glob(f"{package}_{version.replace(':', '%3a')}_*.deb")
        self._verify(path, sha256)
        return path

    def fetch_source(self, package: str, version: str, files: Mapping[str, str]) -> Path:
        """The .dsc of a source package with its parts beside it."""
        self.update()
        self._run("apt-get", "source", "-q", "--download-only", f"{package}={version}")
        for name, sha256 in files.items():
            self._verify(self._root / "download" / name, sha256)
        return next(self._root / "download" / name for name in files if name.endswith(".dsc"))

    def _verify(self, path: Path, sha256: str) -> None:
        with path.open("rb") as stream:
            seen = hashlib.file_digest(stream, "sha256").hexdigest()
        if seen != sha256:
            path.unlink()
            raise UserError(f"{path.name}: the sha256 is {seen}, locked is {sha256}", "it was thrown away; run again")


def unpack(deb: Path, directory: Path) -> None:
    """Unpack a package's files."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        reply = subprocess.run(["dpkg-deb", "-x", deb, directory], capture_output=True, text=True, check=False)
    if reply.returncode:
        raise UserError(f"{deb.name}: cannot be unpacked: {reply.stderr.strip()}", f"is the disk of {directory} full?")


def refresh(data: dict[str, Any], apt: Apt, progress: Callable[[str], None]) -> None:
    """Bring versions and digests of a lock file's Debian parts up to what the archive offers, in place."""
    known: dict[str, tuple[str, str]] = {}
    toolchain = data["kubernetes"]["debian"]["toolchain"]
    for entry in [e["debian"] for e in data["artifacts"].values() if "debian" in e] + toolchain:
        package = entry["package"]
        if package not in known:
            known[package] = apt.candidate(package)
            progress(f"{package} {known[package][0]}")
        entry["version"], entry["sha256"] = known[package]
    source = data["kubernetes"]["debian"]
    source["version"], source["files"] = apt.source_candidate(source["package"])
