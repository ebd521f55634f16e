"""The files the daemon leaves for others: subnet.env and a CNI configuration list."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from flanneld.errors import FlanneldError
from flanneld.subnet.config import Network

_NAMES = {4: "FLANNEL_", 6: "FLANNEL_IPV6_"}
_LARGEST = 65536  # no file that is read here comes near it


class SubnetFile(NamedTuple):
    """The contents of subnet.env; networks and subnets by IP version, 4 first. `mtu` is that of the pods."""

    networks: Mapping[int, Network]
    subnets: Mapping[int, Network]
    mtu: int
    ip_masq: bool


def write_atomically(path: Path, text: str) -> bool:
    """Write a file of mode 0644, its directory 0755 when it is not there; never half-written.

    A file that holds `text` already is left alone. Tells whether it was written; raises FlanneldError, and then the
    old file is still there. Links are followed; what is no file is written to as it is, and so is what an open
    descriptor (/dev/stdout) leads to: to replace a file there would leave others with the old one.
    """
    try:
        descriptor = _descriptor(str(path))
        if descriptor is not None:
            with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
            return True
        if path.parts[:2] == ("/", "proc") or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")
            return True
        path = path.resolve()
        if _read(path) == text:
            return False
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # of a process that had the same number and was killed
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other, up to Python 3.12
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FlanneldError(f"{path} cannot be written: {reason}", "check the directory and its free space") from None
    return True


def _descriptor(path: str) -> Optional[int]:
    """Return the descriptor of this process that a path stands for."""
    match = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d{1,6})", path)
    return int(match[1]) if match else {"/dev/stdout": 1, "/dev/stderr": 2}.get(path)


def subnet_env(content: SubnetFile) -> str:
    """Return the text of subnet.env, the lines in the Go daemon's order.

    FLANNEL_SUBNET is the subnet's first usable address with its length. Only families that are enabled are there.
    """
    lines: List[str] = []
    for version, name in _NAMES.items():
        subnet = content.subnets.get(version)
        if subnet is not None:
            lines.append(f"{name}NETWORK={content.networks[version]}")
            lines.append(f"{name}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}")
    lines.append(f"FLANNEL_MTU={content.mtu}")
    lines.append(f"FLANNEL_IPMASQ={'true' if content.ip_masq else 'false'}")
    return "\n".join(lines) + "\n"


def parse_env(text: str) -> Dict[str, str]:
    """Return the NAME=value lines of an environment file; quotes around a value are taken off."""
    found: Dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name.strip(), re.ASCII):
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def read_env(path: Path) -> Dict[str, str]:
    """Return what an environment file sets, nothing when it is not there or cannot be read."""
    try:
        return parse_env(_read(path))
    except OSError:
        return {}


def previous_subnets(path: Path) -> Tuple[Network, ...]:
    """Return the subnets that an earlier run wrote, of each IP version at most one; what is malformed is passed over.

    Old versions of the Go daemon wrote several, separated by commas; the first one is that of this machine.
    """
    env = read_env(path)
    found: List[Network] = []
    for version, name in _NAMES.items():
        for text in env.get(f"{name}SUBNET", "").split(","):
            try:
                network = ipaddress.ip_interface(text.strip()).network
            except ValueError:
                continue
            if "/" in text and network.version == version:
                found.append(network)
                break
    return tuple(found)


def previous_networks(path: Path) -> Tuple[Network, ...]:
    """Return the networks that an earlier run wrote; what is unreadable is left out."""
    env = read_env(path)
    found: List[Network] = []
    for name in _NAMES.values():
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(env.get(f"{name}NETWORK", "")))
    return tuple(found)


def cni_conflist(content: SubnetFile) -> str:
    """Return a CNI configuration list for the bridge plugin: pods get addresses of every subnet on cni0.

    The bridge masquerades only when flanneld does not.
    """
    bridge: Dict[str, Any] = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": not content.ip_masq,
        "mtu": content.mtu,
        # isDefaultGateway brings the default routes; a second one in ipam makes the plugin fail.
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(content.subnets[version])}] for version in sorted(content.subnets)],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [bridge, portmap]}
    return json.dumps(document, indent=2) + "\n"


def _read(path: Path) -> str:
    """Return a file's text, empty when it is not there."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return ""
