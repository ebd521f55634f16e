"""What each Kubernetes minor version has: the only place that knows version numbers.

A feature is a half-open range of minor versions of Kubernetes 1.x: `(since, until)`, `None` meaning unbounded.
Templates and roles ask `features(version)` and never compare versions themselves. Sources: the "Deprecation" and
"Urgent upgrade notes" parts of the release notes of each minor version.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from kubewright.errors import UserError

# Minors whose flags below were written against the release notes. Only 1.20 runs in the lab.
_OLDEST, _NEWEST = 16, 23
# Kubernetes 1.24 removed the kubelet's Docker support (KEP-2221) and kubewright installs no other runtime yet.
_DOCKERSHIM_REMOVED = 24
_KNOWN_TO_EXIST = 36

_FEATURES: dict[str, tuple[int | None, int | None]] = {
    "apiserver_insecure_port_flag": (None, 24),
    "cluster_signing_duration": (19, None),
    "csr_api_v1": (19, None),
    "insecure_health_ports": (None, 23),
    # Eviction of policy/v1 came a minor after PodDisruptionBudget of policy/v1.
    "policy_v1": (22, None),
    "service_account_issuer": (20, None),
}


@dataclass(frozen=True, order=True)
class Version:
    """A Kubernetes version `1.MINOR.PATCH`."""

    minor: int
    patch: int

    def __str__(self) -> str:
        return f"1.{self.minor}.{self.patch}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read `1.20.2` or `v1.20.2`; a `UserError` names what was seen."""
        match = re.fullmatch(r"v?1\.(\d{1,3})\.(\d{1,3})", str(text))
        if not match:
            raise UserError(
                f"kube_version: {text!r} is not a Kubernetes version",
                "write major.minor.patch in quotes, for example kube_version: '1.20.2'",
            )
        return cls(int(match[1]), int(match[2]))


def supported_minors() -> list[str]:
    """The minor versions that kubewright installs, oldest first, as `1.20`."""
    return [f"1.{minor}" for minor in range(_OLDEST, _NEWEST + 1)]


def check(text: str, network_mode: str) -> list[str]:
    """Every reason why this version cannot be installed, as sentences; empty when it can."""
    try:
        version = Version.parse(text)
    except UserError as error:
        return [f"{error.message}: {error.hint}"]
    supported = supported_minors()
    if version.minor >= _DOCKERSHIM_REMOVED:
        if version.minor > _KNOWN_TO_EXIST:
            nearest = ", ".join(supported[-2:])
            return [f"kube_version: {version} is not in the version table; the nearest are {nearest}"]
        if network_mode == "docker":
            return [
                f"network_mode: 'docker' needs the kubelet's Docker support, which Kubernetes {version} "
                f"no longer has (removed in 1.{_DOCKERSHIM_REMOVED}); the newest that has it is {supported[-1]}"
            ]
        return [
            f"kube_version: {version} has no Docker support (removed in 1.{_DOCKERSHIM_REMOVED}) and "
            f"kubewright installs no other runtime yet; the newest it installs is {supported[-1]}"
        ]
    if f"1.{version.minor}" not in supported:
        nearest = ", ".join(difflib.get_close_matches(f"1.{version.minor}", supported, 2, 0) or supported[:2])
        return [f"kube_version: {version} is not in the version table; the nearest are {nearest}"]
    return []


def features(text: str) -> dict[str, bool]:
    """Which features of the table this version has, by name."""
    minor = Version.parse(text).minor
    return {
        name: (since is None or minor >= since) and (until is None or minor < until)
        for name, (since, until) in _FEATURES.items()
    }
