"""Debian's packages and source packages, through a private apt that leaves the host's own alone.

What apt delivers is verified twice: by the archive's signed index, and by the SHA-256 of the lock file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from kubewright import apt_sources
from kubewright.apt_sources import Source
from kubewright.artifacts.alone import alone
from kubewright.artifacts.store import Claim, sha256_of
from kubewright.cache import disk_errors
from kubewright.errors import UserError

_HOST_SOURCES = Path("/etc/apt")
_RETRIES = 3
# Images of containers switch this off, and then every question costs a second. The host's settings come after those
# of $APT_CONFIG, so it has to be said on the command line.
_INDEXED = "-oDir::Cache::pkgcache=pkgcache.bin"
_FULL_BYTES = 1 << 20
_REMEDY = "it was thrown away: run again; if it stays so, run python -m kubewright.artifacts lock"


def with_sources(found: Sequence[Source], suites: Sequence[str] = ()) -> str:
    """The same sources in deb822, with source packages from each; and further suites of the same archives."""
    both = [replace(source, types=("deb", "deb-src")) for source in found if "deb" in source.types]
    more = [s for s in found if "deb" not in s.types and replace(s, types=("deb", "deb-src")) not in both]
    # A release has one suite with a plain name; those of updates and security are called after it.
    whole = [s for s in both if any("-" not in suite and "/" not in suite for suite in s.suites)]
    further = [replace(source, suites=tuple(suites)) for source in whole[: 1 if suites else 0]]
    return "\n".join(source.stanza() for source in [*both, *more, *further])


def place(cache: Path, suites: Sequence[str]) -> Path:
    """Where in the cache the apt for these further suites lives: what one offers is nothing to the others."""
    return cache / "-".join(["apt", *suites])


class Apt:
    """apt with its own state below `root`, using the host's sources and keys; one process at a time uses it.

    `suites`: further suites of the host's Debian archive, such as a newer release's.
    """

    def __init__(self, root: Path, progress: Callable[[str], None], suites: Sequence[str] = ()) -> None:
        self._root = root
        self._suites = suites
        self._downloads = root / "download"
        self._progress = progress
        self._updated = False
        self._warnings: list[str] = []

    def candidate(self, package: str) -> tuple[str, str]:
        """(version, SHA-256) that the archive offers for a binary package."""
        fields: dict[str, str] = {}
        with self._alone():
            text = self._ask("apt-cache", "show", "--no-all-versions", package)
        for line in text.splitlines():
            key, separator, value = line.partition(": ")
            if separator:
                fields.setdefault(key, value)
        if "Version" not in fields or "SHA256" not in fields:
            raise self._nowhere(package)
        return fields["Version"], fields["SHA256"]

    def source_candidate(self, package: str) -> tuple[str, dict[str, str]]:
        """(version, {file: SHA-256}) of a source package."""
        with self._alone():
            text = self._ask("apt-cache", "showsrc", "--only-source", package)
        found = {}
        for record in text.split("\n\n"):
            version = re.search(r"^Version: (\S+)", record, re.MULTILINE)
            block = re.search(r"^Checksums-Sha256:\n((?: .*\n?)+)", record, re.MULTILINE)
            if version and block:
                fields = [line.split() for line in block[1].splitlines()]
                found[version[1]] = {name: digest for digest, _, name in fields}
        if not found:
            raise self._nowhere(f"the source package {package}")
        newest = _newest(list(found))
        return newest, found[newest]

    def require(self, packages: Collection[tuple[str, str]], sources: Collection[tuple[str, str]] = ()) -> None:
        """UserError that names all of these (package, version) that the archive no longer has."""
        with self._alone():
            self._require(packages, sources)

    def _require(self, packages: Collection[tuple[str, str]], sources: Collection[tuple[str, str]]) -> None:
        wanted = [(*p, "Packages") for p in dict.fromkeys(packages)] + [(*s, "Sources") for s in dict.fromkeys(sources)]
        offered = self._offered(sorted({package for package, _, _ in wanted}))
        gone = []
        for package, version, kind in wanted:
            versions = offered.get((package, kind), [])
            if not versions:
                raise self._nowhere(package)
            if version not in versions:
                gone.append(f"{package} {version} is no longer in the archive (it has {_newest(versions)})")
        if gone:
            raise UserError(",\n".join(gone) + "; run python -m kubewright.artifacts lock")

    def has(self, package: str, version: str) -> bool:
        """Whether the .deb was downloaded before; `fetch` verifies it."""
        return any(self._downloaded(package, version))

    def has_source(self, files: Collection[str]) -> bool:
        """Whether all files of a source package were downloaded before; `fetch_source` verifies them."""
        return all((self._downloads / name).is_file() for name in files)

    def fetch(self, package: str, version: str, sha256: str) -> Path:
        """The .deb of exactly this version and content."""
        with self._alone():
            for path in self._downloaded(package, version):
                if sha256_of(path) == sha256:
                    return path
                path.unlink()
            self._require([(package, version)], [])
            try:
                self._ask("apt-get", "download", "-q", f"{package}={version}")
            except UserError:
                _remove_bad(dict.fromkeys(self._downloaded(package, version), sha256))
                raise
            [path] = self._downloaded(package, version)
            _verify(path, sha256)
            return path

    def fetch_source(self, package: str, version: str, files: Mapping[str, str]) -> Path:
        """The .dsc of a source package with its parts beside it."""
        paths = {self._downloads / name: sha256 for name, sha256 in files.items()}
        with self._alone():
            _remove_bad(paths)
            if not self.has_source(files):
                self._require([], [(package, version)])
                try:
                    self._ask("apt-get", "source", "-q", "--download-only", f"{package}={version}")
                except UserError:
                    _remove_bad(paths)
                    raise
                for path, sha256 in paths.items():
                    _verify(path, sha256)
        return next(path for path in paths if path.suffix == ".dsc")

    def _downloaded(self, package: str, version: str) -> list[Path]:
        return list(self._downloads.glob(f"{package}_{version.replace(':', '%3a')}_*.deb"))

    def _alone(self) -> AbstractContextManager[object]:
        return alone(self._root / ".lock", "using apt", self._progress)

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
        (self._root / "etc" / "host.sources").write_text(with_sources(apt_sources.read(_HOST_SOURCES), self._suites))
        (self._root / "apt.conf").write_text(
            f'Dir::Etc::SourceList "/dev/null";\n'
            f'Dir::Etc::SourceParts "{self._root}/etc";\n'
            f'Dir::State::Lists "{self._root}/state/lists";\n'
            f'Dir::Cache "{self._root}/cache";\n'
            f'APT::Sandbox::User "root";\nAcquire::Languages "none";\nAcquire::Retries "{_RETRIES}";\n'
        )

    def _ask(self, *argv: str) -> str:
        """What a program of apt prints, with package indexes that were fetched once in this process.

        Only `_alone`, as all that follows.
        """
        if not self._updated:
            with disk_errors(self._root):
                self._prepare()
            # apt calls an archive that cannot be reached a warning, and goes on with what it has.
            self._warnings = _complaints(self._run("apt-get", "update", "-q").stderr)
            self._updated = True
        return self._run(*argv).stdout

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        if not shutil.which(argv[0]):
            raise UserError(
                f"this machine has no {argv[0]}: Debian's packages need a Debian controller",
                "use artifacts_source: upstream, mirror or local; for images put a static busybox into artifacts_dir",
            )
        reply = subprocess.run(
            [argv[0], _INDEXED, *argv[1:]],
            cwd=self._downloads,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if reply.returncode:
            last = _complaints(reply.stderr) or [reply.stderr.strip()]
            if any("No packages found" in line for line in last):
                raise self._nowhere(argv[-1])
            raise UserError(
                "\n".join([f"{' '.join(argv[:2])} {argv[-1]}: {'; '.join(last)}", *self._warnings]),
                self._advice(argv[1], last),
            )
        return reply

    def _advice(self, command: str, complaints: Collection[str]) -> str:
        text = " ".join(complaints)
        if "No space left" in text:
            return "free some space, or set KUBEWRIGHT_CACHE to a directory on a larger disk"
        if command == "update":
            return f"correct {_HOST_SOURCES}/sources.list or the network until apt-get update works"
        if re.search(r"\b404\b|File not found|Hash Sum mismatch", text):
            return "the archive's index and its files differ while a mirror is being updated: run again in some minutes"
        return "can this machine reach its Debian mirror? Try apt-get update"

    def _offered(self, packages: Collection[str]) -> dict[tuple[str, str], list[str]]:
        """{(package, Packages or Sources): versions}."""
        found: dict[tuple[str, str], list[str]] = {}
        for line in self._ask("apt-cache", "madison", *packages).splitlines():
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3:
                found.setdefault((fields[0], fields[2].rpartition(" ")[2]), []).append(fields[1])
        return found

    def _nowhere(self, what: str) -> UserError:
        return UserError(
            "\n".join([f"the archives of {_HOST_SOURCES} have no {what}", *self._warnings]),
            "does /etc/apt/sources.list name Debian 12 (bookworm), and can this machine reach it? Otherwise use "
            "artifacts_source: upstream, mirror or local",
        )


def _complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("E:", "Err", "W: Failed"))]


def _newest(versions: Sequence[str]) -> str:
    # Of source packages apt lists them in the order of its sources.
    newest = versions[0]
    for version in versions[1:]:
        if subprocess.run(["dpkg", "--compare-versions", version, "gt", newest], check=False).returncode == 0:
            newest = version
    return newest


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"apt did not download {path.name}", "run python -m kubewright.artifacts lock")
    try:
        Claim(sha256, path.name, _REMEDY).check(sha256_of(path))
    except UserError:
        try:
            _check_room(path.parent)
        finally:
            path.unlink()
        raise


def _remove_bad(paths: Mapping[Path, str]) -> None:
    """Remove what is not of the SHA-256 that it should have; apt leaves what it has received under the final name."""
    for path, sha256 in paths.items():
        if path.is_file() and sha256_of(path) != sha256:
            path.unlink()


def _check_room(directory: Path) -> None:
    """UserError when the disk is full: not every program says so when that is why it failed, or notices at all."""
    with disk_errors(directory):
        if shutil.disk_usage(directory).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unpack(deb: Path, directory: Path) -> None:
    """Unpack a package's files."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    reply = subprocess.run(["dpkg-deb", "-x", deb, directory], capture_output=True, text=True, check=False)
    if reply.returncode:
        _check_room(directory)
        raise UserError(
            f"{deb.name}: cannot be unpacked: {reply.stderr.strip()}",
            f"the package is what was locked, so look at the disk of {directory}",
        )
