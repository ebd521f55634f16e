"""Leases as everybody sees them: the keys, the values byte for byte as the Go daemon writes them, and the choice of
a subnet. Nothing here talks to anything.

Addresses of machines are text in the kernel's form (`inet_ntop`), because that is what they are compared with.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
import socket
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.subnet.config import Network, NetworkConfig, Pool, flat_json

CANDIDATES = 100
"""How many free subnets the random choice is made from: as in the Go daemon, so that two starters seldom collide."""

_KEY = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})-(\d{1,2})(?:&([0-9a-fA-F:.]+)-(\d{1,3}))?", re.ASCII)


class Attributes(NamedTuple):
    """What a machine announces with its subnets. Data of the backend is decoded JSON, None where absent.

    `public_ip` is empty only where a network has no IPv4, `public_ipv6` where it has no IPv6.
    """

    public_ip: str
    backend_type: str = ""
    backend_data: Any = None
    public_ipv6: str = ""
    backend_v6_data: Any = None

    def public(self, version: int) -> str:
        """Return the machine's address of an IP version, empty when it announces none."""
        return self.public_ip if version == 4 else self.public_ipv6

    def data(self, version: int) -> Any:
        """Return the backend's data for an IP version."""
        return self.backend_data if version == 4 else self.backend_v6_data


class Lease(NamedTuple):
    """One machine's subnets, by IP version at most one each and at least one, and what it announces with them.

    `permanent`: it does not expire (a reservation, or a node of Kubernetes). `etcd_lease` is etcd's lease number (v3
    only, else 0); `revision` is that of the last change, by which a change in between is noticed.
    """

    subnets: Tuple[Network, ...]
    attributes: Attributes
    permanent: bool = False
    etcd_lease: int = 0
    revision: int = 0

    def subnet(self, version: int) -> Optional[Network]:
        """Return the subnet of an IP version."""
        return next((subnet for subnet in self.subnets if subnet.version == version), None)

    @property
    def name(self) -> str:
        """The subnets in words: 10.5.66.0/24, or 10.5.66.0/24 and fc00::/64."""
        return " and ".join(map(str, self.subnets))


class Holding(NamedTuple):
    """The own lease as last written; `expires` is monotonic time in seconds, None when it does not expire."""

    lease: Lease
    expires: Optional[float]


def format_key(subnets: Sequence[Network]) -> str:
    """Return the last part of a key: 10.244.7.0-24, with IPv6 10.244.7.0-24&fc00:0:0:7::-64."""
    return "&".join(f"{subnet.network_address}-{subnet.prefixlen}" for subnet in subnets)


def parse_key(key: str) -> Optional[Tuple[Network, ...]]:
    """Return the subnets of a key's last part, None when it is malformed."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    address, length, address6, length6 = match.groups()
    try:
        if int(length) > 31 or int(length6 or 0) > 127:
            return None
        subnets: Tuple[Network, ...] = (ipaddress.IPv4Network(f"{address}/{length}", strict=False),)
        if address6 is not None:
            subnets += (ipaddress.IPv6Network(f"{address6}/{length6}", strict=False),)
        return subnets
    except ValueError:
        return None


def encode_attributes(attributes: Attributes) -> str:
    """Return the value of a key: compact JSON in the Go daemon's field order, empty fields left out."""
    fields: Dict[str, Any] = {
        "PublicIP": attributes.public_ip,
        "PublicIPv6": attributes.public_ipv6 or None,
    }
    if attributes.backend_type:
        fields["BackendType"] = attributes.backend_type
    if attributes.backend_data is not None:
        fields["BackendData"] = attributes.backend_data
    if attributes.backend_v6_data is not None:
        fields["BackendV6Data"] = attributes.backend_v6_data
    # Go escapes these three in JSON, and keeps other characters as they are.
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def decode_attributes(text: str) -> Optional[Attributes]:
    """Return a value's contents, None when it cannot be used (the Go daemon ignores such a lease, too)."""
    try:
        raw = flat_json(text)
        fields = {key.lower(): value for key, value in raw.items()}
        public6 = fields.get("publicipv6")
        return Attributes(
            canonical(fields["publicip"], 4),
            str(fields.get("backendtype") or ""),
            fields.get("backenddata"),
            canonical(public6, 6) if public6 else "",
            fields.get("backendv6data"),
        )
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def canonical(address: str, version: int) -> str:
    """Return an address in the kernel's form; raises ValueError or TypeError when it is none of this IP version."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        raise ValueError(f"{address!r} is no IPv{version} address") from None


def parse_lease(key: str, value: str) -> Optional[Lease]:
    """Return the lease of a key's last part and its value, None when either is malformed."""
    subnets, attributes = parse_key(key), decode_attributes(value)
    if subnets is None or attributes is None:
        return None
    return Lease(subnets, attributes)


def overlap(one: Lease, other: Lease) -> bool:
    """Tell whether two leases have an address in common."""
    return any(a.version == b.version and a.overlaps(b) for a in one.subnets for b in other.subnets)


def permits(config: NetworkConfig, subnets: Sequence[Network]) -> bool:
    """Tell whether a lease has exactly the families of the configuration, each with a subnet that it permits."""
    by_version: Dict[int, Network] = {subnet.version: subnet for subnet in subnets}
    pools = config.pools
    return by_version.keys() == pools.keys() and all(
        pool.permits(by_version[version]) for version, pool in pools.items()
    )


def free_subnets(pool: Pool, taken: Iterable[Network], limit: int = CANDIDATES) -> List[Network]:
    """Return the first `limit` subnets of `pool` that overlap none of `taken`."""
    taken = [subnet for subnet in taken if subnet.version == pool.network.version]
    same = {subnet for subnet in taken if subnet.prefixlen == pool.subnet_len}
    other = [subnet for subnet in taken if subnet.prefixlen != pool.subnet_len]
    free: List[Network] = []
    for subnet in pool.subnets():
        if subnet not in same and not any(subnet.overlaps(one) for one in other):
            free.append(subnet)
            if len(free) == limit:
                break
    return free


def choose_subnets(
    config: NetworkConfig,
    leases: Mapping[str, Lease],
    previous: Sequence[Network],
    pick: Callable[[List[Network]], Network] = random.choice,
) -> Optional[Tuple[Network, ...]]:
    """Choose a subnet per family: the previous one when free and permitted, else a random one of the first free.

    None when all subnets of a family are taken.
    """
    taken = [subnet for lease in leases.values() for subnet in lease.subnets]
    chosen: List[Network] = []
    for version, pool in config.pools.items():
        before = next((subnet for subnet in previous if subnet.version == version and pool.permits(subnet)), None)
        if before is not None and not any(before.overlaps(one) for one in taken if one.version == version):
            chosen.append(before)
            continue
        free = free_subnets(pool, taken)
        if not free:
            return None
        chosen.append(pick(free))
    return tuple(chosen)
