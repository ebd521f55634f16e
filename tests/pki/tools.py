"""Programs that judge what kubepki makes: of Debian packages, unpacked or built once into the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from debian_packages import made_once, unpacked

from kubewright.artifacts import debian, lock
from kubewright.artifacts.scratch import Scratch
from kubewright.cache import cache_directory

ROOT = Path(__file__).resolve().parents[2]
_GO_SOURCE = Path(__file__).parent / "goverify" / "main.go"


def cfssl_directory() -> Path:
    """The directory with Debian's `cfssl` and `cfssljson`."""
    return unpacked("cfssl", ["golang-cfssl"]) / "usr/bin"


def go_verify() -> Path:
    """The program of goverify/main.go, built with the Go that builds Kubernetes."""
    toolchain = [
        one
        for one in lock.load(ROOT / "artifacts.lock.yml").kubernetes["debian"]["toolchain"]
        if one["package"].startswith("golang-1.")
    ]
    inputs = [_GO_SOURCE.read_bytes(), *(one["sha256"].encode() for one in toolchain)]
    name = f"goverify-{hashlib.sha256(b' '.join(inputs)).hexdigest()[:16]}"
    with made_once(name) as (final, new):
        if new:
            apt = debian.Apt(cache_directory() / "apt", lambda _: None)
            with Scratch(cache_directory() / "tmp").directory() as scratch:
                for one in toolchain:
                    debian.unpack(apt.fetch(one["package"], one["version"], one["sha256"]), scratch)
                _build(scratch, new / "goverify")
    return final / "goverify"


def _build(toolchain: Path, target: Path) -> None:
    goroot = next((toolchain / "usr/lib").glob("go-1.*"))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(toolchain),
        "GOROOT": str(goroot),
        "GOPATH": str(toolchain / "gopath"),
        "GOCACHE": str(toolchain / "gocache"),
        "TMPDIR": str(toolchain),
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
    }
    command = [goroot / "bin/go", "build", "-trimpath", "-o", target, _GO_SOURCE]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert built.returncode == 0, built.stderr
