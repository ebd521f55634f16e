"""Kubernetes out of Debian's source package: built once per machine, resumable, kept under a key of all its inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from kubewright.artifacts import debian, elf
from kubewright.artifacts.alone import alone
from kubewright.artifacts.lock import KUBERNETES, Lock
from kubewright.artifacts.scratch import Scratch
from kubewright.artifacts.store import Claim, sha256_of
from kubewright.cache import disk_errors, settle
from kubewright.errors import UserError

# Change it when the recipe below changes what comes out.
_RECIPE = 1
_WORK, _RESULT = "work-", "kubernetes-"
# From nothing to the end, and what the last steps take.
_NEEDED_BYTES, _END_BYTES = 6 << 30, 1 << 30
# A program that fails on a disk with no more room than this failed for the lack of it, whatever it says.
_FULL_BYTES = 16 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROGRAMS = {"make": "make", "rsync": "rsync", "dpkg-source": "dpkg-dev", "bash": "bash", "patch": "patch"}
# With Go 1.18 and newer the vendored 1.0.1 dereferences nil at the first JSON map.
_REFLECT2 = "github.com/modern-go/reflect2"
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def key(recipe: Mapping[str, Any]) -> str:
    """Digest of everything that decides the result."""
    return _digest([*_compiled(recipe), recipe["version"], recipe["commit"], recipe.get("build")])


def work_key(recipe: Mapping[str, Any]) -> str:
    """Digest of what is compiled. Builds that only call themselves otherwise share it, and differ in linking."""
    return _digest(_compiled(recipe))


def _compiled(recipe: Mapping[str, Any]) -> list[Any]:
    debian_ = recipe["debian"]
    return [_RECIPE, sorted(debian_["files"].items()), [t["sha256"] for t in debian_["toolchain"]]]


def _digest(inputs: list[Any]) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def link_flags(version: str, commit: str) -> str:
    """Go linker flags that stamp the version; in GOPATH mode the variables live below vendor/.

    `version`: 1.20.2, or with the name of a build of one's own 1.20.2+name.
    """
    major, minor, _ = version.partition("+")[0].split(".")
    values = {
        "gitVersion": f"v{version}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": commit,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    stamps = [f"-X k8s.io/kubernetes/vendor/{p}.{k}={v}" for p in _VERSION_PACKAGES for k, v in values.items()]
    return " ".join(["-s", "-w", *stamps])


class Builder:
    """One build below `root`; the steps that are done are not repeated."""

    def __init__(
        self, root: Path, locked: Lock, apt: debian.Apt, scratch: Scratch, progress: Callable[[str], None]
    ) -> None:
        recipe = locked.kubernetes
        self._root = root
        self._recipe = recipe
        self._architecture = locked.architecture
        self._apt = apt
        self._scratch = scratch
        self._progress = progress
        self._version = locked.kubernetes_version
        self._work = root / f"{_WORK}{work_key(recipe)}"
        self._key = key(recipe)
        self._out = root / f"{_RESULT}{self._key}"
        self._lock = -1

    def result(self) -> dict[str, tuple[Path, Claim]] | None:
        """Name -> (binary, what the build says that it is) of a finished build."""
        try:
            manifest = json.loads((self._out / "manifest.json").read_text())
        except (OSError, ValueError):
            return None
        paths = {name: self._out / name for name in KUBERNETES}
        if any(not p.is_file() or p.stat().st_size != manifest[n]["size"] for n, p in paths.items()):
            return None
        remedy = "the damaged build was thrown away: run again, it is built anew"
        return {n: (path, Claim(manifest[n]["sha256"], str(path), remedy)) for n, path in paths.items()}

    def discard(self) -> None:
        """Throw a damaged result away."""
        shutil.rmtree(self._out, ignore_errors=True)

    def requirements(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(packages, source packages) as (name, version): what a build still has to get from the archive."""
        recipe = self._recipe["debian"]
        packages = [(t["package"], t["version"]) for t in recipe["toolchain"]]
        unpacked = self._step("source").exists()
        there = unpacked or self._apt.has_source(recipe["files"])
        sources = [] if there else [(recipe["package"], recipe["version"])]
        if self._step("toolchain").exists():
            packages = []
        return [p for p in packages if not self._apt.has(*p)], sources

    def build(self) -> dict[str, tuple[Path, Claim]]:
        """Build what is missing; one builder at a time on a machine."""
        self._check_tools()
        with alone(self._root / ".lock", "building Kubernetes", self._progress) as lock, disk_errors(self._root):
            done = self.result()
            if done:
                return done
            self._lock = lock.fileno()
            self._begin()
            self._check_disk()
            self._toolchain()
            self._source()
            self._generate()
            for number, command in enumerate(KUBERNETES, 1):
                self._command(number, command)
            return self._finish()

    def _check_tools(self) -> None:
        missing = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
        if missing:
            raise UserError(
                f"building Kubernetes needs programs that this machine lacks ({', '.join(missing)})",
                f"apt-get install {' '.join(missing)}, or `make setup`",
            )

    def _room(self) -> tuple[int, int]:
        """(bytes that are free, bytes that the rest of the build takes)."""
        held = 0
        for directory, _, names in os.walk(self._work):
            for name in names:
                # Children of a compiler that was stopped may still be tidying up.
                with contextlib.suppress(FileNotFoundError):
                    held += Path(directory, name).lstat().st_blocks * 512
        return shutil.disk_usage(self._root).free, max(_NEEDED_BYTES - held, _END_BYTES)

    def _check_disk(self) -> None:
        free, needed = self._room()
        if free < needed:
            raise UserError(
                f"{self._root} has {free >> 20} MiB free, building Kubernetes takes {needed >> 20} MiB",
                "free some space, or set KUBEWRIGHT_CACHE to a larger disk",
            )

    def _begin(self) -> None:
        """Make the work directory, or what an earlier process left there, fit to go on from."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        boot, now = self._work / "boot", _BOOT.read_text()
        if not boot.exists() or boot.read_text() != now:
            # Nobody knows what had reached the disk since the last mark; neither Go nor make looks into files.
            shutil.rmtree(self._work / "gocache", ignore_errors=True)
            if not self._step("generated").exists():
                self._step("source").unlink(missing_ok=True)
        boot.write_text(now)

    @property
    def _temporary(self) -> Path:
        return self._work / "tmp"

    def _step(self, name: str) -> Path:
        return self._work / f".{name}.done"

    def _done(self, name: str) -> None:
        settle(self._work)
        self._step(name).touch()

    def _toolchain(self) -> None:
        if self._step("toolchain").exists():
            return
        self._progress("kubernetes: unpacking the Go toolchain")
        for entry in self._recipe["debian"]["toolchain"]:
            deb = self._apt.fetch(entry["package"], entry["version"], entry["sha256"])
            debian.unpack(deb, self._work / "toolchain")
        self._done("toolchain")

    @property
    def _tree(self) -> Path:
        return self._work / "gopath" / "src" / "k8s.io" / "kubernetes"

    def _source(self) -> None:
        if self._step("source").exists():
            return
        self._progress("kubernetes: unpacking the source package")
        recipe = self._recipe["debian"]
        dsc = self._apt.fetch_source(recipe["package"], recipe["version"], recipe["files"])
        shutil.rmtree(self._tree, ignore_errors=True)
        self._tree.parent.mkdir(parents=True, exist_ok=True)
        self._run("source", ["dpkg-source", "--no-check", "-x", str(dsc), str(self._tree)], self._work)
        vendored = self._tree / "vendor" / _REFLECT2
        shutil.rmtree(vendored)
        shutil.copytree(self._work / "toolchain/usr/share/gocode/src" / _REFLECT2, vendored)
        self._done("source")

    def _generate(self) -> None:
        if self._step("generated").exists():
            return
        self._run("generated", ["make", "generated_files"], self._tree, "kubernetes: generating code")
        self._done("generated")

    @property
    def _linked(self) -> Path:
        return self._work / f"out-{self._key}"

    def _command(self, number: int, command: str) -> None:
        target = self._linked / command
        step = f"{command}-{self._key}"
        if self._step(step).exists() and self._is_program(target):
            return
        flags = link_flags(self._version, str(self._recipe["commit"]))
        argv = [
            "go",
            "build",
            "-tags",
            "providerless",
            "-trimpath",
            "-ldflags",
            flags,
            "-o",
            str(target),
            f"./cmd/{command}",
        ]
        title = f"kubernetes {self._version}: building {command} ({number} of {len(KUBERNETES)})"
        self._run(command, argv, self._tree, title)
        if not self._is_program(target):
            size = target.stat().st_size if target.exists() else 0
            raise UserError(
                f"{target}: Go succeeded, and this is no program for {self._architecture} ({size} bytes)",
                f"look at the disk (dmesg); if it is well, remove {self._work} and run again",
            )
        self._done(step)

    def _is_program(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return elf.architecture(stream) == self._architecture

    def _environment(self) -> dict[str, str]:
        goroot = next((self._work / "toolchain" / "usr" / "lib").glob("go-*"))
        return {
            "HOME": str(self._work),
            # Not /tmp, which may be small: the room that was looked for is here.
            "TMPDIR": str(self._temporary),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{goroot}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "GOROOT": str(goroot),
            "GOPATH": str(self._work / "gopath"),
            "GOCACHE": str(self._work / "gocache"),
            "GO111MODULE": "off",
            "GOPROXY": "off",
            "GOFLAGS": "",
            "CGO_ENABLED": "0",
        }

    def _run(self, name: str, argv: list[str], directory: Path, title: str = "") -> None:
        log = self._work / f"{name}.log"
        environment = self._environment() if title else None
        if title:
            self._progress(title)
        with log.open("w") as stream:
            # It holds the lock too: when this process is killed, nobody builds in its tree before it has ended.
            process = subprocess.Popen(
                argv,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lock],
            )
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if status:
            self._failed(title or name, status, log)

    def _failed(self, what: str, status: int, log: Path) -> NoReturn:
        text = log.read_text(errors="replace")
        free, needed = self._room()
        if "no space left on device" in text.lower() or free < _FULL_BYTES:
            raise UserError(
                f"{what}: the disk of {self._root} is full ({free >> 20} MiB free)",
                f"the rest takes about {needed >> 20} MiB: free as much there and run again, it goes on where it "
                "stopped; or set KUBEWRIGHT_CACHE to a directory on a larger disk, where it begins anew",
            )
        tail = "\n".join(f"    {line}" for line in text.splitlines()[-12:])
        raise UserError(
            f"{what} failed with status {status}:\n{tail}",
            f"the whole log is {log}; running again goes on where it stopped",
        )

    def _finish(self) -> dict[str, tuple[Path, Claim]]:
        with disk_errors(self._root), self._scratch.directory() as scratch:
            staging = scratch / "kubernetes"
            staging.mkdir()
            manifest = {}
            for name in KUBERNETES:
                built = self._linked / name
                shutil.copy2(built, staging / name)
                manifest[name] = {"sha256": sha256_of(built), "size": built.stat().st_size}
            (staging / "manifest.json").write_text(json.dumps(manifest, indent=1))
            shutil.rmtree(self._out, ignore_errors=True)
            settle(staging)
            staging.rename(self._out)
        # Sources, toolchain and Go's cache take 3 GB, and make another build of the same sources a matter of linking.
        for step in (f"{name}-{self._key}" for name in KUBERNETES):
            self._step(step).unlink(missing_ok=True)
        for used in (self._linked, self._temporary):
            shutil.rmtree(used, ignore_errors=True)
        done = self.result()
        assert done  # noqa: S101 - written just now
        return done


def results(root: Path) -> list[Path]:
    """Directories of finished builds below `root`."""
    return sorted(root.glob(f"{_RESULT}*"))


def work_directories(root: Path) -> list[Path]:
    """Directories below `root` in which builds are made."""
    return sorted(root.glob(f"{_WORK}*"))


def key_of(directory: Path) -> str:
    """The `key` of a directory of `results`."""
    return directory.name.rpartition("-")[2]


def is_good(result: Path) -> bool:
    """Hash a finished build again: whether every binary is what was built."""
    try:
        manifest = json.loads((result / "manifest.json").read_text())
        return all(sha256_of(result / name) == manifest[name]["sha256"] for name in KUBERNETES)
    except (OSError, ValueError, KeyError):
        return False
