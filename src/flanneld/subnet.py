"""Leases as they stand in etcd: the keys, the values byte for byte as the Go daemon writes them, and the choice of
a subnet. Nothing here talks to anything.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from flanneld.config import NetworkConfig

Network = ipaddress.IPv4Network
Address = ipaddress.IPv4Address

CANDIDATES = 100
"""How many free subnets the random choice is made from: as in the Go daemon, so that two starters seldom collide."""

_KEY = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})-(\d{1,2})(?:&([0-9a-fA-F:.]+)-(\d{1,3}))?")


class Attributes(NamedTuple):
    """What a machine announces with its subnet. `backend_data` is the decoded JSON, None where absent."""

    public_ip: Address
    backend_type: str = ""
    backend_data: Any = None
    public_ipv6: Optional[ipaddress.IPv6Address] = None


class Lease(NamedTuple):
    """A subnet and its holder; `etcd_lease` is etcd's lease number, 0 for a reservation without expiry."""

    subnet: Network
    attributes: Attributes
    etcd_lease: int = 0
    revision: int = 0


def format_key(subnet: Network) -> str:
    """Return the last part of a key: 10.244.7.0/24 -> 10.244.7.0-24."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def parse_key(key: str) -> Optional[Network]:
    """Return the IPv4 subnet of a key's last part, None when it is malformed. Of a dual-stack key, its IPv4 half."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    address, length, address6, length6 = match.groups()
    try:
        if int(length) > 31 or (address6 is not None and not _valid6(address6, int(length6))):
            return None
        return Network(f"{address}/{length}", strict=False)
    except ValueError:
        return None


def _valid6(address: str, length: int) -> bool:
    return length <= 127 and bool(ipaddress.IPv6Address(address).exploded)


def encode_attributes(attributes: Attributes) -> str:
    """Return the value of a key: compact JSON in the Go daemon's field order, empty fields left out."""
    fields: Dict[str, Any] = {
        "PublicIP": str(attributes.public_ip),
        "PublicIPv6": str(attributes.public_ipv6) if attributes.public_ipv6 else None,
    }
    if attributes.backend_type:
        fields["BackendType"] = attributes.backend_type
    if attributes.backend_data is not None:
        fields["BackendData"] = attributes.backend_data
    return json.dumps(fields, separators=(",", ":"))


def decode_attributes(text: str) -> Optional[Attributes]:
    """Return a value's contents, None when it cannot be used (the Go daemon ignores such a lease, too)."""
    try:
        raw = json.loads(text)
        fields = {key.lower(): value for key, value in raw.items()}
        public6 = fields.get("publicipv6")
        return Attributes(
            Address(fields["publicip"]),
            str(fields.get("backendtype") or ""),
            fields.get("backenddata"),
            ipaddress.IPv6Address(public6) if public6 else None,
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def parse_lease(key: str, value: str, etcd_lease: int = 0, revision: int = 0) -> Optional[Lease]:
    """Return the lease of a key's last part and its value, None when either is malformed."""
    subnet, attributes = parse_key(key), decode_attributes(value)
    if subnet is None or attributes is None:
        return None
    return Lease(subnet, attributes, etcd_lease, revision)


def own_lease(leases: Mapping[str, Lease], public_ip: Address) -> Optional[str]:
    """Return the key of the lease that is held by `public_ip`, None when there is none."""
    return next((key for key, lease in leases.items() if lease.attributes.public_ip == public_ip), None)


def free_subnets(config: NetworkConfig, taken: Sequence[Network], limit: int = CANDIDATES) -> List[Network]:
    """Return the first `limit` subnets of `config` that overlap none of `taken`."""
    same = {subnet for subnet in taken if subnet.prefixlen == config.subnet_len}
    other = [subnet for subnet in taken if subnet.prefixlen != config.subnet_len]
    free: List[Network] = []
    for subnet in config.subnets():
        if subnet not in same and not any(subnet.overlaps(one) for one in other):
            free.append(subnet)
            if len(free) == limit:
                break
    return free


def choose_subnet(
    config: NetworkConfig,
    leases: Mapping[str, Lease],
    previous: Optional[Network],
    pick: Callable[[List[Network]], Network] = random.choice,
) -> Optional[Network]:
    """Choose a subnet to ask for: the previous one when free and permitted, else a random one of the first free.

    None when all subnets are taken.
    """
    taken = [lease.subnet for lease in leases.values()]
    if previous is not None and config.permits(previous) and not any(previous.overlaps(one) for one in taken):
        return previous
    free = free_subnets(config, taken)
    return pick(free) if free else None
