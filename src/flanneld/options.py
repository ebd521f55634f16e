"""The daemon's options: which flags exist, their defaults (those of the Go daemon), and their checked form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from flanneld.errors import UsageError
from flanneld.flags import Flag, Parsed, parse
from flanneld.subnet.lease import canonical

ETCD_FLAGS: Tuple[Flag, ...] = (
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
        "etcd-password",
        "str",
        "",
        "password of the etcd user; prefer FLANNELD_ETCD_PASSWORD, which ps does not show",
        secret=True,
    ),
)
"""Those that say how etcd is reached; `etcd_options` reads them."""

_KLOG = (
    ("alsologtostderr", "bool", "false"),
    ("logtostderr", "bool", "false"),
    ("stderrthreshold", "str", ""),
    ("log_dir", "str", ""),
)
"""Flags of glog, which units in the field have: name, kind, default."""

FLAGS: Tuple[Flag, ...] = (
    *ETCD_FLAGS,
    Flag("etcd-api", "str", "v3", "v3, or v2 to share a network with flanneld 0.17 and older"),
    Flag("kube-subnet-mgr", "bool", "false", "take subnets from the nodes of Kubernetes instead of leases in etcd"),
    Flag("kube-api-url", "str", "", "URL of the API server; does without -kubeconfig-file where no login is needed"),
    Flag("kubeconfig-file", "str", "", "kubeconfig; without it and -kube-api-url the service account of the pod"),
    Flag("kube-annotation-prefix", "str", "flannel.alpha.coreos.com", "prefix of the annotations of nodes"),
    Flag(
        "net-config-path",
        "str",
        "/etc/kube-flannel/net-conf.json",
        "file with the network configuration (-kube-subnet-mgr only)",
    ),
    Flag("set-node-network-unavailable", "bool", "true", "set the node's condition NetworkUnavailable when ready"),
    Flag("iface", "list", "", "interface, by name or address, for traffic between machines; the first match wins"),
    Flag("iface-regex", "list", "", "pattern tried after every -iface, on the addresses first and then on the names"),
    Flag("iface-can-reach", "str", "", "use the interface that leads to this address; tried last"),
    Flag("public-ip", "str", "", "IPv4 address announced to the other machines"),
    Flag("public-ipv6", "str", "", "IPv6 address announced to the other machines"),
    Flag("subnet-file", "str", "/run/flannel/subnet.env", "file the leased subnet is written to"),
    Flag("cni-conf", "str", "", "CNI configuration list to write for the bridge plugin"),
    Flag("subnet-lease-renew-margin", "int", "60", "minutes before its expiry that the lease is renewed, 1-1439"),
    Flag("ip-masq", "bool", "false", "masquerade traffic that leaves the network"),
    Flag("ip-masq-fully-random-disable", "bool", "false", "do not ask for --random-fully"),
    Flag("ip-blackhole-route", "bool", "false", "drop packets to addresses of the own subnet that no pod has"),
    Flag("iptables-resync", "int", "5", "seconds between checks of the traffic rules"),
    Flag("iptables-forward-rules", "bool", "true", "accept forwarded traffic of the network"),
    Flag("healthz-ip", "str", "0.0.0.0", "address of the health server"),  # noqa: S104 - the Go daemon's default
    Flag("healthz-port", "int", "0", "port of the health server, 0 = none"),
    Flag("v", "int", "0", "verbosity of the log"),
    Flag("vmodule", "str", "", "verbosity of single modules: PATTERN=N, separated by commas"),
    Flag("log_backtrace_at", "str", "", "FILE:LINE of a log call that shall print how it was reached"),
    Flag("log-format", "str", "text", "text, or json for one object per line"),
    Flag("version", "bool", "false", "print the version and exit"),
    Flag("listen", "gone", "", "there are no servers for other flanneld any more: all of them talk to etcd"),
    Flag("remote", "gone", "", "there are no clients of other flanneld any more: use -etcd-endpoints"),
    Flag("remote-keyfile", "gone", "", "use -etcd-keyfile"),
    Flag("remote-certfile", "gone", "", "use -etcd-certfile"),
    Flag("remote-cafile", "gone", "", "use -etcd-cafile"),
    Flag("networks", "gone", "", "run a daemon per network, each with its own -etcd-prefix and -subnet-file"),
    Flag("subnet-dir", "gone", "", "use -subnet-file"),
    Flag("use-multi-cluster-cidr", "gone", "", "use the one podCIDR per family that every node has"),
    *(Flag(name, kind, default, "the log goes to standard error", idle=True) for name, kind, default in _KLOG),
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


class KubeOptions(NamedTuple):
    """How subnets come from Kubernetes; empty texts are flags that were not given."""

    api_url: str = ""
    kubeconfig: str = ""
    annotation_prefix: str = "flannel.alpha.coreos.com"
    net_config_path: Path = Path("/etc/kube-flannel/net-conf.json")
    set_network_unavailable: bool = True


class InterfaceOptions(NamedTuple):
    """What the interface towards the other machines is chosen by, in order of precedence.

    `public`: the addresses to announce, by IP version, in the kernel's form.
    """

    names: Tuple[str, ...] = ()
    patterns: Tuple[str, ...] = ()
    can_reach: str = ""
    public: Mapping[int, str] = {}


class LogOptions(NamedTuple):
    """What is logged, and how.

    modules: verbosity by a pattern for modules. backtrace_at: file and line of a log call, None for none.
    """

    verbosity: int = 0
    modules: Tuple[Tuple[str, int], ...] = ()
    backtrace_at: Optional[Tuple[str, int]] = None
    json: bool = False


class Options(NamedTuple):
    """Everything the command line and the environment decide. Durations are seconds.

    kube: None when leases are in etcd.
    """

    etcd: EtcdOptions
    etcd_api: str
    prefix: str
    kube: Optional[KubeOptions]
    interface: InterfaceOptions
    subnet_file: Path
    cni_conf: Optional[Path]
    renew_margin: int
    ip_masq: bool
    random_fully: bool
    blackhole_route: bool
    resync: int
    forward_rules: bool
    healthz: Optional[Tuple[str, int]]
    log: LogOptions


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Tuple[Parsed, Optional[Options]]:
    """Parse and check everything; the options are None when only help or the version is asked for."""
    parsed = parse(FLAGS, argv, environ)
    if parsed.help or parsed.truth("version"):
        return parsed, None
    margin = parsed.number("subnet-lease-renew-margin")
    if not 1 <= margin <= 1439:
        raise UsageError(f"-subnet-lease-renew-margin is {margin}", "it is in minutes, from 1 to 1439")
    resync = parsed.number("iptables-resync")
    if not 1 <= resync <= 86400:
        raise UsageError(f"-iptables-resync is {resync}", "it is in seconds, from 1 to 86400")
    port = parsed.number("healthz-port")
    if not 0 <= port <= 65535:
        raise UsageError(f"-healthz-port is {port}", "use 1-65535, or 0 for no health server")
    kube = _kube(parsed) if parsed.truth("kube-subnet-mgr") else None
    return parsed, Options(
        etcd=etcd_options(parsed) if kube is None else EtcdOptions(()),
        etcd_api=_one_of(parsed, "etcd-api", ("v3", "v2")),
        prefix=prefix(parsed),
        kube=kube,
        interface=interface_options(parsed),
        subnet_file=file_name(parsed, "subnet-file"),
        cni_conf=file_name(parsed, "cni-conf") if parsed.text("cni-conf") else None,
        renew_margin=margin * 60,
        ip_masq=parsed.truth("ip-masq"),
        random_fully=not parsed.truth("ip-masq-fully-random-disable"),
        blackhole_route=parsed.truth("ip-blackhole-route"),
        resync=resync,
        forward_rules=parsed.truth("iptables-forward-rules"),
        healthz=(parsed.text("healthz-ip"), port) if port else None,
        log=_log(parsed),
    )


def prefix(parsed: Parsed) -> str:
    """Return the prefix of the keys in etcd, with a slash in front and none behind; the root is empty."""
    text = parsed.text("etcd-prefix").strip("/")
    return f"/{text}" if text else ""


def etcd_options(parsed: Parsed) -> EtcdOptions:
    """Return what ETCD_FLAGS say; raises UsageError."""
    # In a systemd environment file, a comment behind a value is a part of the value.
    given = re.split(r"\s#", parsed.text("etcd-endpoints"))[0]
    _no_user("etcd-endpoints", given)  # before it is cut anywhere: a part of a password must not be shown
    given = given.partition("#")[0]
    endpoints = tuple(part.strip().rstrip("/") for part in given.split(",") if part.strip())
    if not endpoints:
        raise UsageError("-etcd-endpoints is empty", "name at least one member, for example https://192.0.2.1:2379")
    for endpoint in endpoints:
        _check_url("etcd-endpoints", endpoint, "https://192.0.2.1:2379")
    files = {name: parsed.text(name) for name in ("etcd-cafile", "etcd-certfile", "etcd-keyfile")}
    for name, file in files.items():
        if file and not Path(file).is_file():
            raise UsageError(f"-{name}: there is no file {file}", "check the path and that it is readable")
    if bool(files["etcd-certfile"]) != bool(files["etcd-keyfile"]):
        missing = "etcd-keyfile" if files["etcd-certfile"] else "etcd-certfile"
        raise UsageError(f"-{missing} is missing", "a client certificate needs both -etcd-certfile and -etcd-keyfile")
    if parsed.text("etcd-password") and not parsed.text("etcd-username"):
        raise UsageError("-etcd-password is given without -etcd-username", "name the user")
    return EtcdOptions(
        endpoints,
        files["etcd-cafile"],
        files["etcd-certfile"],
        files["etcd-keyfile"],
        parsed.text("etcd-username"),
        parsed.text("etcd-password"),
    )


def _kube(parsed: Parsed) -> KubeOptions:
    _no_user("kube-api-url", parsed.text("kube-api-url"))
    return KubeOptions(
        parsed.text("kube-api-url").rstrip("/"),
        parsed.text("kubeconfig-file"),
        parsed.text("kube-annotation-prefix"),
        file_name(parsed, "net-config-path"),
        parsed.truth("set-node-network-unavailable"),
    )


def _no_user(flag: str, text: str) -> None:
    if "@" in text:  # not shown: a password is in front of it
        raise UsageError(f"-{flag} contains a user name", "use -etcd-username, or a kubeconfig")


def _check_url(flag: str, text: str, example: str) -> None:
    _no_user(flag, text)
    try:
        url = urlsplit(text)
        well_formed = url.scheme in {"http", "https"} and bool(url.hostname) and (url.port or 1) > 0
        (url.hostname or "").encode("idna")  # as the resolver gets it: fails for "etcd..example" and long labels
    except ValueError:
        raise UsageError(f"-{flag} contains {text!r}", f"use URLs such as {example}") from None
    if not well_formed or url.path or url.query or url.fragment:
        raise UsageError(f"-{flag} contains {text!r}", f"use URLs such as {example}")


def interface_options(parsed: Parsed) -> InterfaceOptions:
    """Return what the flags about the interface and the announced addresses say; raises UsageError."""
    for name in ("iface", "iface-regex"):
        if "" in parsed.several(name):
            raise UsageError(f"-{name} is empty", "give it a value, or leave it out for the default route's interface")
    for pattern in parsed.several("iface-regex"):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"-iface-regex {pattern!r} is not a regular expression: {error}") from None
    reach = parsed.text("iface-can-reach")
    public: Dict[int, str] = {}
    for version, name in ((4, "public-ip"), (6, "public-ipv6")):
        if parsed.text(name):
            public[version] = _address(name, parsed.text(name), version)
    return InterfaceOptions(
        parsed.several("iface"),
        parsed.several("iface-regex"),
        _address("iface-can-reach", reach, 6 if ":" in reach else 4) if reach else "",
        public,
    )


def _address(flag: str, text: str, version: int) -> str:
    try:
        return canonical(text, version)
    except ValueError:
        raise UsageError(f"-{flag} is {text!r}, not an IPv{version} address") from None


def file_name(parsed: Parsed, flag: str) -> Path:
    """Return a flag that names a file; raises UsageError."""
    text = parsed.text(flag)
    path = Path(text)
    if not path.name or "\0" in text or text.endswith("/"):
        raise UsageError(f"-{flag} is {text!r}, not the name of a file")
    return path


def _one_of(parsed: Parsed, flag: str, words: Tuple[str, ...]) -> str:
    value = parsed.text(flag)
    if value not in words:
        raise UsageError(f"-{flag} is {value!r}", f"use {' or '.join(words)}")
    return value


def _log(parsed: Parsed) -> LogOptions:
    modules = []
    for part in parsed.text("vmodule").split(","):
        pattern, _, number = part.strip().rpartition("=")
        if part.strip() and not (pattern and number.isdecimal() and number.isascii()):
            raise UsageError(f"-vmodule contains {part!r}", "use PATTERN=N, for example manager=4,etcd/*=2")
        if pattern:
            modules.append((pattern, min(int(number[:9]), 99)))
    at = None
    if parsed.text("log_backtrace_at"):
        file, _, line = parsed.text("log_backtrace_at").rpartition(":")
        if not (file and line.isdecimal() and line.isascii() and len(line) < 9):
            raise UsageError(
                f"-log_backtrace_at is {parsed.text('log_backtrace_at')!r}", "use FILE:LINE, for example manager.py:97"
            )
        at = (file, int(line))
    return LogOptions(parsed.number("v"), tuple(modules), at, _one_of(parsed, "log-format", ("text", "json")) == "json")
