"""The vxlan backend: the kernel wraps packets in UDP, one device per IP version.

For each other machine a route through the first address of its subnet, a neighbour entry that turns that address into
the MAC of the machine's device, and a forwarding entry that turns the MAC into the machine. With DirectRouting a
machine on the same link gets a plain route instead; there one with host-gw, which sets the same routes, does as well.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from flanneld.backend.base import Backend, Existing, Underlay, is_direct
from flanneld.dataplane import Desired, Route, Vxlan
from flanneld.errors import ConfigError, NetworkError
from flanneld.log import Repeated, logger
from flanneld.subnet.config import NetworkConfig, flag, number
from flanneld.subnet.lease import Lease

OVERHEAD = {4: 50, 6: 70}
"""Octets of outer Ethernet, IP, UDP and VXLAN headers by the IP version of the machines' addresses."""

_DEVICE = {4: "flannel.{}", 6: "flannel-v6.{}"}
_SMALLEST = {4: 68, 6: 1280}
_MAC = re.compile(r"(?!00:00:00:00:00:00)[0-9a-f][02468ace](?::[0-9a-f]{2}){5}")  # of a device: no group's, not zero
_too_large = Repeated()


class Settings(NamedTuple):
    """The backend's keys; `mtu` is the underlay's, None = that of the interface, which it cannot exceed."""

    vni: int
    port: int
    mtu: Optional[int]
    learning: bool
    gbp: bool
    direct: bool


class _Peer(NamedTuple):
    """A lease turned into entries for one IP version; `direct`: without the tunnel."""

    version: int
    destination: str
    first: str
    machine: str
    mac: str
    direct: bool


def settings(config: NetworkConfig) -> Settings:
    """Check the backend's keys; raises ConfigError."""
    keys = config.backend
    mtu = number(keys, "MTU", 0, 0, 65535)
    for version in config.networks:
        least = _SMALLEST[version] + OVERHEAD[version]
        if 0 < mtu < least:
            raise ConfigError(f"Backend.MTU is {mtu}", f"it is the MTU between the machines, {least} or more")
    return Settings(
        number(keys, "VNI", 1, 1, (1 << 24) - 1),
        number(keys, "Port", 0, 0, 65535) or 8472,
        mtu or None,
        flag(keys, "Learning"),
        flag(keys, "GBP"),
        flag(keys, "DirectRouting"),
    )


def random_mac() -> str:
    """Return a random locally administered unicast MAC."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = (octets[0] & 0xFE) | 0x02
    return octets.hex(":")


def peer_mac(lease: Lease, version: int) -> Optional[str]:
    """Return the MAC a vxlan lease announces for an IP version, None when there is no usable one."""
    data = lease.attributes.data(version)
    if lease.attributes.backend_type != "vxlan" or not isinstance(data, dict):
        return None
    mac = {str(key).lower(): value for key, value in data.items()}.get("vtepmac")
    if not isinstance(mac, str) or not _MAC.fullmatch(mac.lower()):
        return None
    return mac.lower()


class VxlanBackend(Backend):
    """Pure apart from the random MACs."""

    type = "vxlan"
    announced = "vxlan"

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        super().__init__(config, underlay)
        self._settings = settings(config)
        self.plain = self._settings.direct
        self.understood = ("host-gw",) if self._settings.direct else ()
        self._macs: Dict[int, str] = {}
        self._use(self._shaped(underlay))

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Take over another network, address or MTU; the MACs stay."""
        devices = self._shaped(underlay)
        super().follow(config, underlay)
        self._use(devices)

    def _use(self, devices: Dict[int, Vxlan]) -> None:
        self._devices = devices
        self.mtu = min(device.mtu for device in devices.values())

    def _shaped(self, underlay: Underlay) -> Dict[int, Vxlan]:
        chosen = self._settings
        if chosen.mtu and chosen.mtu > underlay.mtu:
            _too_large.warn(
                f"Backend.MTU is {chosen.mtu}, more than the {underlay.mtu} of {underlay.name}, which is used instead:"
                f" set it to {underlay.mtu} or less, or that of {underlay.name} higher"
            )
        outer = min(chosen.mtu or underlay.mtu, underlay.mtu)
        devices = {}
        for version, address in underlay.addresses.items():
            mtu = outer - OVERHEAD[version]
            if mtu < _SMALLEST[version]:
                raise NetworkError(
                    f"interface {underlay.name} has the MTU {outer}",
                    f"vxlan over IPv{version} needs {_SMALLEST[version] + OVERHEAD[version]} or more",
                )
            devices[version] = Vxlan(
                _DEVICE[version].format(chosen.vni),
                mtu,
                chosen.vni,
                underlay.name,
                address,
                chosen.port,
                self._macs.get(version, ""),
                chosen.learning,
                chosen.gbp,
            )
        return devices

    def prepare(self, existing: Existing) -> None:
        """Settle the devices' MACs: that of the device found, else the one announced before, else a random one.

        A MAC that another machine announces is not kept: machines copied from one image derive the same one.
        """
        for version, device in self._devices.items():
            public = existing.public[version]
            others, announced = set(), []
            for name, lease in existing.leases.items():
                mac = peer_mac(lease, version)
                if name == existing.own or lease.attributes.public(version) == public:
                    announced.append(mac)
                else:
                    others.add(mac)
            self._macs[version] = self._choose([existing.macs.get(device.name), *announced], others)
        self._use(self._shaped(self.underlay))

    @staticmethod
    def _choose(candidates: Iterable[Optional[str]], others: Iterable[Optional[str]]) -> str:
        taken = set(others)
        for mac in candidates:
            if mac and mac not in taken and _MAC.fullmatch(mac):
                return mac
            if mac:
                logger.warning("another machine has the same MAC %s; choosing a new one", mac)
        return random_mac()

    def data(self, version: int) -> Any:
        """Return BackendData of the own lease."""
        device = self._devices.get(version)
        return {"VNI": device.vni, "VtepMAC": device.mac} if device else None

    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return the overlay for these leases; the own one among them is left out."""
        neighbours: Dict[Tuple[str, str], str] = {}
        forwarding: Dict[Tuple[str, str], str] = {}
        routes: Dict[str, Route] = {}
        names = {version: device.name for version, device in self._devices.items()}
        own_macs = {device.mac for device in self._devices.values()}
        for lease, peers in self.remembered(own, leases, self._peers):
            for peer in peers:
                if peer.direct:
                    routes[peer.destination] = Route(peer.destination, self.underlay.name, peer.machine)
                    continue
                name = names[peer.version]
                key = (name, peer.mac)
                if key in forwarding or peer.mac in own_macs:
                    self.ignore(lease, f"its MAC {peer.mac} is that of another machine")
                    continue
                neighbours[name, peer.first] = peer.mac
                forwarding[key] = peer.machine
                routes[peer.destination] = Route(peer.destination, name, peer.first, onlink=True)
        addresses = {
            names[subnet.version]: frozenset({f"{subnet.network_address}/{subnet.max_prefixlen}"})
            for subnet in own.subnets
            if subnet.version in names
        }
        return Desired(
            self.ownership(),
            tuple(self._devices.values()),
            addresses,
            neighbours,
            forwarding,
            routes,
            unused=self.unused,
        )

    def _peers(self, lease: Lease) -> Union[str, List[_Peer]]:
        found = []
        for subnet in lease.subnets:
            version = subnet.version
            if version not in self._devices:
                continue
            machine = lease.attributes.public(version)
            if not machine:
                return f"it announces no IPv{version} address"
            direct = self._settings.direct and is_direct(machine, self.underlay)
            mac = peer_mac(lease, version)
            if mac is None and lease.attributes.backend_type != self.announced:
                if not direct:
                    return self._other(lease)
            elif mac is None:
                return f"its data for IPv{version} holds no usable VtepMAC"
            found.append(_Peer(version, str(subnet), str(subnet.network_address), machine, mac or "", direct))
        return found
