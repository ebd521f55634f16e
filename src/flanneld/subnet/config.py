"""The network configuration, a JSON object whose keys match in any letter case, as the Go daemon takes it.

Keys, defaults and limits are those of the Go daemon: Network is needed, and IPv6Network with EnableIPv6. SubnetLen is
24, or prefix + 2 in networks smaller than a /22 (IPv6: 64, or prefix + 2 in those smaller than a /62); SubnetMin is
the second subnet and SubnetMax the last.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Union

from flanneld.errors import ConfigError

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

EXAMPLE = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'

_DEEPEST = 20  # levels of objects and lists: nothing has more than three, and comparing a thousand ends in an error
_SHOWN = 200  # characters of a value that a message shows


class Pool(NamedTuple):
    """The subnets of one address family: those of `subnet_len` from `subnet_min` to `subnet_max`, of `network`."""

    network: Network
    subnet_len: int
    subnet_min: Address
    subnet_max: Address

    def subnets(self) -> Iterator[Network]:
        """Yield every subnet that may be leased, lowest first."""
        step = 1 << (self.network.max_prefixlen - self.subnet_len)
        kind = type(self.network)
        for start in range(int(self.subnet_min), int(self.subnet_max) + 1, step):
            yield kind((start, self.subnet_len))

    def permits(self, subnet: Network) -> bool:
        """Tell whether `subnet` is one that `subnets` yields."""
        if subnet.version != self.network.version or subnet.prefixlen != self.subnet_len:
            return False
        return int(self.subnet_min) <= int(subnet.network_address) <= int(self.subnet_max)


class NetworkConfig(NamedTuple):
    """A checked configuration; at least one family is there.

    `backend` holds the Backend object with lower-case keys, `backend_type` its Type in lower case.
    """

    ipv4: Optional[Pool]
    ipv6: Optional[Pool]
    nftables: bool
    backend_type: str
    backend: Mapping[str, Any]

    @property
    def pools(self) -> Mapping[int, Pool]:
        """The pools that are there by IP version."""
        return {version: pool for version, pool in ((4, self.ipv4), (6, self.ipv6)) if pool is not None}

    @property
    def name(self) -> str:
        """The networks in words: 10.244.0.0/16, or 10.244.0.0/16 and fd00::/48."""
        return " and ".join(map(str, self.networks.values()))

    @property
    def networks(self) -> Mapping[int, Network]:
        """The networks by IP version."""
        return {version: pool.network for version, pool in self.pools.items()}


class _Family(NamedTuple):
    """What differs between the address families. `usual`: SubnetLen in a network of at most `roomy`."""

    name: str
    bits: int
    usual: int
    roomy: int
    smallest: int
    example: str


_IPV4 = _Family("", 32, 24, 22, 28, "10.244.0.0/16")
_IPV6 = _Family("IPv6", 128, 64, 62, 124, "fd00:10:244::/48")


def parse_config(text: str) -> NetworkConfig:
    """Parse and check the configuration; raises ConfigError naming the key, its value and what is valid."""
    try:
        raw = flat_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the network configuration is not JSON: {error}", f"it should look like {EXAMPLE}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"the network configuration is {show(raw)}, not a JSON object", f"it should look like {EXAMPLE}"
        )
    keys = lower(raw)
    ipv4 = _pool(keys, _IPV4) if flag(keys, "EnableIPv4", default=True) else None
    ipv6 = _pool(keys, _IPV6) if flag(keys, "EnableIPv6") else None
    if ipv4 is None and ipv6 is None:
        raise ConfigError("EnableIPv4 and EnableIPv6 are both false", "enable at least one")
    backend = keys.get("backend", {"Type": "udp"})
    if not isinstance(backend, dict):
        raise ConfigError(f"Backend is {show(backend)}, not an object", 'for example {"Type": "vxlan"}')
    settings = lower(backend)
    kind = settings.get("type", "")
    if not isinstance(kind, str) or not kind:
        raise ConfigError(f"Backend has the Type {show(kind)}", 'for example "vxlan"')
    return NetworkConfig(ipv4, ipv6, flag(keys, "EnableNFTables"), kind.lower(), settings)


def flat_json(text: str) -> Any:
    """Return decoded JSON that can be compared and encoded without a RecursionError.

    Raises ValueError for more than _DEEPEST levels, for NaN and Infinity, and for what is no JSON; RecursionError, too.
    """
    raw = json.loads(text, parse_constant=_no_number)
    if text.count("{") + text.count("[") > _DEEPEST and _is_deep(raw):
        raise ValueError(f"it has more than {_DEEPEST} levels")
    return raw


def show(value: object) -> str:
    """Return a value of the configuration as the user wrote it, a long one cut off."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def lower(raw: Mapping[str, Any]) -> Dict[str, Any]:
    """Return an object with its keys in lower case: Go matches them in any."""
    return {key.lower(): value for key, value in raw.items()}


def flag(keys: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Return a boolean; raises ConfigError for anything else."""
    value = keys.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {show(value)}", "use true or false without quotes")
    return value


def number(keys: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number; raises ConfigError for anything else and outside of the limits."""
    value = keys.get(name.lower())
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {show(value)}", f"use a number from {low} to {high}")
    return value


def words(keys: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a string; raises ConfigError for anything else."""
    value = keys.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {show(value)}", "use a string")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is_deep(raw: object) -> bool:
    level = [raw]
    for _ in range(_DEEPEST):
        inner: List[object] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        level = inner
    return bool(level)


def _pool(keys: Mapping[str, Any], family: _Family) -> Pool:
    network = _network(keys.get(f"{family.name}Network".lower()), family)
    length = _subnet_len(keys, network, family)
    size = 1 << (family.bits - length)
    first, last = int(network.network_address), int(network.broadcast_address)
    low = _boundary(keys, f"{family.name}SubnetMin", network, length, first + size)
    high = _boundary(keys, f"{family.name}SubnetMax", network, length, last - size + 1)
    if int(low) > int(high):
        raise ConfigError(f"{family.name}SubnetMin {low} is above {family.name}SubnetMax {high}", "exchange them")
    return Pool(network, length, low, high)


def _network(value: object, family: _Family) -> Network:
    name = f"{family.name}Network"
    hint = f'use an {family.name or "IPv4"} network such as "{family.example}"'
    kind = ipaddress.IPv6Network if family.name else ipaddress.IPv4Network
    # Neither a scope ("fd00::%eth0/48") nor a mask instead of the length is known to Go.
    if not isinstance(value, str) or "%" in value or not value.partition("/")[2].isdigit():
        raise ConfigError(f"{name} is {show(value)}", hint)
    try:
        network = kind(value, strict=False)
    except ValueError:
        raise ConfigError(f"{name} is {show(value)}", hint) from None
    if network.prefixlen == 0 or network.network_address.is_unspecified:
        raise ConfigError(f"{name} is {show(value)}", hint)
    if network.prefixlen > family.smallest:
        raise ConfigError(
            f"{name} {network} is too small: the smallest useful one is a /{family.smallest}",
            "choose a larger network",
        )
    return network


def _subnet_len(keys: Mapping[str, Any], network: Network, family: _Family) -> int:
    name = f"{family.name}SubnetLen"
    value = keys.get(name.lower())
    if value is None or value == 0:
        return family.usual if network.prefixlen <= family.roomy else network.prefixlen + 2
    low, high = network.prefixlen + 2, family.bits - 2
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} is {show(value)}", f"use a number from {low} to {high}")
    if value > high:
        raise ConfigError(f"{name} is {value}", f"it must be less than {high + 1}")
    if value < low:
        raise ConfigError(f"{name} is {value}, but {network} must hold at least four subnets", f"use {low} to {high}")
    return value


def _boundary(keys: Mapping[str, Any], name: str, network: Network, length: int, default: int) -> Address:
    value = keys.get(name.lower())
    kind = type(network.network_address)
    if value is None or value == "":
        return kind(default)
    if not isinstance(value, str) or "%" in value:
        raise ConfigError(f"{name} is {show(value)}", f"use an address of {network}")
    try:
        address = kind(value)
    except ValueError:
        raise ConfigError(f"{name} is {show(value)}", f"use an address of {network}") from None
    if address not in network:
        raise ConfigError(f"{name} {address} is not in the range of the network {network}")
    if int(address) % (1 << (network.max_prefixlen - length)):
        there = type(network)((int(address), length), strict=False)
        raise ConfigError(f"{name} {address} is not on a SubnetLen boundary", f"the subnet there is {there}")
    return address
