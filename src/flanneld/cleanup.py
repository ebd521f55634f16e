"""`flanneld cleanup`: removes what flanneld, or a Go daemon, has left on this machine.

What belongs to a daemon is told by the network in its subnet file; the lease is not touched. Exit status: 0 nothing
is left, 1 something is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import console, record, state
from flanneld import dataplane as dp
from flanneld.errors import FlanneldError, RulesError
from flanneld.flags import Flag, parse, usage
from flanneld.net import trial, wire
from flanneld.net.kernel import Kernel
from flanneld.options import file_name
from flanneld.overlay import BLACKHOLE_PRIORITY
from flanneld.rules.command import run as run_program
from flanneld.rules.engine import make_rules
from flanneld.rules.spec import RuleSpec

FLAGS: Tuple[Flag, ...] = (
    Flag("subnet-file", "str", state.DEFAULT_SUBNET_FILE, "file that the leased subnet was written to"),
    Flag("cni-conf", "str", "", "CNI configuration list to remove, too"),
    Flag("all", "bool", "false", "remove the devices and rules of every network, with or without a subnet file"),
    Flag("dry-run", "bool", "false", "only say what would be removed"),
    Flag("force", "bool", "false", "also while flanneld runs"),
)

_KINDS: Tuple[Tuple[str, str], ...] = (
    (r"flannel\.(\d+)", "vxlan"),
    (r"flannel-v6\.(\d+)", "vxlan"),
    (r"flannel\d+", "tun"),
    (r"flannel-wg(?:-v6)?", "wireguard"),
    (r"flannel\.ipip", "ipip"),
    (trial.NAME, "vxlan"),
)
"""Names of devices and what kind they must be of; a number in brackets must be the VNI. The last but two are those of
Go daemons' backends only, the last one is left by a `check` that was killed."""

_DOCKER_OPTIONS = Path("/run/docker_opts.env")  # what mk-docker-opts writes, unless told otherwise
_CNI_CONF = Path("/etc/cni/net.d/10-flannel.conflist")

_RULE_PROGRAMS = ("iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft")


class Traces(NamedTuple):
    """What is to go; `left`: in words what looks like flannel's and stays."""

    devices: Tuple[str, ...] = ()
    routes: Tuple[dp.Route, ...] = ()
    blackholes: Tuple[Tuple[str, int], ...] = ()
    left: Tuple[str, ...] = ()


class _Report:
    """Collects what was removed and what could not be."""

    def __init__(self, *, dry: bool) -> None:
        self._verb = "would remove" if dry else "removed"
        self.removed = 0
        self.failed = 0

    def gone(self, what: str) -> None:
        self.removed += 1
        console.write([f"{self._verb} {what}"])

    def told(self, lines: Sequence[str]) -> None:
        """Take over what others have removed and put into words."""
        self.removed += len(lines)
        console.write(lines)

    def failure(self, text: str) -> None:
        self.failed += 1
        console.write([console.coloured(f"FAILED: {text}", "red")])


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Remove the traces, and print each; returns the exit status. Raises FlanneldError."""
    parsed = parse(FLAGS, words, environ)
    if parsed.help:
        console.write(["Usage: flanneld cleanup [FLAG]...", usage(FLAGS).rstrip()])
        return 0
    console.quiet()
    subnet_file, everything, dry = file_name(parsed, "subnet-file"), parsed.truth("all"), parsed.truth("dry-run")
    cni_conf = file_name(parsed, "cni-conf") if parsed.text("cni-conf") else None
    if not trial.may_administer():
        raise FlanneldError("cleanup needs the capability NET_ADMIN", "use sudo")
    if not parsed.truth("force") and not dry:
        _refuse_beside_daemon(subnet_file)
    env = state.read_env(subnet_file)
    report, kernel = _Report(dry=dry), Kernel()
    made = record.read(subnet_file) or frozenset()
    traces = find(kernel, env or state.Env({}, {}), made, everything=everything)
    _remove_network(kernel, traces, report, dry=dry)
    _remove_rules(env, report, everything=everything, dry=dry)
    _remove_files(subnet_file, cni_conf, env, report, dry=dry)
    others = [] if dry else [f"{one}, of another network (-all removes them, too)" for one in rules_there()]
    if cni_conf != _CNI_CONF and _CNI_CONF.exists():
        others.append(f"{_CNI_CONF} (-cni-conf={_CNI_CONF} removes it, too)")
    lines = [f"left: {one}" for one in (*traces.left, *others)]
    if not report.removed and not report.failed:
        lines.append(f"nothing{' else' if lines else ''} of flannel is left on this machine")
    elif env is not None and not dry:
        lines.append("The lease in etcd stays: it expires by itself, within 24 hours of its last renewal.")
    console.write(lines)
    return 1 if report.failed else 0


def find(kernel: Kernel, env: state.Env, made: record.Made, *, everything: bool) -> Traces:
    """Return what a daemon with this subnet file and this record has left in the kernel's network."""
    links, addresses = kernel.links(), kernel.addresses()
    routes = [one for version in (4, 6) for one in kernel.routes(version)]
    return traces_of(links, addresses, routes, env, made, everything=everything)


def traces_of(
    links: Sequence[wire.Link],
    addresses: Iterable[wire.Address],
    routes: Iterable[wire.RouteEntry],
    env: state.Env,
    made: record.Made = frozenset(),
    *,
    everything: bool,
) -> Traces:
    """Tell what is flannel's. `everything`: of whatever network, and routes that nobody has recorded. Pure."""
    own = {link.ifindex: [one.address for one in addresses if one.ifindex == link.ifindex] for link in links}
    devices: List[str] = []
    left: List[str] = []
    for link in links:
        if not _looks_like_ours(link):
            continue
        inside = any(dp.contains(network, one) for network in env.networks.values() for one in own[link.ifindex])
        if everything or inside or link.name == trial.NAME:
            devices.append(link.name)
        else:
            networks = " and ".join(map(str, env.networks.values()))
            why = f"it has no address of {networks}" if networks else "no subnet file names its network"
            left.append(f"{link.name}: {why} (-all removes it, too)")
    names = {link.ifindex: link.name for link in links}
    found, blackholes = _routes(routes, names, env, devices)
    gone = found if everything else [one for one in found if (one.destination, one.gateway) in made or one.onlink]
    left += [f"{one}, by whomever it was made (-all removes it, too)" for one in found if one not in gone]
    return Traces(tuple(devices), tuple(gone), blackholes, tuple(left))


def _routes(
    routes: Iterable[wire.RouteEntry], names: Mapping[int, str], env: state.Env, devices: Sequence[str]
) -> Tuple[List[dp.Route], Tuple[Tuple[str, int], ...]]:
    """Return the routes that have the form of flannel's, and the blackholes that are."""
    lengths = {version: subnet.prefixlen for version, subnet in env.subnets.items()}
    subnets = set(map(str, env.subnets.values()))
    found: List[dp.Route] = []
    blackholes: List[Tuple[str, int]] = []
    for one in routes:
        device = names.get(one.oif, "")
        if one.kind == wire.BLACKHOLE:
            network = env.networks.get(one.version)
            within = network is not None and dp.within(ipaddress.ip_network(one.destination), network)
            by_us = one.priority == BLACKHOLE_PRIORITY or one.destination in subnets
            if within and by_us and one.protocol == wire.BOOT:
                blackholes.append((one.destination, one.priority))
            continue
        if one.kind != wire.UNICAST or device in devices:
            continue  # what leads through a device goes along with it
        route = dp.FoundRoute(dp.Route(one.destination, device, one.gateway, one.onlink), one.protocol == wire.BOOT)
        ownership = dp.Ownership(env.networks, "" if one.onlink else device, lengths, plain=True)
        if one.usual and dp.ours(route, dp.Desired(ownership), dp.Past(None)):
            found.append(route.route)
    return found, tuple(blackholes)


def _looks_like_ours(link: wire.Link) -> bool:
    for pattern, kind in _KINDS:
        match = re.fullmatch(pattern, link.name)
        if match is not None and link.found.kind == kind:
            return not match.groups() or int(match.group(1)) == link.found.vni
    return False


def _refuse_beside_daemon(subnet_file: Path) -> None:
    hint = "stop it first (systemctl stop flanneld); or use -force"
    try:
        answer = state.ask(subnet_file)[0]
    except state.NotRunningError:
        pass
    else:
        raise FlanneldError(f"flanneld runs (pid {answer.pid})", hint)
    for pid in running_daemons():
        raise FlanneldError(f"a process flanneld runs in this network (pid {pid})", hint)


def running_daemons(proc: Path = Path("/proc")) -> Iterator[int]:
    """Yield the processes called flanneld, Go daemons among them, in this network namespace."""
    here = state.namespace()
    for process in proc.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if (process / "comm").read_text().strip() == "flanneld" and (process / "ns/net").stat().st_ino == here:
                yield int(process.name)
        except OSError:
            continue  # it has ended meanwhile


def _remove_network(kernel: Kernel, traces: Traces, report: _Report, *, dry: bool) -> None:
    steps: List[Tuple[dp.Step, str]] = [(dp.RemoveRoute(route), str(route)) for route in traces.routes]
    steps += [
        (dp.DeleteDevice(name, "cleanup"), f"device {name}, with its addresses, neighbours and routes")
        for name in traces.devices
    ]
    for step, what in steps:
        failures = () if dry else kernel.apply([step]).failures
        if failures:
            report.failure(failures[0])
        else:
            report.gone(what)
    for destination, priority in traces.blackholes:
        try:
            if dry or kernel.remove_blackhole(destination, priority):
                report.gone(f"blackhole route {destination}")
        except FlanneldError as error:
            report.failure(str(error))


def _remove_rules(env: Optional[state.Env], report: _Report, *, everything: bool, dry: bool) -> None:
    pairs = (
        {version: (env.networks[version], one) for version, one in env.subnets.items() if version in env.networks}
        if env
        else {}
    )
    spec = RuleSpec(pairs, masquerade=True, forward=True) if pairs else None
    if spec is None and not everything:
        return  # whose rules they are is told by the network alone
    if dry:
        for what in rules_there(() if everything or env is None else [str(one) for one in env.networks.values()]):
            report.gone(what)
        return
    for nftables in (False, True):
        try:
            rules = make_rules(nftables)
            gone = rules.remove(spec) if spec is not None else []
            gone += rules.remove(None) if everything else []
        except RulesError as error:
            report.failure(str(error))
            continue
        report.told(gone)


def rules_there(networks: Sequence[str] = ()) -> List[str]:
    """Return in words the traffic rules that look like flannel's: those that name one of the networks, or all."""
    found = []
    for name in _RULE_PROGRAMS:
        if shutil.which(f"{name}-save") is not None:
            count = len(_lines([f"{name}-save"], r"^-A .*(?:FLANNEL-|flanneld (?:masq|forward))", networks))
            if count:
                found.append(f"traffic rules of {name} ({count})")
    if shutil.which("nft") is not None:
        tables = _lines(["nft", "list", "tables"], r"^table ip6? flannel-ipv[46]$", ())
        count = sum(1 for one in tables if not networks or _lines(["nft", "list", *one.split()], "", networks))
        if count:
            found.append(f"tables of nft ({count})")
    return found


def _lines(command: Sequence[str], pattern: str, networks: Sequence[str]) -> List[str]:
    try:
        printed = run_program(command).splitlines()
    except RulesError:
        return []  # the kernel has nothing of the kind
    return [
        line
        for line in printed
        if re.search(pattern, line) and (not networks or any(f" {one} " in f"{line} " for one in networks))
    ]


def _docker_files(subnet_file: Path, env: Optional[state.Env]) -> List[Path]:
    """Return the files with Docker's options that hold the subnet of this machine."""
    subnet = env.subnets.get(4) if env is not None else None
    found = []
    for file in (subnet_file.with_name("docker"), _DOCKER_OPTIONS):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if subnet is not None and f"--bip={subnet.network_address + 1}/{subnet.prefixlen}" in file.read_text():
                found.append(file)
    return found


def _remove_files(
    subnet_file: Path, cni_conf: Optional[Path], env: Optional[state.Env], report: _Report, *, dry: bool
) -> None:
    files = [cni_conf] if cni_conf is not None else []
    files += [state.socket_path(subnet_file), record.path(subnet_file), *_docker_files(subnet_file, env)]
    if env is not None and (env.networks or env.subnets):
        if report.failed:
            console.write([f"{subnet_file} is kept: by it the next cleanup knows what to look for"])
        else:
            files.append(subnet_file)
    for file in files:
        try:
            if not dry:
                file.unlink()
            elif not os.path.lexists(file):
                continue
            report.gone(str(file))
        except FileNotFoundError:
            continue
        except OSError as error:
            report.failure(f"{file} cannot be removed: {error.strerror}")
    if not dry and subnet_file.parent.name == "flannel":
        with contextlib.suppress(OSError):  # others have something there, or it is not there
            subnet_file.parent.rmdir()
