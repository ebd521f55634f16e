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
    def parse(cls, text: str, variable: str = "kube_version") -> Version:
        """Read `1.20.2` or `v1.20.2`; a `UserError` names what was seen, and the variable."""
        match = re.fullmatch(r"v?1\.(\d{1,3})\.(\d{1,3})", str(text))
        if not match:
            raise UserError(
                f"{variable}: {text!r} is not a Kubernetes version",
                "write major.minor.patch in quotes, for example '1.20.2'",
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


# The last release of each minor version, for the steps between two: they get no others any more.
_LAST_PATCH = {16: 15, 17: 17, 18: 20, 19: 16, 20: 15, 21: 14, 22: 17, 23: 17}
# Kubernetes' version skew policy as of 1.20: how many minor versions a component may be behind the API server.
# None may be ahead of it. kubectl, which the policy gives one of either side, comes with the API server.
BEHIND: dict[str, int] = {
    "kube-apiserver": 1,
    "kube-controller-manager": 1,
    "kube-scheduler": 1,
    "kubelet": 2,
    "kube-proxy": 2,
}
# (since Kubernetes 1.x, oldest etcd): MinExternalEtcdVersion in kubeadm's constants of each minor version.
_OLDEST_ETCD = ((16, (3, 2)), (22, (3, 4)))
_NEWEST_ETCD = (3, 5)
# Docker 29 no longer speaks the API versions of the kubelet's Docker support (its release notes: API 1.44 or newer).
_DOCKER_TOO_NEW = 29


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of any version: `1.20.2+kw2` is (1, 20, 2), `v3.5.16` (3, 5, 16); empty without any."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def minor(text: str) -> tuple[int, ...]:
    """Major and minor of any version."""
    return numbers(text)[:2]


def hops(oldest: str, target: str) -> list[str]:
    """The releases to go through, the target last: one minor version at a time, each at its last patch release.

    `oldest`: what the oldest API server runs. Empty minors in between mean that the target is one step away.
    """
    begin, end = Version.parse(release(oldest)), Version.parse(release(target))
    between = [f"1.{number}.{_LAST_PATCH[number]}" for number in range(begin.minor + 1, end.minor)]
    return [*between, str(end)]


def release(text: str) -> str:
    """Without what names a build of it: `1.20.2+kw2` is 1.20.2."""
    return text.partition("+")[0]


def skew(component: str, found: str, server: str) -> str:
    """Why a component must not run beside API servers of version `server`; empty when it may."""
    own, other = minor(found), minor(server)
    if own > other:
        return f"{component} {found} is newer than API servers of {server}, which none may be"
    behind = other[1] - own[1]
    if behind > BEHIND[component]:
        allowed = f"1.{other[1] - BEHIND[component]}"
        return f"{component} {found} is {behind} minor versions behind API servers of {server}; {allowed} is the oldest"
    return ""


def etcd_step(found: str, target: str) -> str:
    """Why a member must not be brought from one version to another; empty when it may."""
    old, new = minor(found), minor(target)
    text = ".".join(map(str, old))
    if new < old:
        return f"etcd {found} cannot go back to {target}: its data has moved on; allowed are releases of {text}"
    if new[0] != old[0] or new[1] - old[1] > 1:
        return f"etcd {found} cannot go to {target} at once; the next step is {old[0]}.{old[1] + 1}"
    return ""


def etcd_fits(etcd: str, server: str) -> str:
    """Why API servers of version `server` must not use this etcd; empty when they may."""
    oldest = next(least for since, least in reversed(_OLDEST_ETCD) if numbers(server)[1] >= since)
    if minor(etcd) < oldest:
        return f"Kubernetes {server} needs etcd {'.'.join(map(str, oldest))} or newer, this is {etcd}"
    if minor(etcd) > _NEWEST_ETCD:
        newest = ".".join(map(str, _NEWEST_ETCD))
        return f"etcd {etcd} is newer than {newest}, the newest that Kubernetes {server} is used with"
    return ""


def docker_fits(docker: str, kubelet: str) -> str:
    """Why kubelets of this version cannot use this Docker; empty when they can."""
    if numbers(docker) >= (_DOCKER_TOO_NEW,):
        return f"Docker {docker} does not speak with kubelet {kubelet}; the newest that does is {_DOCKER_TOO_NEW - 1}"
    return ""
