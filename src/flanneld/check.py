"""`flanneld check`: can this machine do what a backend needs, and do the other machines answer?

Exit status: 0 nothing failed, 1 something did.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import console, explain, state
from flanneld import dataplane as dp
from flanneld.backend.base import Backend, Existing, Underlay
from flanneld.backend.registry import backend_class, make_backend
from flanneld.errors import ConfigError, FlanneldError, NetworkError, UsageError
from flanneld.firewall import rules
from flanneld.flags import Flag, Parsed, parse, usage
from flanneld.net import interfaces, trial
from flanneld.net.holders import holders
from flanneld.net.kernel import Kernel
from flanneld.options import InterfaceOptions, file_name, interface_options
from flanneld.peercheck import peers
from flanneld.subnet.config import NetworkConfig, flag, number, parse_config
from flanneld.subnet.lease import Attributes, Lease
from flanneld.surroundings import (
    FAILED,
    OK,
    SKIPPED,
    WARNING,
    Finding,
    bridge_netfilter,
    firewalls,
    forwarding,
    managers,
    reverse_path,
)

FLAGS: Tuple[Flag, ...] = (
    Flag("backend", "str", "", "backend to check for; without it that of the configuration"),
    Flag("config", "str", "", "file with the network configuration; without it that of the running daemon"),
    Flag("iface", "list", "", "interface, by name or address, as for the daemon"),
    Flag("iface-regex", "list", "", "pattern of interfaces, as for the daemon"),
    Flag("iface-can-reach", "str", "", "address that the interface leads to, as for the daemon"),
    Flag("public-ip", "str", "", "IPv4 address announced to the other machines"),
    Flag("public-ipv6", "str", "", "IPv6 address announced to the other machines"),
    Flag(
        "subnet-file", "str", state.DEFAULT_SUBNET_FILE, "file the leased subnet is written to; the socket is beside it"
    ),
    Flag("probe", "bool", "true", "ask the other machines whether they are there"),
    Flag("json", "bool", "false", "print JSON"),
)

_PLACEHOLDER = "10.244.0.0/16"
_COLOURS = {OK: "green", WARNING: "yellow", FAILED: "red", SKIPPED: "yellow"}


class Subject(NamedTuple):
    """What is checked. `network_known`: the configuration's network is a real one, not a placeholder."""

    config: NetworkConfig
    network_known: bool
    options: InterfaceOptions
    running: Optional[state.State]
    root: Path = Path("/")


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print what is found; returns the exit status. Raises FlanneldError."""
    parsed = parse(FLAGS, words, environ)
    if parsed.help:
        console.write(["Usage: flanneld check [FLAG]...", usage(FLAGS).rstrip()])
        return 0
    console.quiet()
    subject, found = _subject(parsed)
    found += examine(subject)
    if parsed.truth("probe"):
        found += peers(subject.config, subject.running)
    failed = any(one.level == FAILED for one in found)
    if parsed.truth("json"):
        console.write_json({"ok": not failed, "findings": [one._asdict() for one in found]})
    else:
        console.write(lines(found, subject.config.backend_type))
    return 1 if failed else 0


def lines(found: Sequence[Finding], backend: str) -> List[str]:
    """Return the lines for people."""
    width = max(len(one.what) for one in found)
    shown = []
    for one in found:
        level = console.coloured(one.level.ljust(7), _COLOURS[one.level])
        shown.append(f"{level}  {one.what.ljust(width)}  {one.seen}")
        if one.todo:
            shown.append(f"{'':7}  {'':{width}}  -> {one.todo}")
    counts = {level: sum(1 for one in found if one.level == level) for level in (FAILED, WARNING)}
    if counts[FAILED]:
        verdict = f"{backend} does not work here as it is: {counts[FAILED]} FAILED"
    else:
        verdict = f"This machine can do {backend}"
    warnings = counts[WARNING]
    return [*shown, "", f"{verdict}{f', {warnings} to look at' if warnings else ''}."]


def examine(subject: Subject) -> List[Finding]:
    """Look at this machine."""
    root, config, running = subject.root, subject.config, subject.running
    versions = sorted(config.networks)
    found = [_running(running), *_privileges()]
    kernel = Kernel()
    try:
        machine = interfaces.look(kernel, subject.options, config.networks)
        underlay = interfaces.choose(machine, subject.options, config.networks)
    except (NetworkError, OSError) as error:
        return [*found, Finding(FAILED, "interface", *_said(error)), *forwarding(root, versions)]
    found.append(_interface(subject, underlay))
    wanted: Optional[dp.Desired] = None
    try:
        backend, wanted = _backend(subject, underlay)
    except (ConfigError, NetworkError) as error:
        found.append(Finding(FAILED, "backend", *_said(error)))
    else:
        found += _mtu(config, backend, underlay)
    names = [one.name for one in wanted.devices] if wanted is not None else []
    if config.backend_type == "udp" and not names:
        names = ["flannel0"]
    port = _port(config, wanted)
    found += _devices(kernel, config, wanted)
    found += _ports(kernel, port, running, config.backend_type)
    found += rules(config, port, ready=running is not None and not running.trouble)
    found += bridge_netfilter(root, versions, nftables=config.nftables)
    found += forwarding(root, versions)
    defaults = {one.oif for one in machine.routes if one.destination.endswith("/0")}
    direct = config.backend_type == "vxlan" and flag(config.backend, "DirectRouting")
    found += reverse_path(root, [underlay.name, *names], several_ways=direct or len(defaults) > 1)
    found += firewalls(root, port)
    if subject.network_known:
        own = running.own if running is not None else ()
        desired = running.desired if running is not None else None
        made = [(one.destination, one.gateway) for one in desired.routes.values()] if desired is not None else []
        overlaps = interfaces.overlapping(machine, config.networks, own, [*names, *_ours(running)], made)
        found += [Finding(WARNING, "routes", one.what, one.todo) for one in overlaps]
        if not overlaps:
            found.append(Finding(OK, "routes", "no other network of this machine overlaps the pod network"))
    return found + managers(root, names)


def _subject(parsed: Parsed) -> Tuple[Subject, List[Finding]]:
    subnet_file = file_name(parsed, "subnet-file")
    running: Optional[state.State] = None
    found: List[Finding] = []
    try:
        running = state.ask(subnet_file)[0]
    except state.NotRunningError:
        pass
    except FlanneldError as error:
        found.append(Finding(WARNING, "flanneld", *_said(error)))
    known = True
    if parsed.text("config"):
        config = _read_config(Path(parsed.text("config")))
    elif running is not None and running.config is not None:
        config = running.config
    elif parsed.text("backend"):
        known = False
        config = parse_config(json.dumps({"Network": _PLACEHOLDER, "Backend": {"Type": parsed.text("backend")}}))
    elif running is not None:
        raise UsageError(
            f"flanneld runs, but waits: {running.trouble}",
            "it has no configuration yet; say what to check for, with -backend=vxlan or -config=FILE",
        )
    else:
        raise UsageError(
            "there is no daemon to take the configuration from",
            "say what to check for, with -backend=vxlan or -config=FILE",
        )
    asked = parsed.text("backend").lower()
    if asked and asked != config.backend_type:
        config = config._replace(backend_type=asked, backend={"type": asked})
    backend_class(config.backend_type)  # an unknown one is the user's mistake, not the machine's fault
    return Subject(config, known, _options(parsed, running), running), found


def _read_config(file: Path) -> NetworkConfig:
    try:
        return parse_config(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"-config: {file} cannot be read: {reason}") from None


def _options(parsed: Parsed, running: Optional[state.State]) -> InterfaceOptions:
    options = interface_options(parsed)
    if options == InterfaceOptions() and running is not None and running.interface:
        return InterfaceOptions((running.interface,), public=running.announced)
    return options


def _said(error: Exception) -> Tuple[str, str]:
    if isinstance(error, FlanneldError):
        return error.message, error.hint
    return str(error), ""


def _running(running: Optional[state.State]) -> Finding:
    if running is None:
        return Finding(SKIPPED, "flanneld", "does not run here")
    if running.trouble:
        return Finding(FAILED, "flanneld", f"is not ready: {running.trouble}", "`flanneld status` says more")
    return Finding(OK, "flanneld", f"{running.version} runs and is ready")


def _privileges() -> List[Finding]:
    if trial.may_administer():
        return [Finding(OK, "privileges", "NET_ADMIN is there")]
    who = "root without the capability NET_ADMIN" if os.geteuid() == 0 else "not root"
    return [Finding(FAILED, "privileges", f"this is {who}: what follows is not all that can be found", "use sudo")]


def _interface(subject: Subject, underlay: Underlay) -> Finding:
    options, running = subject.options, subject.running
    if running is not None and options.names == (running.interface,):
        why = "the daemon uses it"
    elif options.names or options.patterns:
        why = "asked for by a flag"
    elif options.can_reach:
        why = f"it leads to {options.can_reach}"
    elif options.public:
        why = "it has the address of -public-ip"
    else:
        why = "it has the default route; -iface chooses another"
    addresses = " and ".join(underlay.addresses.values())
    return Finding(OK, "interface", f"{underlay.name} with {addresses}, MTU {underlay.mtu} ({why})")


def _backend(subject: Subject, underlay: Underlay) -> Tuple[Backend, dp.Desired]:
    """Return the backend, and the overlay of a machine that knows no other."""
    backend = make_backend(subject.config, underlay)
    if backend.type != "extension":  # whose preparation runs commands: looking must change nothing
        backend.prepare(Existing({}, {}, {**underlay.addresses, **subject.options.public}))
    own = tuple(next(pool.subnets()) for pool in subject.config.pools.values())
    return backend, backend.desired(Lease(own, Attributes("")), ())


def _mtu(config: NetworkConfig, backend: Backend, underlay: Underlay) -> List[Finding]:
    asked = number(config.backend, "MTU", 0, 0, 65535)
    if asked > underlay.mtu:
        seen = f"Backend.MTU is {asked}, more than the {underlay.mtu} of {underlay.name}: larger packets are lost"
        return [
            Finding(
                FAILED, "MTU", seen, f"set Backend.MTU to {underlay.mtu} or less, or that of {underlay.name} higher"
            )
        ]
    return [Finding(OK, "MTU", f"{underlay.mtu} on {underlay.name}, {backend.mtu} for pods")]


def _port(config: NetworkConfig, wanted: Optional[dp.Desired]) -> int:
    for device in wanted.devices if wanted is not None else ():
        if isinstance(device, dp.Vxlan):
            return device.port
    return explain.udp_port(config)


def _devices(kernel: Kernel, config: NetworkConfig, wanted: Optional[dp.Desired]) -> List[Finding]:
    found = []
    for device in wanted.devices if wanted is not None else ():
        if isinstance(device, dp.Vxlan):
            why = trial.vxlan(kernel, device)
            todo = "is there another vxlan device with this port, or a process? else `modprobe vxlan`"
            seen = f"vxlan over {device.local}"
            found.append(
                Finding(FAILED, "device", f"{seen}: {why}", todo)
                if why
                else Finding(OK, "device", f"{seen} can be made")
            )
    if config.backend_type == "udp":
        why = trial.tun()
        todo = "`modprobe tun`; in a container, give it /dev/net/tun and NET_ADMIN"
        found.append(Finding(FAILED, "device", why, todo) if why else Finding(OK, "device", "TUN can be made"))
    return found or [Finding(SKIPPED, "device", f"the {config.backend_type} backend needs none")]


def _ports(kernel: Kernel, port: int, running: Optional[state.State], backend: str) -> List[Finding]:
    if not port:
        return []
    what = f"UDP {port}"
    there = holders(port)
    tunnels = [one.name for one in kernel.links() if one.found.kind == "vxlan" and one.found.port == port]
    processes = [one for one in there if one.pid and not _is_ours(one.pid, running)]
    if processes:
        seen = f"held by {', '.join(map(str, processes))}"
        return [Finding(FAILED, what, seen, "stop it, or set Backend.Port to another on all machines")]
    foreign = [one for one in tunnels if not one.startswith("flannel")]
    if foreign:
        return [
            Finding(WARNING, what, f"{', '.join(foreign)} uses it, too", "give the VNIs of the two to no other network")
        ]
    if backend == "udp" and tunnels:
        return [Finding(FAILED, what, f"held by {', '.join(tunnels)}", "set Backend.Port to another on all machines")]
    return [Finding(OK, what, f"held by {', '.join(tunnels)}" if tunnels else "held by flanneld" if there else "free")]


def _is_ours(pid: int, running: Optional[state.State]) -> bool:
    """Tell whether a process is the daemon, or a child of its."""
    if running is None:
        return False
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        parent = 0
    return running.pid in {pid, parent}


def _ours(running: Optional[state.State]) -> List[str]:
    return [one.name for one in running.desired.devices] if running is not None and running.desired is not None else []
