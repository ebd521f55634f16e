"""What the host offers to a lab: control groups, capabilities, kernel features, programs, its apt sources."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from kubewright.errors import UserError
from kubewright.lab.run import succeeds

_PROGRAMS = Path(__file__).with_name("programs.txt")
# `su` without a dash keeps a user's PATH, which lacks these.
_SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")
DEVICES = ("/dev/kmsg", "/dev/fuse", "/dev/net/tun")
# capabilities(7), linux/capability.h
CAP_SYS_RESOURCE = 24
# Without these no machine boots or no pod gets a network.
_NEEDED_FEATURES = ("overlay", "bridge", "veth")
# The cluster can do without these in some configuration; its playbooks find out by themselves.
_OPTIONAL_FEATURES = ("br_netfilter", "vxlan", "ip_vs", "ipip", "wireguard")
# Where a feature that is compiled in shows, when /sys/module does not list it.
_TRACES = {
    "ip_vs": "/proc/net/ip_vs",
    "br_netfilter": "/proc/sys/net/bridge",
    "ipip": "/sys/class/net/tunl0",
}


@dataclass(frozen=True)
class Cgroups:
    """The host's control groups: version 1 or 2 and the mount points in which machines get a group."""

    version: int
    mounts: tuple[Path, ...]


@dataclass(frozen=True)
class Host:
    """What `probe` found."""

    cgroups: Cgroups
    systemd: bool
    can_lower_oom_score: bool
    swap: bool = False
    missing_features: tuple[str, ...] = ()
    devices: tuple[str, ...] = field(default=DEVICES)

    def adaptations(self) -> list[str]:
        """Say in one line each what the lab does differently on this host than on a full Debian server."""
        lines = []
        if self.cgroups.version == 1:
            lines.append("control groups are version 1: machines get version 1, with a group of their own in each")
        if not self.systemd:
            lines.append(
                "systemd is not PID 1: machines run without being registered anywhere, in plain control groups"
            )
        if self.swap:
            lines.append("the host has swap: machines are shown none, as it is not theirs to switch off")
        if not self.can_lower_oom_score:
            lines.append("CAP_SYS_RESOURCE is missing: a runc wrapper in the machines raises negative OOM scores to 0")
        lines += [f"{device} does not exist: machines go without" for device in DEVICES if device not in self.devices]
        if self.missing_features:
            lines.append(f"the kernel lacks {', '.join(self.missing_features)}: so do the machines")
        return lines


def probe() -> Host:
    """Look at the host; loads kernel modules that machines, being containers, could not load by themselves."""
    missing = [name for name in (*_NEEDED_FEATURES, *_OPTIONAL_FEATURES) if not _has_feature(name)]
    fatal = [name for name in missing if name in _NEEDED_FEATURES]
    if fatal:
        raise UserError(
            f"the kernel {os.uname().release} lacks {', '.join(fatal)}", "the lab needs a kernel that has them"
        )
    status = Path("/proc/self/status").read_text()
    return Host(
        cgroups=parse_cgroups(Path("/proc/self/mounts").read_text()),
        systemd=Path("/run/systemd/system").is_dir(),
        can_lower_oom_score=has_capability(status, CAP_SYS_RESOURCE),
        swap=has_swap(Path("/proc/swaps").read_text()),
        missing_features=tuple(missing),
        devices=tuple(device for device in DEVICES if Path(device).exists()),
    )


def parse_cgroups(mounts: str) -> Cgroups:
    """Find the control groups in the text of /proc/self/mounts.

    A host that mounts both kinds ("hybrid") has its controllers in version 1. `UserError` without any.
    """
    entries = [line.split() for line in mounts.splitlines() if line.strip()]
    first = [Path(entry[1]) for entry in entries if entry[2] == "cgroup"]
    second = [Path(entry[1]) for entry in entries if entry[2] == "cgroup2"]
    if first:
        return Cgroups(1, tuple(dict.fromkeys(first + second)))
    if second:
        return Cgroups(2, (second[0],))
    raise UserError("no control groups are mounted", "mount them as the distribution does, under /sys/fs/cgroup")


def has_capability(status: str, bit: int) -> bool:
    """Tell from the text of /proc/PID/status whether a capability is in the bounding set."""
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(match and int(match[1], 16) >> bit & 1)


def has_swap(swaps: str) -> bool:
    """Tell from the text of /proc/swaps, which has a head line, whether anything is swapped to."""
    return len(swaps.splitlines()) > 1


def _has_feature(name: str) -> bool:
    if Path("/sys/module", name).exists() or (name in _TRACES and Path(_TRACES[name]).exists()):
        return True
    if name in Path("/proc/filesystems").read_text().split() or succeeds(["modprobe", "--quiet", name]):
        return True
    if name in ("veth", "vxlan", "ipip", "wireguard"):
        # Compiled in and without a trace in /sys: the kernel tells by making one, in a namespace of its own.
        options = {"vxlan": ["id", "1", "dstport", "0"], "ipip": ["local", "127.0.0.1"]}.get(name, [])
        return succeeds(["unshare", "--net", "ip", "link", "add", "probe", "type", name, *options])
    return False


def require_root() -> None:
    """Refuse to go on without root."""
    if os.geteuid() != 0:
        raise UserError("the lab needs root: it makes namespaces, mounts and machines", "run it as root (sudo)")


def complete_path() -> None:
    """Let the programs of an administrator be found, whatever PATH this was started with."""
    path = os.environ.get("PATH", os.defpath).split(":")
    os.environ["PATH"] = ":".join([*path, *(directory for directory in _SYSTEM_PATH if directory not in path)])


def host_packages() -> dict[str, str]:
    """Return {program: Debian package} of everything the host needs."""
    return dict(line.split() for line in _PROGRAMS.read_text().splitlines() if not line.startswith("#"))


def require_programs() -> None:
    """Refuse to go on when programs are missing, all of them named."""
    packages = host_packages()
    missing = [program for program in packages if not shutil.which(program)]
    if missing:
        names = sorted({packages[program] for program in missing})
        raise UserError(f"programs of the host are missing: {', '.join(missing)}", f"apt-get install {' '.join(names)}")


def require_space(directory: Path, needed: int, purpose: str) -> None:
    """Refuse to go on when the file system of `directory` has fewer than `needed` bytes free."""
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory} has {free / 2**30:.1f} GiB free, {purpose} needs {needed / 2**30:.1f} GiB",
            "free some space on that file system",
        )
