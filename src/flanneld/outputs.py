"""The files the daemon leaves for others: subnet.env, Docker's options, a CNI configuration list."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional

from flanneld.config import Network
from flanneld.errors import FlanneldError


class SubnetFile(NamedTuple):
    """The contents of subnet.env. `mtu` is that of the tunnel device."""

    network: Network
    subnet: Network
    mtu: int
    ip_masq: bool


def write_atomically(path: Path, text: str) -> None:
    """Write a file of mode 0644, its directory 0755 when it is not there; never half-written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
            os.replace(temporary, path)  # noqa: PTH105 - the temporary name is a string
        except BaseException:
            os.unlink(temporary)  # noqa: PTH108 - as above
            raise
    except OSError as error:
        raise FlanneldError(f"{path} cannot be written: {error.strerror}") from None


def subnet_env(content: SubnetFile) -> str:
    """Return the text of subnet.env; FLANNEL_SUBNET is the subnet's first usable address with its length."""
    first = content.subnet.network_address + 1
    return (
        f"FLANNEL_NETWORK={content.network}\n"
        f"FLANNEL_SUBNET={first}/{content.subnet.prefixlen}\n"
        f"FLANNEL_MTU={content.mtu}\n"
        f"FLANNEL_IPMASQ={'true' if content.ip_masq else 'false'}\n"
    )


def parse_env(text: str) -> Dict[str, str]:
    """Return the NAME=value lines of an environment file; quotes around a value are taken off."""
    found: Dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def previous_subnet(path: Path) -> Optional[Network]:
    """Return the subnet that an earlier run wrote, None when there is none or it is unreadable."""
    try:
        value = parse_env(path.read_text()).get("FLANNEL_SUBNET", "")
        return ipaddress.IPv4Interface(value).network if value else None
    except (OSError, ValueError):
        return None


def cni_conflist(content: SubnetFile) -> str:
    """Return a CNI configuration list for the bridge plugin: pods get addresses of the subnet on cni0.

    The bridge masquerades only when flanneld does not.
    """
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": not content.ip_masq,
        "mtu": content.mtu,
        # isDefaultGateway brings the default route; a second one in ipam makes the plugin fail.
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(content.subnet)}]],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [bridge, portmap]}
    return json.dumps(document, indent=2) + "\n"


class DockerOptions(NamedTuple):
    """What mk-docker-opts is asked for."""

    env_file: Path
    output: Path
    key: str
    individual: bool
    combined: bool
    ip_masq: bool


def docker_options(options: DockerOptions, environ: Mapping[str, str]) -> str:
    """Return Docker's options from subnet.env, as mk-docker-opts.sh of the Go project writes them.

    DOCKER_OPT_* of the environment are taken along, an existing value of the key stays in front.
    """
    env = dict(environ)
    if options.env_file.is_file():
        env.update(parse_env(options.env_file.read_text()))
    found = {name: value for name, value in env.items() if name.startswith("DOCKER_OPT_")}
    if env.get("FLANNEL_SUBNET"):
        found["DOCKER_OPT_BIP"] = f"--bip={env['FLANNEL_SUBNET']}"
    if env.get("FLANNEL_MTU"):
        found["DOCKER_OPT_MTU"] = f"--mtu={env['FLANNEL_MTU']}"
    masquerade = env.get("FLANNEL_IPMASQ", "")
    if masquerade and options.ip_masq:
        if masquerade not in {"true", "false"}:
            raise FlanneldError(f"Invalid value of FLANNEL_IPMASQ: {masquerade}")
        found["DOCKER_OPT_IPMASQ"] = f"--ip-masq={'false' if masquerade == 'true' else 'true'}"
    lines: List[str] = []
    if options.individual:
        lines += [f'{name}="{found[name]}"' for name in sorted(found)]
    if options.combined:
        value = env.get(options.key, "") + "".join(f" {found[name]}" for name in sorted(found))
        if env.get(options.key) and found:
            value = env[options.key] + " " + "".join(f" {found[name]}" for name in sorted(found))
        lines.append(f'{options.key}="{value}"')
    return "\n".join(lines) + "\n"
