"""A small Debian archive on this disk, for the real apt: packages and source packages of files that tests choose."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REFLECT2 = "github.com/modern-go/reflect2"
# Writes down that it ran, and then what it was asked for, as Go does with `go build -o FILE ./cmd/NAME`.
GO = """\
#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo "$3" >> {journal}
{before}
mkdir -p "${{2%/*}}"
printf '\\177ELF\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\076\\0 %s' "$3" > "$2"
"""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout


class Archive:
    """`sources` is what stands in for /etc/apt of a host that uses it."""

    def __init__(self, root: Path) -> None:
        self.pool = root / "archive"
        self.sources = root / "etc-apt"
        self._work = root / "work"
        for directory in (self.pool, self.sources, self._work):
            directory.mkdir(parents=True)
        (self.sources / "sources.list").write_text(f"deb [trusted=yes] file:{self.pool} ./\n")
        for index in ("Packages.gz", "Sources.gz"):
            (self.pool / index).write_bytes(gzip.compress(b""))

    def package(self, name: str, version: str, files: Mapping[str, str]) -> dict[str, str]:
        """Publish a binary package; returns what a lock file says of it."""
        tree = self._work / f"{name}-{version}"
        for path, content in {
            **files,
            "DEBIAN/control": f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@example.org>\n"
            "Description: for a test\n",
        }.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            target.chmod(0o755 if content.startswith("#!") else 0o644)
        deb = self.pool / f"{name}_{version.partition(':')[2] or version}_all.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb)
        self._publish("Packages")
        return {"package": name, "version": version, "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()}

    def source(self, name: str, version: str, files: Mapping[str, str]) -> dict[str, Any]:
        """Publish a source package; returns what a lock file says of it."""
        tree = self._work / f"{name}-source-{version}"
        control = (
            f"Source: {name}\nMaintainer: T <t@example.org>\n\nPackage: {name}-client\nArchitecture: all\n"
            "Description: for a test\n"
        )
        signed = " -- T <t@example.org>  Thu, 01 Jan 1970 00:00:00 +0000\n"
        changelog = f"{name} ({version}) stable; urgency=low\n\n  * For a test.\n\n{signed}"
        for path, content in {
            **files,
            "debian/control": control,
            "debian/changelog": changelog,
            "debian/source/format": "3.0 (native)\n",
        }.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        run("dpkg-source", "-z1", "-b", tree, cwd=self.pool)
        self._publish("Sources")
        written = self.pool.glob(f"{name}_{version}*")
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
        return {"package": name, "version": version, "files": digests}

    def withdraw(self, pattern: str) -> None:
        """Take files out of the archive, as a point release does."""
        for path in self.pool.glob(pattern):
            path.unlink()
        self._publish("Packages")
        self._publish("Sources")

    def _publish(self, index: str) -> None:
        program = {"Packages": "dpkg-scanpackages", "Sources": "dpkg-scansources"}[index]
        text = run(program, ".", cwd=self.pool)
        (self.pool / f"{index}.gz").write_bytes(gzip.compress(text.encode()))

    def kubernetes(self, journal: Path, before: str = "") -> dict[str, Any]:
        """A source package and a toolchain of a Kubernetes that builds in no time; `before`: what Go does first."""
        go = GO.format(journal=journal, before=before)
        toolchain = [
            self.package("golang-test", "1.19-1", {"usr/lib/go-1.19/bin/go": go}),
            self.package("reflect2-test", "1-1", {f"usr/share/gocode/src/{REFLECT2}/fixed.go": "package reflect2\n"}),
        ]
        made = "generated_files:\n\ttouch generated\n"
        source = self.source("kubernetes", "1.20.2", {"Makefile": made, f"vendor/{REFLECT2}/broken.go": "x\n"})
        return {
            "version": "1.20.2",
            "commit": "0" * 40,
            "upstream": "http://127.0.0.1:9/v{version}/{architecture}",
            "debian": {**source, "toolchain": toolchain},
        }


def write_lock(path: Path, kubernetes: Mapping[str, Any], artifacts: Mapping[str, Any]) -> Path:
    """A lock file."""
    data = {"architecture": "amd64", "kubernetes": dict(kubernetes), "artifacts": dict(artifacts)}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
