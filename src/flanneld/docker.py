"""What Docker needs of flannel: the options of its daemon from subnet.env, and no docker0 of another network.

`mk-docker-opts` and `remove-docker0` are run before or beside the daemon, under the names that unit files know them by.
"""

from __future__ import annotations

import fcntl
import getopt
import ipaddress
import socket
import struct
import sys
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Sequence

from flanneld.errors import FlanneldError, NetworkError, UsageError
from flanneld.outputs import previous_subnets, read_env, write_atomically

OPTIONS_USAGE = """\
mk-docker-opts [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Write Docker daemon options from the subnet that flanneld leased.
OPTIONS:
  -f  file of flanneld to read (default /run/flannel/subnet.env)
  -d  file to write (default /run/docker_opts.env)
  -i  one variable per option
  -c  all options in one variable (without -i and -c: both)
  -m  leave out --ip-masq
  -k  name of the combined variable (default DOCKER_OPTS)
"""

REMOVE_USAGE = """\
remove-docker0 [-f FLANNEL-ENV-FILE] [-force]

Remove the bridge docker0 that Docker made before it knew flannel's subnet, so that Docker makes it anew in there.
It stays where it is in use: then the next restart of Docker changes its address.
OPTIONS:
  -f      file of flanneld to read (default /run/flannel/subnet.env)
  -force  remove it even if it is in use; containers lose their network
"""

_ENV_FILE = "/run/flannel/subnet.env"
_ROUTES = Path("/proc/net/route")
_BRIDGE = "docker0"

# linux/sockios.h and linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCBRDELBR = 0x89A1
_IFF_UP = 1
_IFREQ = 40  # bytes of struct ifreq; its name takes the first 16


class DockerOptions(NamedTuple):
    """What mk-docker-opts is asked for."""

    env_file: Path
    output: Path
    key: str
    individual: bool
    combined: bool
    ip_masq: bool


def mk_docker_opts(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Write Docker's options as mk-docker-opts.sh does.

    Returns the exit status: 1 for the usage, and when the machine has a route to its own subnet (as there, the file
    is written nevertheless). Raises FlanneldError.
    """
    try:
        pairs, rest = getopt.getopt(list(words), "f:d:icmk:h?")
    except getopt.GetoptError as error:
        sys.stderr.write(f"mk-docker-opts: {error}\n{OPTIONS_USAGE}")
        return 1
    given = dict(pairs)
    if rest or "-h" in given or "-?" in given:
        sys.stderr.write(OPTIONS_USAGE)
        return 1
    individual, combined = "-i" in given, "-c" in given
    wanted = DockerOptions(
        Path(given.get("-f", _ENV_FILE)),
        Path(given.get("-d", "/run/docker_opts.env")),
        given.get("-k", "DOCKER_OPTS"),
        individual or not combined,
        combined or not individual,
        "-m" not in given,
    )
    write_atomically(wanted.output, docker_options(wanted, environ))
    route = foreign_route(wanted.env_file)
    if route:
        sys.stderr.write(f"Your routing table already contains the subnet: {route}\n")
        return 1
    return 0


def docker_options(options: DockerOptions, environ: Mapping[str, str]) -> str:
    """Return Docker's options from subnet.env, as mk-docker-opts.sh of the Go project writes them.

    DOCKER_OPT_* of the environment are taken along, an existing value of the key stays in front.
    """
    env = {**environ, **read_env(options.env_file)}
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
        value = "".join(f" {found[name]}" for name in sorted(found))
        existing = env.get(options.key, "")
        if existing:
            value = f"{existing} {value}" if value else existing
        lines.append(f'{options.key}="{value}"')
    return "".join(f"{line}\n" for line in lines)


def foreign_route(env_file: Path, table: Path = _ROUTES) -> str:
    """Return the route through a gateway to the machine's own IPv4 subnet in words, empty when there is none.

    With it, packets for the machine's own containers leave the machine. `table`: the kernel's IPv4 routes, addresses
    in hexadecimal, in the byte order of the machine.
    """
    own = next((subnet for subnet in previous_subnets(env_file) if subnet.version == 4), None)
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return ""
    for row in rows:
        if len(row) < 8 or own is None:
            continue
        destination, gateway, mask = (_address(text) for text in (row[1], row[2], row[7]))
        if int(gateway) and destination == own.network_address and mask == own.netmask:
            return f"{own} via {gateway} dev {row[0]}"
    return ""


def _address(text: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def remove_docker0(words: Sequence[str], _environ: Mapping[str, str]) -> int:
    """Remove docker0 where it is safe, and say what was done or why not.

    Returns 0 also when it stays because it is in use: in a unit file this runs before flanneld, which must start
    then. Raises UsageError, and NetworkError when the kernel refuses.
    """
    env_file, force = Path(_ENV_FILE), False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in {"-h", "-help", "--help"}:
            sys.stderr.write(REMOVE_USAGE)
            return 0
        if word in {"-force", "--force"}:
            force = True
        elif word == "-f" and rest:
            env_file = Path(rest.pop(0))
        else:
            raise UsageError(f"remove-docker0 does not know {word!r}", "remove-docker0 -h lists the options")
    there = Path("/sys/class/net", _BRIDGE)
    if not there.exists():
        return 0
    if not (there / "bridge").is_dir():
        reason = "it is not a bridge, so it is not Docker's"
    else:
        reason = "" if force else _use(there, env_file)
    if reason:
        sys.stderr.write(f"{_BRIDGE} stays: {reason}\n")
        return 0
    _delete_bridge(_BRIDGE)
    sys.stderr.write(f"{_BRIDGE} removed\n")
    return 0


def _use(there: Path, env_file: Path) -> str:
    """Return what docker0, a directory in /sys/class/net, is used for; empty when for nothing."""
    address = _first_address(_BRIDGE)
    subnets = previous_subnets(env_file)
    if address is not None and any(address in subnet for subnet in subnets if subnet.version == 4):
        return f"its address {address} is in flannel's subnet already"
    ports = sorted(one.name for one in (there / "brif").iterdir())
    if ports:
        return f"containers are attached to it ({', '.join(ports)}); stop them, or restart Docker after flanneld"
    process = _docker_process()
    if process:
        return f"dockerd runs (process {process}); restart it after flanneld, it changes the address then"
    return ""


def _docker_process() -> Optional[int]:
    """Return a dockerd in this network namespace."""
    for entry in Path("/proc").iterdir():
        try:
            named = entry.name.isdigit() and (entry / "comm").read_text().strip() == "dockerd"
            if named and (entry / "ns/net").samefile("/proc/self/ns/net"):
                return int(entry.name)
        except OSError:
            continue  # it has ended meanwhile
    return None


def _first_address(interface: str) -> Optional[ipaddress.IPv4Address]:
    try:
        answer = _ask(_SIOCGIFADDR, interface)
    except OSError:
        return None  # it has none
    return ipaddress.IPv4Address(answer[20:24])


def _delete_bridge(name: str) -> None:
    """Delete a bridge; the kernel takes only bridges here, and only those that are down."""
    try:
        flags = struct.unpack("=H", _ask(_SIOCGIFFLAGS, name)[16:18])[0]
        _ask(_SIOCSIFFLAGS, name, struct.pack("=H", flags & ~_IFF_UP))
        try:
            with _socket() as sock:
                fcntl.ioctl(sock, _SIOCBRDELBR, _named(name)[:16])
        except OSError:
            _ask(_SIOCSIFFLAGS, name, struct.pack("=H", flags))
            raise
    except OSError as error:
        hint = "run it as root" if error.errno in {1, 13} else ""
        raise NetworkError(f"{name} cannot be removed: {error.strerror}", hint) from None


def _ask(request: int, name: str, value: bytes = b"") -> bytes:
    with _socket() as sock:
        return fcntl.ioctl(sock, request, _named(name, value))


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _named(name: str, value: bytes = b"") -> bytes:
    return (name.encode().ljust(16, b"\0") + value).ljust(_IFREQ, b"\0")
