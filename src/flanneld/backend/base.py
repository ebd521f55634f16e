"""What a backend is: a module of its own that says what a machine announces, and which overlay follows from the leases.

A backend decides; the kernel is changed by `overlay`, to what `desired` returns. Those with an effect of their own
(a data path in the process, commands to run) have it in `start`, `update` and `close`.
"""

from __future__ import annotations

import abc
import ipaddress
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    TypeVar,
    Union,
)

from flanneld.dataplane import Desired, Network, Ownership, within
from flanneld.log import logger
from flanneld.subnet.config import NetworkConfig
from flanneld.subnet.lease import Lease, overlap

_Value = TypeVar("_Value")


class Reach(NamedTuple):
    """A route of the machine outside of the pod networks; `direct` when it leads over the underlay without gateway."""

    network: Network
    direct: bool


class Underlay(NamedTuple):
    """The interface towards the other machines; `addresses` by IP version, those that the configuration enables.

    `reach`: the machine's routes, longest prefix first. `ifindex` stays when the interface gets another name.
    """

    name: str
    mtu: int
    addresses: Mapping[int, str]
    reach: Tuple[Reach, ...] = ()
    ifindex: int = 0


class Existing(NamedTuple):
    """What a starting daemon finds: MACs of the devices by name, all leases, and the own addresses by IP version.

    `own`: under which name the own lease is among them, where the store tells that; empty: by its address.
    """

    macs: Mapping[str, str]
    leases: Mapping[str, Lease]
    public: Mapping[int, str]
    own: str = ""


class Backend(abc.ABC):
    """One backend. Belongs to the main thread, apart from what a subclass starts itself.

    type: its Type in the configuration. announced: BackendType in leases, empty for those that write none. understood:
    what others may announce as well.
    mtu: that of the pods. plain: it sets routes over the underlay. underlay: replaced by the daemon when the machine's
    address or MTU changes.
    """

    type = ""
    announced = ""
    understood: Tuple[str, ...] = ()
    mtu = 0
    plain = False

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Check the backend's own settings; raises ConfigError, or NetworkError when the interface will not do."""
        self.config = config
        self.underlay = underlay
        self._warned: Dict[str, str] = {}
        self._ignoring: Dict[str, str] = {}
        self._judged: Dict[int, Tuple[Lease, Any]] = {}

    def prepare(self, existing: Existing) -> None:  # noqa: B027 - a hook that most backends do without
        """Settle what is announced, before there is a lease."""

    def data(self, version: int) -> Any:
        """Return BackendData (version 4) or BackendV6Data (6) of the own lease; None = absent."""
        del version

    def start(self, own: Lease) -> None:  # noqa: B027 - a hook that most backends do without
        """Begin what the backend does by itself. Raises NetworkError."""

    @abc.abstractmethod
    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return the overlay for these leases; the own one among them is left out."""

    def update(self, leases: Iterable[Lease]) -> None:  # noqa: B027 - a hook that most backends do without
        """Follow the leases with what the kernel does not do by itself. Never blocks for long."""

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Take over a changed configuration (of the same backend) or underlay; `desired` is asked again after it.

        All leases are judged anew then. Raises NetworkError when it cannot be; everything is as before then.
        """
        self.config, self.underlay = config, underlay
        self.forget()

    def trouble(self) -> str:
        """Return what keeps the backend's own part from working, empty when nothing does."""
        return ""

    def close(self) -> None:  # noqa: B027 - a hook that most backends do without
        """End what `start` began. What the kernel holds stays."""

    def ownership(self) -> Ownership:
        """Return what the daemon may remove."""
        lengths = {version: pool.subnet_len for version, pool in self.config.pools.items()}
        return Ownership(self.config.networks, self.underlay.name, lengths, self.plain)

    @property
    def unused(self) -> FrozenSet[str]:
        """The prefixes of the leases that are ignored."""
        return frozenset(prefix for name in self._ignoring for prefix in name.split(" and "))

    def remembered(
        self, own: Lease, leases: Iterable[Lease], judge: Callable[[Lease], Union[str, List[_Value]]]
    ) -> Iterator[Tuple[Lease, List[_Value]]]:
        """Yield the other machines' leases for this backend with what `judge` makes of them; it may return a reason
        why a lease is not used instead, which is logged once.

        Judged is only what changed: of thousands of leases one or two are new at a time.
        """
        before, now = self._judged, {}
        self._ignoring = {}
        for lease in leases:
            known = before.get(id(lease))
            if known is None or known[0] is not lease:
                reason = self._unfit(own, lease)
                known = (lease, reason) if reason is not None else (lease, judge(lease))
            now[id(lease)] = known
            verdict = known[1]
            if not isinstance(verdict, str):
                yield lease, verdict
            elif verdict:
                self.ignore(lease, verdict)
        self._judged = now
        self._warned = self._ignoring  # one that is used meanwhile, or gone, is named again when it comes back

    def forget(self) -> None:
        """Judge every lease anew: something that the verdicts rest on has changed."""
        self._judged = {}

    def _unfit(self, own: Lease, lease: Lease) -> Optional[str]:
        """Return why a lease is no peer's, empty for the own one, None when it is a peer's."""
        if lease.subnets == own.subnets:
            return ""
        if overlap(lease, own):
            return f"it overlaps the own subnet {own.name}"
        for subnet in lease.subnets:
            network = self.config.networks.get(subnet.version)
            if network is not None and not within(subnet, network):
                return f"it lies outside of the network {network}"
        if self.announced and lease.attributes.backend_type not in {self.announced, *self.understood}:
            return self._other(lease)
        return self._misplaced(own, lease)

    def _other(self, lease: Lease) -> str:
        """Return why a lease of another backend is not used."""
        return f"its backend is {lease.attributes.backend_type or 'not named'}, not {self.announced}"

    def _misplaced(self, own: Lease, lease: Lease) -> Optional[str]:
        """Return why a lease cannot be that of another machine, by the addresses that it announces."""
        for version in self.config.networks:
            machine = lease.attributes.public(version)
            if machine and machine in {own.attributes.public(version), self.underlay.addresses.get(version)}:
                return f"it announces {machine}, this machine's own address"
            reason = _no_machine(machine, self.underlay) if machine else ""
            if reason:
                return reason
        return None

    def ignore(self, lease: Lease, reason: str) -> None:
        """Say once that a lease is not used, and why."""
        self._ignoring[lease.name] = reason
        if self._warned.get(lease.name) != reason:
            holder = lease.attributes.public_ip or lease.attributes.public_ipv6
            logger.warning("ignoring the lease %s of %s: %s", lease.name, holder, reason)

    @property
    def ignored(self) -> Mapping[str, str]:
        """The leases that are ignored, by name, with the reason."""
        return self._warned


def is_direct(address: str, underlay: Underlay) -> bool:
    """Tell whether a machine's address is reached over the underlay without a gateway."""
    found = _way(ipaddress.ip_address(address), underlay)
    return found is not None and found.direct


def _way(address: Union[ipaddress.IPv4Address, ipaddress.IPv6Address], underlay: Underlay) -> Optional[Reach]:
    return next((one for one in underlay.reach if address in one.network), None)


def _no_machine(address: str, underlay: Underlay) -> str:
    """Return why an address cannot be that of a machine, empty when it can."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified or parsed.is_loopback or parsed.is_multicast or address == "255.255.255.255":
        return f"it announces {address}, which is no machine's address"
    if parsed.version == 4:
        link = _way(parsed, underlay)
        if link is not None and link.direct and link.network.prefixlen < 31:
            for edge, name in (
                (link.network.broadcast_address, "broadcast"),
                (link.network.network_address, "network"),
            ):
                if parsed == edge:
                    return f"it announces {address}, the {name} address of {link.network} on {underlay.name}"
    return ""


def firsts(own: Lease) -> FrozenSet[str]:
    """Return the first addresses of the own subnets, as prefixes: the address of a device of the overlay."""
    return frozenset(f"{subnet.network_address}/{subnet.max_prefixlen}" for subnet in own.subnets)
