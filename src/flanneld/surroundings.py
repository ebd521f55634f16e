"""What else on a machine bears on the overlay: settings of the kernel, firewalls, and managers of interfaces.

Everything is read from files below `root`, so that any tree of files can stand for a machine.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "FAILED", "skipped"

Sections = Sequence[Tuple[str, str, str]]
"""The settings of a file of systemd in order: section, key, value."""

_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_BRIDGE = {4: "iptables", 6: "ip6tables"}


class Finding(NamedTuple):
    """One thing that was looked at: its level, what was seen, and what to do about it."""

    level: str
    what: str
    seen: str
    todo: str = ""


def forwarding(root: Path, versions: Iterable[int]) -> List[Finding]:
    """Judge whether the kernel passes packets on between the pods and the other machines."""
    found = []
    for version in versions:
        name = _FORWARDING[version]
        value = _sysctl(root, name)
        if value == "1":
            found.append(Finding(OK, "forwarding", f"{name} is 1"))
        else:
            todo = f"`sysctl -w {name}=1`, and {name}=1 in /etc/sysctl.d/ for the next start"
            found.append(Finding(FAILED, "forwarding", f"{name} is {value or 'not there'}", todo))
    return found


def bridge_netfilter(root: Path, versions: Iterable[int], *, nftables: bool) -> List[Finding]:
    """Judge whether packets between pods of this machine go through iptables, which services of Kubernetes need."""
    if nftables:
        return [Finding(SKIPPED, "br_netfilter", "not needed with EnableNFTables")]
    found = []
    for version in versions:
        name = f"net.bridge.bridge-nf-call-{_BRIDGE[version]}"
        value = _sysctl(root, name)
        if value == "1":
            found.append(Finding(OK, "br_netfilter", f"{name} is 1"))
        elif value:
            found.append(Finding(WARNING, "br_netfilter", f"{name} is {value}", f"`sysctl -w {name}=1`"))
        else:
            todo = "`modprobe br_netfilter`, and br_netfilter in /etc/modules-load.d/ for the next start"
            found.append(Finding(FAILED, "br_netfilter", f"{name} is not there: the module is not loaded", todo))
    return found


def reverse_path(root: Path, devices: Iterable[str], *, several_ways: bool) -> List[Finding]:
    """Judge whether the kernel drops packets that come in by another interface than the answer would go out by.

    `several_ways`: packets of one machine may come in by more than one.
    """
    strict = []
    for device in devices:
        values = [_sysctl(root, f"net.ipv4.conf.{one}.rp_filter") for one in ("all", device)]
        # The stricter of the two holds, where 1 is strict and 2 is loose (ip-sysctl of the kernel: the maximum).
        if max((int(value) for value in values if value.isdigit()), default=0) == 1:
            strict.append(device)
    if not strict:
        return [Finding(OK, "rp_filter", "not strict")]
    seen = f"strict (1) on {', '.join(strict)}"
    if not several_ways:
        return [Finding(OK, "rp_filter", f"{seen}, and there is one way only")]
    commands = "; ".join(f"sysctl -w net.ipv4.conf.{device}.rp_filter=2" for device in strict)
    return [Finding(WARNING, "rp_filter", f"{seen}: what comes by another way is dropped", f"`{commands}`")]


def firewalls(root: Path, port: int) -> List[Finding]:
    """Judge firewalls that are managed by programs of their own; `port`: the backend's, 0 = none."""
    found = []
    if "firewalld" in processes(root):
        ports = f"`firewall-cmd --permanent --add-port={port}/udp`, " if port else ""
        todo = (
            f"unless done: {ports}`firewall-cmd --permanent --zone=trusted --add-source=` the pod network,"
            " `firewall-cmd --reload`"
        )
        found.append(Finding(WARNING, "firewall", "firewalld is active", todo))
    ufw = _read(root / "etc/ufw/ufw.conf")
    if re.search(r"^\s*ENABLED\s*=\s*yes\b", ufw, re.MULTILINE | re.IGNORECASE):
        ports = f"`ufw allow {port}/udp`, " if port else ""
        todo = f"unless done: {ports}and `ufw route allow` for the pod network"
        found.append(Finding(WARNING, "firewall", "ufw is active", todo))
    return found


def managers(root: Path, devices: Sequence[str]) -> List[Finding]:
    """Judge whether a manager of interfaces believes that the overlay's devices are its own."""
    running = processes(root)
    found: List[Finding] = []
    if "NetworkManager" in running and not _left_by_network_manager(root):
        todo = (
            "write `[keyfile]` and `unmanaged-devices=interface-name:flannel*;interface-name:cni*` to"
            " /etc/NetworkManager/conf.d/flannel.conf, then `systemctl reload NetworkManager`"
        )
        found.append(Finding(WARNING, "managers", "NetworkManager runs and is not told to leave flannel* alone", todo))
    if "systemd-network" in running:  # the kernel keeps 15 characters of a process's name
        for device in devices:
            file = matching(_units(root, "network"), "Name", device)
            if file is not None and ("Link", "Unmanaged", "yes") not in file[1]:
                todo = (
                    "write `[Match]`, `Name=flannel*`, `[Link]`, `Unmanaged=yes` to"
                    " /etc/systemd/network/05-flannel.network, then `networkctl reload`"
                )
                seen = f"systemd-networkd manages {device} by {file[0]}"
                found.append(Finding(WARNING, "managers", seen, todo))
    for device in devices:
        file = matching(_units(root, "link"), "OriginalName", device)
        # A MACAddressPolicy does no harm: the daemon gives the MAC at creation, which udev respects.
        if file is not None and any((section, key) == ("Link", "MACAddress") for section, key, _ in file[1]):
            seen = f"{file[0]} changes the MAC of {device}, by which the other machines know it"
            found.append(Finding(WARNING, "managers", seen, "take MACAddress= out, or let the file not match flannel*"))
    return found or [Finding(OK, "managers", "nobody else manages the devices")]


def processes(root: Path) -> Set[str]:
    """Return the names of all processes, as the kernel keeps them: 15 characters."""
    return {_read(file).strip() for file in (root / "proc").glob("[0-9]*/comm")}


def matching(units: Sequence[Tuple[str, Sections]], key: str, device: str) -> Optional[Tuple[str, Sections]]:
    """Return the first file of systemd that applies to a device: a vxlan or a tun, which nothing but `key` tells.

    As systemd does it, the first file in the order of names that matches is the only one that counts.
    """
    return next((unit for unit in units if _applies(unit[1], key, device)), None)


def _applies(sections: Sections, key: str, device: str) -> bool:
    matches = [(name, value) for section, name, value in sections if section == "Match"]
    if not matches:
        return False
    for name, value in matches:
        patterns = value.split()
        negated = bool(patterns) and patterns[0].startswith("!")
        patterns = [patterns[0].lstrip("!"), *patterns[1:]] if patterns else []
        if name == key:
            hit = any(fnmatch.fnmatchcase(device, pattern) for pattern in patterns)
        elif name == "Type":
            hit = "ether" in patterns and "." in device  # a vxlan looks like Ethernet, a tun does not
        else:
            return False
        if hit == negated:
            return False
    return True


def _units(root: Path, suffix: str) -> List[Tuple[str, Sections]]:
    files: Dict[str, Path] = {}
    for directory in ("etc", "run", "usr/lib", "lib"):
        for file in (root / directory / "systemd/network").glob(f"*.{suffix}"):
            files.setdefault(file.name, file)
    return [(str(files[name]), _sections(_read(files[name]))) for name in sorted(files)]


def _sections(text: str) -> Sections:
    found: List[Tuple[str, str, str]] = []
    section = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped[1:-1]
        elif "=" in stripped and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            value = value.strip()
            switch = {"true": "yes", "1": "yes", "on": "yes"} if key.strip() == "Unmanaged" else {}
            found.append((section, key.strip(), switch.get(value, value)))
    return found


def _left_by_network_manager(root: Path) -> bool:
    files = [root / "etc/NetworkManager/NetworkManager.conf"]
    for directory in ("etc", "run", "usr/lib"):
        files += (root / directory / "NetworkManager/conf.d").glob("*.conf")
    pattern = re.compile(r"^\s*(?:unmanaged-devices|match-device)\s*=.*flannel", re.MULTILINE)
    return any(pattern.search(_read(file)) for file in files)


def _sysctl(root: Path, name: str) -> str:
    # A dot in the name of an interface is a part of it: net.ipv4.conf.flannel.1.rp_filter.
    match = re.fullmatch(r"(net\.ipv[46]\.conf)\.(.+)\.(\w+)", name)
    parts = [*match.group(1).split("."), match.group(2), match.group(3)] if match else name.split(".")
    return _read(root.joinpath("proc/sys", *parts)).strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
