"""The programs of a load balancer: nginx with its stream module, and keepalived. The distribution's packages have them.

When a package is installed here its own service is not started, and not enabled: nginx would take port 80.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MANAGERS = {
    "apt": ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"],
    "dnf": ["dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False"],
}
_SERVICES = ("nginx.service", "keepalived.service")
_SECONDS = 600


class MissingError(Exception):
    """A program is missing and cannot be installed."""


def stream_module(settings: str) -> str | None:
    """From the output of `nginx -V`: path of the stream module, empty when it is built in, None when there is none."""
    words = settings.split()
    if "--with-stream" in words:
        return ""
    directory = re.search(r"--modules-path=(\S+)", settings)
    path = f"{directory[1]}/ngx_stream_module.so" if directory else ""
    return path if path and os.path.exists(path) else None


def look() -> dict[str, Any]:
    """What is there: {nginx: path, stream_module: path or empty, keepalived: path}; an absent program has no key."""
    found: dict[str, Any] = {}
    nginx, keepalived = (shutil.which(name, path=_PATH) for name in ("nginx", "keepalived"))
    if nginx:
        reply = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=False, timeout=20)
        module = stream_module(reply.stderr + reply.stdout)
        if module is not None:
            found.update(nginx=nginx, stream_module=module)
    if keepalived:
        found["keepalived"] = keepalived
    return found


def missing(found: dict[str, Any], wanted: list[str]) -> list[str]:
    """Those of the wanted programs that a machine lacks."""
    return [name for name in wanted if name not in found]


def packages_for(names: list[str], packages: dict[str, dict[str, list[str]]]) -> tuple[str, list[str]]:
    """The machine's package manager and what it is to install. `packages`: manager -> program -> packages."""
    for manager, command in _MANAGERS.items():
        if manager in packages and shutil.which(command[0], path=_PATH):
            return manager, [package for name in names for package in packages[manager].get(name, [])]
    raise MissingError(
        f"{' and '.join(names)} not installed, and none of the package managers {', '.join(packages)} is there; "
        "install the programs (nginx with its stream module), or set loadbalancer_packages"
    )


def install(manager: str, packages: list[str], lacking: list[str]) -> None:
    """Install packages without starting what they bring; MissingError with the package manager's own words."""
    environment = {**os.environ, "PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    fresh = [unit for unit in _SERVICES if not _is_known(unit)]
    for unit in fresh:
        _systemctl("mask", "--runtime", unit)
    try:
        reply = subprocess.run(
            [*_MANAGERS[manager], *packages],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"{manager} did not install {', '.join(packages)} within {_SECONDS} s") from None
    finally:
        for unit in fresh:
            _systemctl("unmask", "--runtime", unit)
            _systemctl("disable", "--quiet", unit)
    if reply.returncode:
        said = " ".join((reply.stderr.strip() or reply.stdout.strip()).split())
        raise MissingError(
            f"{' and '.join(lacking)} not installed, and {manager} cannot install {', '.join(packages)}: {said[-400:]}"
            "; give the machine a package mirror, or install them by hand (loadbalancer_packages)"
        )


def _systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", *arguments], capture_output=True, check=False, timeout=60)


def _is_known(unit: str) -> bool:
    reply = subprocess.run(["systemctl", "cat", unit], capture_output=True, check=False, timeout=60)
    return reply.returncode == 0
