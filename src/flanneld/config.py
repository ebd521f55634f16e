"""The network configuration in etcd: `<prefix>/config`, a JSON object whose keys match in any letter case.

Keys, defaults and limits are those of the Go daemon: Network is needed; SubnetLen is 24, or prefix + 2 in networks
smaller than a /22; SubnetMin is the second subnet and SubnetMax the last.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional

from flanneld.errors import ConfigError

Network = ipaddress.IPv4Network
Address = ipaddress.IPv4Address


class NetworkConfig(NamedTuple):
    """A checked configuration; `backend` holds the Backend object with lower-case keys, `backend_type` its Type."""

    network: Network
    subnet_len: int
    subnet_min: Address
    subnet_max: Address
    backend_type: str
    backend: Mapping[str, Any]

    def subnets(self) -> Iterator[Network]:
        """Yield every subnet that may be leased, lowest first."""
        step = 1 << (32 - self.subnet_len)
        for start in range(int(self.subnet_min), int(self.subnet_max) + 1, step):
            yield Network((start, self.subnet_len))

    def permits(self, subnet: Network) -> bool:
        """Tell whether `subnet` is one that `subnets` yields."""
        return subnet.prefixlen == self.subnet_len and self.subnet_min <= subnet.network_address <= self.subnet_max


class VxlanConfig(NamedTuple):
    """The vxlan backend's settings; `mtu` is the underlay's, None = that of the interface."""

    vni: int
    port: int
    mtu: Optional[int]
    learning: bool
    gbp: bool


def parse_config(text: str) -> NetworkConfig:
    """Parse and check the configuration; raises ConfigError naming the key, its value and what is valid."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the network configuration is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"the network configuration is {_show(raw)}, not a JSON object")
    keys = _lower(raw)
    if _flag(keys, "EnableIPv6") or keys.get("ipv6network"):
        raise ConfigError("IPv6 is not supported yet", "remove EnableIPv6 and IPv6Network")
    if not _flag(keys, "EnableIPv4", default=True):
        raise ConfigError("EnableIPv4 is false and IPv6 is not supported yet", "remove EnableIPv4")
    if _flag(keys, "EnableNFTables"):
        raise ConfigError("EnableNFTables is not supported yet", "remove it: iptables rules are used")
    network = _network(keys.get("network"))
    length = _subnet_len(keys, network)
    size = 1 << (32 - length)
    first, last = int(network.network_address), int(network.broadcast_address)
    low = _boundary(keys, "SubnetMin", network, length, first + size)
    high = _boundary(keys, "SubnetMax", network, length, last - size + 1)
    if low > high:
        raise ConfigError(f"SubnetMin {low} is above SubnetMax {high}", "exchange them")
    backend = keys.get("backend", {"Type": "udp"})
    if not isinstance(backend, dict):
        raise ConfigError(f"Backend is {_show(backend)}, not an object", 'for example {"Type": "vxlan"}')
    settings = _lower(backend)
    kind = settings.get("type", "")
    if not isinstance(kind, str) or not kind:
        raise ConfigError(f"Backend has the Type {_show(kind)}", 'use "vxlan"')
    return NetworkConfig(network, length, low, high, kind.lower(), settings)


def vxlan_config(config: NetworkConfig) -> VxlanConfig:
    """Check the backend, of which vxlan is the only one, and its own keys; raises ConfigError."""
    if config.backend_type != "vxlan":
        raise ConfigError(f"the backend {config.backend_type!r} is not supported yet", 'use "vxlan"')
    settings = config.backend
    if _flag(settings, "DirectRouting"):
        raise ConfigError("Backend.DirectRouting is not supported yet", "remove it: all traffic is tunnelled")
    mtu = _number(settings, "MTU", 0, 0, 65535)
    if 0 < mtu < 576 + 50:
        raise ConfigError(f"Backend.MTU is {mtu}", "it is the MTU between the machines, 626 or more")
    return VxlanConfig(
        vni=_number(settings, "VNI", 1, 1, (1 << 24) - 1),
        port=_number(settings, "Port", 0, 0, 65535) or 8472,
        mtu=mtu or None,
        learning=_flag(settings, "Learning"),
        gbp=_flag(settings, "GBP"),
    )


def _show(value: object) -> str:
    return json.dumps(value)


def _lower(raw: Mapping[str, Any]) -> Dict[str, Any]:
    return {key.lower(): value for key, value in raw.items()}


def _flag(keys: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = keys.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {_show(value)}", "use true or false without quotes")
    return value


def _number(keys: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = keys.get(name.lower())
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {_show(value)}", f"use a number from {low} to {high}")
    return value


def _network(value: object) -> Network:
    hint = 'use an IPv4 network such as "10.244.0.0/16"'
    if not isinstance(value, str) or "/" not in value:
        raise ConfigError(f"Network is {_show(value)}", hint)
    try:
        network = Network(value, strict=False)
    except ValueError:
        raise ConfigError(f"Network is {_show(value)}", hint) from None
    if network.prefixlen == 0 or network.network_address.is_unspecified:
        raise ConfigError(f"Network is {_show(value)}", hint)
    if network.prefixlen > 28:
        raise ConfigError(
            f"Network {network} is too small: the smallest useful one is a /28", "choose a larger network"
        )
    return network


def _subnet_len(keys: Mapping[str, Any], network: Network) -> int:
    default = 24 if network.prefixlen <= 22 else network.prefixlen + 2
    value = keys.get("subnetlen")
    if value in {None, 0}:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"SubnetLen is {_show(value)}", "use a number")
    if value > 30:
        raise ConfigError(f"SubnetLen is {value}", "it must be less than 31")
    if value < network.prefixlen + 2:
        raise ConfigError(
            f"SubnetLen is {value}, but {network} must hold at least four subnets",
            f"use {network.prefixlen + 2} to 30",
        )
    return value


def _boundary(keys: Mapping[str, Any], name: str, network: Network, length: int, default: int) -> Address:
    value = keys.get(name.lower())
    if value is None or value == "":
        return Address(default)
    try:
        address = Address(str(value))
    except ValueError:
        raise ConfigError(f"{name} is {_show(value)}", "use an IPv4 address") from None
    if address not in network:
        raise ConfigError(f"{name} {address} is not in the range of the Network {network}")
    if int(address) % (1 << (32 - length)):
        raise ConfigError(
            f"{name} {address} is not on a SubnetLen boundary",
            f"the subnet there is {Network((int(address), length), strict=False)}",
        )
    return address
