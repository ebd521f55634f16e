"""The daemon's state as one JSON document: made in the daemon, read by the commands for people.

The document is served on a unix socket beside the subnet file. It says everything that is wanted of the kernel, so
that a command can ask the kernel itself and tell what differs; keys of peers, devices and entries are in the kernel's
form of text throughout.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from flanneld import __version__
from flanneld import dataplane as dp
from flanneld.errors import ConfigError, FlanneldError
from flanneld.metrics import FIGURES
from flanneld.subnet.config import Network, NetworkConfig, parse_config
from flanneld.subnet.lease import Lease

if TYPE_CHECKING:
    from flanneld.daemon import Daemon

DEFAULT_SUBNET_FILE = "/run/flannel/subnet.env"

_COUNTERS = {
    "drift": "flannel_drift_repaired_total",
    "rules": "flannel_rule_repairs_total",
    "watch_restarts": "flannel_watch_restarts_total",
    "store_failures": "flannel_store_failures_total",
}


class NotRunningError(FlanneldError):
    """No daemon answers on the socket."""


class Peer(NamedTuple):
    """Another machine's lease. `machine`: its addresses by IP version; `ignored`: why it is not used, else empty."""

    subnets: Tuple[Network, ...]
    machine: Mapping[int, str]
    ignored: str

    @property
    def name(self) -> str:
        """The subnets in words."""
        return " and ".join(map(str, self.subnets))

    @property
    def addresses(self) -> str:
        """The machine's addresses in words."""
        return " and ".join(self.machine.values())


class State(NamedTuple):
    """A document that was read. What the daemon did not know yet when it answered is None or empty.

    trouble: what keeps the daemon from being ready. followed: the leases were read from the store at least once.
    since: Unix time of its start. namespace: inode of its network namespace. own: its subnets, which expire in
    `expires` seconds (None: they do not, or there are none yet). interface: name of the underlay, with its `addresses`
    and those `announced` by IP version. mtu: that of the pods.
    """

    version: str
    pid: int
    since: float
    namespace: int
    trouble: str
    store: str
    store_trouble: str
    followed: bool
    config: Optional[NetworkConfig]
    interface: str
    interface_mtu: int
    addresses: Mapping[int, str]
    announced: Mapping[int, str]
    own: Tuple[Network, ...]
    expires: Optional[float]
    mtu: int
    peers: Tuple[Peer, ...]
    rules_trouble: str
    counters: Mapping[str, int]
    desired: Optional[dp.Desired]

    @property
    def expired(self) -> bool:
        """Whether the own lease has run out."""
        return bool(self.own) and self.expires is not None and self.expires <= 0

    @property
    def networks(self) -> Mapping[int, Network]:
        """The pod networks by IP version."""
        return self.config.networks if self.config is not None else {}

    @property
    def backend(self) -> str:
        """The backend's type."""
        return self.config.backend_type if self.config is not None else ""


def socket_path(subnet_file: Path) -> Path:
    """Return where the daemon with this subnet file answers."""
    return subnet_file.with_suffix(".sock")


def namespace() -> int:
    """Return the inode of the network namespace of this process, 0 when it cannot be read."""
    try:
        return os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - Path.stat says the same, slower
    except OSError:
        return 0


def report(daemon: Daemon) -> Dict[str, Any]:
    """Return the document. Called from other threads than the daemon's: reads only what is replaced as a whole."""
    config: Optional[NetworkConfig] = getattr(daemon, "config", None)
    underlay = getattr(daemon, "underlay", None)
    backend = getattr(daemon, "backend", None)
    # The manager's threads keep the lease, so they know best; before they start there is what was acquired.
    holding = daemon.manager.held() or getattr(daemon, "holding", None)
    picture, desired, overlay, guard = daemon.picture, daemon.desired, daemon.overlay, daemon.guard
    trouble = daemon.trouble()
    asked = daemon.options.interface.public
    own = holding.lease if holding is not None else None
    expires = holding.expires if holding is not None else None
    ignored = dict(backend.ignored) if backend is not None else {}
    return {
        "version": __version__,
        "pid": os.getpid(),
        "since": round(time.time() - (time.monotonic() - daemon.started)),
        "namespace": namespace(),
        "ready": not trouble,
        "trouble": trouble,
        "store": {"name": daemon.manager.name, "trouble": daemon.manager.trouble, "followed": picture is not None},
        "config": config_json(config) if config is not None else None,
        "interface": {
            "name": underlay.name,
            "mtu": underlay.mtu,
            "addresses": _by_version(underlay.addresses),
            "announced": _by_version(
                {version: asked.get(version, one) for version, one in underlay.addresses.items()}
                if own is None
                else {version: own.attributes.public(version) for version in underlay.addresses}
            ),
        }
        if underlay is not None
        else None,
        "lease": {
            "subnets": [str(one) for one in own.subnets],
            "permanent": expires is None,
            "expires": None if expires is None else round(expires - time.monotonic()),
        }
        if own is not None
        else None,
        "backend": {
            "type": backend.type,
            "mtu": backend.mtu,
            "devices": [one.name for one in desired.devices] if desired is not None else [],
            "trouble": backend.trouble(),
        }
        if backend is not None
        else None,
        "overlay": {"trouble": overlay.trouble if overlay is not None else ""},
        "rules": {
            "masquerade": daemon.options.ip_masq,
            "forward": daemon.options.forward_rules,
            "trouble": guard.trouble if guard is not None else "",
        },
        "counters": {name: int(FIGURES.value(figure)) for name, figure in _COUNTERS.items()},
        "peers": [
            peer_json(one, ignored.get(one.name, ""), desired)
            for one in picture.leases.values()
            if own is None or one.subnets != own.subnets
        ]
        if picture is not None
        else [],
        "desired": desired_json(desired) if desired is not None else None,
    }


def figures(daemon: Daemon) -> str:
    """Return FIGURES, those that follow from the daemon's state as it is now. For other threads, as `report` is."""
    backend, picture, desired = getattr(daemon, "backend", None), daemon.picture, daemon.desired
    FIGURES.set("flannel_ready", 0 if daemon.trouble() else 1)
    if backend is not None and picture is not None and desired is not None:
        own = (daemon.manager.held() or daemon.holding).lease.subnets
        ignored, programmed, unused = dict(backend.ignored), 0, 0
        for lease in picture.leases.values():
            name = lease.name
            if lease.subnets == own:
                continue
            if _leads_to(desired, lease, name, ignored.get(name, "")):
                programmed += 1
            elif name in ignored:
                unused += 1
        FIGURES.set("flannel_peers_programmed", programmed)
        FIGURES.set("flannel_leases_ignored", unused, reason="backend")
    return FIGURES.text()


def _leads_to(desired: dp.Desired, lease: Lease, name: str, ignored: str) -> bool:
    """Tell whether something that is wanted leads to a lease: a route of its own, or one to the whole network."""
    routes = desired.routes
    if name in routes or any(str(one) in routes for one in lease.subnets):
        return True
    networks = desired.ownership.networks
    return not ignored and any(str(networks.get(one.version)) in routes for one in lease.subnets)


def config_json(config: NetworkConfig) -> Dict[str, Any]:
    """Return a configuration in the form in which it is written, everything that has a default said."""
    found: Dict[str, Any] = {"EnableIPv4": config.ipv4 is not None, "EnableIPv6": config.ipv6 is not None}
    for prefix, pool in (("", config.ipv4), ("IPv6", config.ipv6)):
        if pool is not None:
            found[f"{prefix}Network"] = str(pool.network)
            found[f"{prefix}SubnetLen"] = pool.subnet_len
            found[f"{prefix}SubnetMin"] = str(pool.subnet_min)
            found[f"{prefix}SubnetMax"] = str(pool.subnet_max)
    found["EnableNFTables"] = config.nftables
    found["Backend"] = {**config.backend, "type": config.backend_type}
    return found


def peer_json(lease: Lease, ignored: str, desired: Optional[dp.Desired]) -> Dict[str, Any]:
    """Return another machine's lease, with the reason why it is not used unless something leads to it."""
    attributes = lease.attributes
    used = desired is not None and _leads_to(desired, lease, lease.name, ignored)
    return {
        "subnets": [str(one) for one in lease.subnets],
        "machine": _by_version({one: attributes.public(one) for one in (4, 6) if attributes.public(one)}),
        "backend": attributes.backend_type,
        "data": attributes.backend_data,
        **({"data6": attributes.backend_v6_data} if attributes.backend_v6_data is not None else {}),
        "ignored": "" if used else ignored,
    }


def desired_json(desired: dp.Desired) -> Dict[str, Any]:
    """Return an overlay as JSON values; `desired_from` makes it one again."""
    ownership = desired.ownership
    return {
        "networks": _by_version({version: str(one) for version, one in ownership.networks.items()}),
        "underlay": ownership.underlay,
        "lengths": {str(version): length for version, length in ownership.lengths.items()},
        "devices": [{"kind": type(one).__name__.lower(), **one._asdict()} for one in desired.devices],
        "addresses": {device: sorted(prefixes) for device, prefixes in desired.addresses.items()},
        "neighbours": [[*key, mac] for key, mac in desired.neighbours.items()],
        "forwarding": [[*key, machine] for key, machine in desired.forwarding.items()],
        "routes": [list(route) for route in desired.routes.values()],
    }


def desired_from(raw: Mapping[str, Any]) -> dp.Desired:
    """Return the overlay that `desired_json` was given; raises KeyError, TypeError or ValueError for anything else."""
    devices: List[dp.Device] = []
    for one in raw["devices"]:
        fields = {key: value for key, value in one.items() if key != "kind"}
        devices.append({"vxlan": dp.Vxlan, "tun": dp.Tun}[one["kind"]](**fields))
    routes = [dp.Route(*one) for one in raw["routes"]]
    return dp.Desired(
        dp.Ownership(
            {int(version): ipaddress.ip_network(one) for version, one in raw["networks"].items()},
            raw["underlay"],
            {int(version): int(length) for version, length in raw["lengths"].items()},
        ),
        tuple(devices),
        {device: frozenset(prefixes) for device, prefixes in raw["addresses"].items()},
        {(device, address): mac for device, address, mac in raw["neighbours"]},
        {(device, mac): machine for device, mac, machine in raw["forwarding"]},
        {route.destination: route for route in routes},
    )


def parse(text: str) -> Tuple[State, Dict[str, Any]]:
    """Return the document's contents, and the document; raises FlanneldError when it is not understood."""
    raw: Any = None
    try:
        raw = json.loads(text)
        return _state(raw), raw
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, ConfigError) as error:
        version = raw.get("version") if isinstance(raw, dict) else None
        raise FlanneldError(
            f"the answer of flanneld {version or 'of an unknown version'} is not understood"
            f" ({type(error).__name__}: {error})",
            f"ask with the flanneld that runs; this one is {__version__}",
        ) from None


def _state(raw: Mapping[str, Any]) -> State:
    interface, lease, backend = raw["interface"] or {}, raw["lease"] or {}, raw["backend"] or {}
    config, desired = raw["config"], raw["desired"]
    return State(
        str(raw["version"]),
        int(raw["pid"]),
        float(raw["since"]),
        int(raw["namespace"]),
        str(raw["trouble"]),
        str(raw["store"]["name"]),
        str(raw["store"]["trouble"]),
        bool(raw["store"]["followed"]),
        parse_config(json.dumps(config)) if config is not None else None,
        str(interface.get("name", "")),
        int(interface.get("mtu", 0)),
        _versions(interface.get("addresses", {})),
        _versions(interface.get("announced", {})),
        tuple(ipaddress.ip_network(one) for one in lease.get("subnets", ())),
        lease.get("expires"),
        int(backend.get("mtu", 0)),
        tuple(_peer(one) for one in raw["peers"]),
        str(raw["rules"]["trouble"]),
        {name: int(raw["counters"].get(name, 0)) for name in _COUNTERS},
        desired_from(desired) if desired is not None else None,
    )


def _peer(raw: Mapping[str, Any]) -> Peer:
    subnets = tuple(ipaddress.ip_network(one) for one in raw["subnets"])
    return Peer(subnets, _versions(raw["machine"]), str(raw["ignored"]))


def ask(subnet_file: Path) -> Tuple[State, Dict[str, Any]]:
    """Ask the daemon; raises NotRunningError when none answers, FlanneldError when it may not be asked."""
    from flanneld.health import request  # noqa: PLC0415 - the daemon, which imports this module, has its own way

    path = socket_path(subnet_file)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(5.0)
            sock.connect(str(path))
    except PermissionError:
        raise FlanneldError(f"only root may ask flanneld on {path}", "use sudo") from None
    except FileNotFoundError:
        raise NotRunningError(f"flanneld does not answer on {path}: there is no such file") from None
    except OSError as error:
        raise NotRunningError(f"flanneld does not answer on {path}: {error.strerror or error}") from None
    return parse(request(path, "/status"))


class Env(NamedTuple):
    """What a subnet file says. `networks` and the own `subnets` are by IP version."""

    networks: Mapping[int, Network]
    subnets: Mapping[int, Network]
    mtu: str = ""


def read_env(subnet_file: Path) -> Optional[Env]:
    """Return the contents of a subnet file, None when it is not there; what is malformed in it is left out."""
    from flanneld import outputs  # noqa: PLC0415 - as above

    if not os.path.exists(subnet_file):  # noqa: PTH110 - Path.exists fails on a name that is too long
        return None
    found = outputs.read_env(subnet_file)
    networks: Dict[int, Network] = {}
    subnets: Dict[int, Network] = {}
    for names, into in (
        (("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"), networks),
        (("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"), subnets),
    ):
        for name in names:
            try:
                one = ipaddress.ip_network(found.get(name, ""), strict=False)
            except ValueError:
                continue
            into[one.version] = one
    return Env(networks, subnets, found.get("FLANNEL_MTU", ""))


def _by_version(values: Mapping[int, str]) -> Dict[str, str]:
    return {str(version): value for version, value in values.items()}


def _versions(raw: Mapping[str, Any]) -> Dict[int, str]:
    return {int(version): str(value) for version, value in raw.items()}
