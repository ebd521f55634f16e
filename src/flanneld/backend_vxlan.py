"""The vxlan backend: what a machine announces for it, and the overlay that follows from everybody's leases."""

from __future__ import annotations

import re
import secrets
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Optional

from flanneld.config import Address, Network, NetworkConfig, vxlan_config
from flanneld.dataplane import Desired, Device, Interface
from flanneld.errors import NetworkError
from flanneld.log import logger
from flanneld.subnet import Lease

OVERHEAD = 50
"""Octets of outer Ethernet, IPv4, UDP and VXLAN headers."""

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class Underlay(NamedTuple):
    """The interface towards the other machines."""

    name: str
    address: Address
    mtu: int


def random_mac() -> str:
    """Return a random locally administered unicast MAC."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = (octets[0] & 0xFE) | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def peer_mac(lease: Lease) -> Optional[str]:
    """Return the MAC a vxlan lease announces, None when the lease is not a usable vxlan one."""
    data = lease.attributes.backend_data
    if lease.attributes.backend_type != "vxlan" or not isinstance(data, dict):
        return None
    mac = {str(key).lower(): value for key, value in data.items()}.get("vtepmac")
    if not isinstance(mac, str) or not _MAC.fullmatch(mac.lower()):
        return None
    return mac.lower()


class VxlanBackend:
    """Pure apart from the random MAC: `choose_mac` once, then `desired` for every picture of the leases."""

    type = "vxlan"

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        settings = vxlan_config(config)
        outer = settings.mtu or underlay.mtu
        if outer - OVERHEAD < 68:
            raise NetworkError(f"interface {underlay.name} has the MTU {outer}", "vxlan needs 118 or more")
        self.mtu = outer - OVERHEAD
        self.network = config.network
        self._warned: Dict[str, str] = {}
        self._device = Device(
            f"flannel.{settings.vni}",
            settings.vni,
            underlay.name,
            underlay.address,
            settings.port,
            self.mtu,
            "",
            settings.learning,
            settings.gbp,
        )

    @property
    def device(self) -> str:
        """Return the name of the tunnel device."""
        return self._device.name

    def choose_mac(self, existing: Optional[str], leases: Mapping[str, Lease], public_ip: Address) -> None:
        """Settle the device's MAC: that of the device found, else the one announced before, else a random one.

        A MAC that another machine announces is not kept: machines copied from one image derive the same one.
        """
        others = {peer_mac(lease) for lease in leases.values() if lease.attributes.public_ip != public_ip}
        announced = [peer_mac(lease) for lease in leases.values() if lease.attributes.public_ip == public_ip]
        for mac in [existing, *announced]:
            if mac and mac not in others:
                self._device = self._device._replace(mac=mac)
                return
            if mac:
                logger.warning("another machine has the same MAC %s; choosing a new one", mac)
        self._device = self._device._replace(mac=random_mac())

    def data(self) -> Dict[str, Any]:
        """Return BackendData of the own lease."""
        return {"VNI": self._device.vni, "VtepMAC": self._device.mac}

    def desired(self, own: Network, leases: Iterable[Lease]) -> Desired:
        """Return the overlay for these leases; the own one among them is left out."""
        neighbours: Dict[Address, str] = {}
        forwarding: Dict[str, Address] = {}
        routes: Dict[Network, Address] = {}
        for lease in sorted(leases):
            if lease.subnet.overlaps(own):
                continue
            mac = peer_mac(lease)
            if mac is None:
                self._warn(lease, "it is not a vxlan lease")
                continue
            if mac == self._device.mac or mac in forwarding:
                self._warn(lease, f"its MAC {mac} is that of another machine")
                continue
            gateway = lease.subnet.network_address
            neighbours[gateway] = mac
            forwarding[mac] = lease.attributes.public_ip
            routes[lease.subnet] = gateway
        address = Interface((own.network_address, 32))
        return Desired(self._device, self.network, frozenset({address}), neighbours, forwarding, routes)

    def _warn(self, lease: Lease, reason: str) -> None:
        if self._warned.get(str(lease.subnet)) != reason:
            self._warned[str(lease.subnet)] = reason
            logger.warning("ignoring the lease %s of %s: %s", lease.subnet, lease.attributes.public_ip, reason)
