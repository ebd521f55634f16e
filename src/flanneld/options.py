"""The daemon's options: which flags exist, their defaults (those of the Go daemon), and their checked form."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from flanneld.errors import UsageError
from flanneld.flags import Flag, Parsed, parse

FLAGS: Tuple[Flag, ...] = (
    Flag(
        "etcd-endpoints",
        "str",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "comma separated URLs of etcd's members",
    ),
    Flag("etcd-prefix", "str", "/coreos.com/network", "prefix of the keys in etcd"),
    Flag("etcd-keyfile", "str", "", "key of the client certificate for etcd"),
    Flag("etcd-certfile", "str", "", "client certificate for etcd"),
    Flag("etcd-cafile", "str", "", "certificate authority of etcd's servers"),
    Flag("etcd-username", "str", "", "etcd user"),
    Flag(
        "etcd-password", "str", "", "password of the etcd user; prefer FLANNELD_ETCD_PASSWORD, which ps does not show"
    ),
    Flag("iface", "list", "", "interface, by name or address, for traffic between machines; the first match wins"),
    Flag("iface-regex", "list", "", "pattern tried after every -iface, on the addresses first and then on the names"),
    Flag("iface-can-reach", "str", "", "use the interface that leads to this address; tried last"),
    Flag("subnet-file", "str", "/run/flannel/subnet.env", "file the leased subnet is written to"),
    Flag("cni-conf", "str", "", "CNI configuration list to write for the bridge plugin"),
    Flag("public-ip", "str", "", "address announced to the other machines"),
    Flag("subnet-lease-renew-margin", "int", "60", "minutes before its expiry that the lease is renewed, 1-1439"),
    Flag("ip-masq", "bool", "false", "masquerade traffic that leaves the network"),
    Flag("ip-masq-fully-random-disable", "bool", "false", "do not ask for --random-fully"),
    Flag("healthz-ip", "str", "0.0.0.0", "address of the health server"),  # noqa: S104 - the Go daemon's default
    Flag("healthz-port", "int", "0", "port of the health server, 0 = none"),
    Flag("iptables-resync", "int", "5", "seconds between checks of the iptables rules"),
    Flag("iptables-forward-rules", "bool", "true", "accept forwarded traffic of the network"),
    Flag("v", "int", "0", "verbosity of the log"),
    Flag("version", "bool", "false", "print the version and exit"),
    Flag("public-ipv6", "str", "", "", supported=False),
    Flag("kube-subnet-mgr", "bool", "false", "", supported=False),
    Flag("kube-api-url", "str", "", "", supported=False),
    Flag("kubeconfig-file", "str", "", "", supported=False),
    Flag("kube-annotation-prefix", "str", "flannel.alpha.coreos.com", "", supported=False),
    Flag("net-config-path", "str", "/etc/kube-flannel/net-conf.json", "", supported=False),
    Flag("set-node-network-unavailable", "bool", "true", "", supported=False),
    Flag("ip-blackhole-route", "bool", "false", "", supported=False),
    Flag("vmodule", "str", "", "", supported=False),
    Flag("log_backtrace_at", "str", "", "", supported=False),
)


class EtcdOptions(NamedTuple):
    """How etcd is reached. `endpoints` are URLs without a path; empty file names mean no TLS material."""

    endpoints: Tuple[str, ...]
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"EtcdOptions(endpoints={self.endpoints!r})"  # the password stays out of every log


class InterfaceOptions(NamedTuple):
    """What the interface towards the other machines is chosen by, in order of precedence."""

    names: Tuple[str, ...] = ()
    patterns: Tuple[str, ...] = ()
    can_reach: str = ""
    public_ip: Optional[ipaddress.IPv4Address] = None


class Options(NamedTuple):
    """Everything the command line and the environment decide. Durations are seconds."""

    etcd: EtcdOptions
    prefix: str
    interface: InterfaceOptions
    subnet_file: Path
    cni_conf: Optional[Path]
    renew_margin: int
    ip_masq: bool
    random_fully: bool
    resync: int
    forward_rules: bool
    healthz: Optional[Tuple[str, int]]
    verbosity: int


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Tuple[Parsed, Optional[Options]]:
    """Parse and check everything; the options are None when only help or the version is asked for."""
    parsed = parse(FLAGS, argv, environ)
    if parsed.help or parsed.truth("version"):
        return parsed, None
    margin = parsed.number("subnet-lease-renew-margin")
    if not 1 <= margin <= 1439:
        raise UsageError(f"-subnet-lease-renew-margin is {margin}", "it is in minutes, from 1 to 1439")
    resync = parsed.number("iptables-resync")
    if resync < 1:
        raise UsageError(f"-iptables-resync is {resync}", "it is in seconds, 1 or more")
    port = parsed.number("healthz-port")
    if not 0 <= port <= 65535:
        raise UsageError(f"-healthz-port is {port}", "use 1-65535, or 0 for no health server")
    return parsed, Options(
        etcd=_etcd(parsed),
        prefix="/" + parsed.text("etcd-prefix").strip("/"),
        interface=_interface(parsed),
        subnet_file=Path(parsed.text("subnet-file")),
        cni_conf=Path(parsed.text("cni-conf")) if parsed.text("cni-conf") else None,
        renew_margin=margin * 60,
        ip_masq=parsed.truth("ip-masq"),
        random_fully=not parsed.truth("ip-masq-fully-random-disable"),
        resync=resync,
        forward_rules=parsed.truth("iptables-forward-rules"),
        healthz=(parsed.text("healthz-ip"), port) if port else None,
        verbosity=parsed.number("v"),
    )


def _etcd(parsed: Parsed) -> EtcdOptions:
    endpoints = tuple(part.strip().rstrip("/") for part in parsed.text("etcd-endpoints").split(",") if part.strip())
    if not endpoints:
        raise UsageError("-etcd-endpoints is empty", "name at least one member, for example https://192.0.2.1:2379")
    for endpoint in endpoints:
        _check_endpoint(endpoint)
    files = {name: parsed.text(name) for name in ("etcd-cafile", "etcd-certfile", "etcd-keyfile")}
    for name, file in files.items():
        if file and not Path(file).is_file():
            raise UsageError(f"-{name}: there is no file {file}", "check the path and that it is readable")
    if bool(files["etcd-certfile"]) != bool(files["etcd-keyfile"]):
        missing = "etcd-keyfile" if files["etcd-certfile"] else "etcd-certfile"
        raise UsageError(f"-{missing} is missing", "a client certificate needs both -etcd-certfile and -etcd-keyfile")
    if parsed.text("etcd-password") and not parsed.text("etcd-username"):
        raise UsageError("-etcd-password is given without -etcd-username")
    return EtcdOptions(
        endpoints,
        files["etcd-cafile"],
        files["etcd-certfile"],
        files["etcd-keyfile"],
        parsed.text("etcd-username"),
        parsed.text("etcd-password"),
    )


def _check_endpoint(endpoint: str) -> None:
    try:
        url = urlsplit(endpoint)
        well_formed = url.scheme in {"http", "https"} and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        well_formed = False
    if not well_formed or url.path or url.query or url.username:
        raise UsageError(f"-etcd-endpoints contains {endpoint!r}", "use URLs such as https://192.0.2.1:2379")


def _interface(parsed: Parsed) -> InterfaceOptions:
    for pattern in parsed.several("iface-regex"):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"-iface-regex {pattern!r} is not a regular expression: {error}") from None
    if parsed.text("iface-can-reach"):
        _address("iface-can-reach", parsed.text("iface-can-reach"))
    public = parsed.text("public-ip")
    return InterfaceOptions(
        parsed.several("iface"),
        parsed.several("iface-regex"),
        parsed.text("iface-can-reach"),
        _address("public-ip", public) if public else None,
    )


def _address(flag: str, text: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise UsageError(f"-{flag} is {text!r}, not an IPv4 address") from None
