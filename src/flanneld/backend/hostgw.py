"""The host-gw backend: a plain route per machine, for machines on one link. Nothing is wrapped, nothing is slower.

A machine with vxlan gets the same route: with DirectRouting it sets the same one to us, so a network can go from one
of these backends to the other machine by machine.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Union

from flanneld.backend.base import Backend, Existing, Underlay, firsts, is_direct
from flanneld.dataplane import Desired, Route
from flanneld.errors import NetworkError
from flanneld.subnet.config import NetworkConfig
from flanneld.subnet.lease import Lease


class HostGatewayBackend(Backend):
    """Routes through the other machines' own addresses."""

    type = "host-gw"
    announced = "host-gw"
    understood = ("vxlan",)
    plain = True

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        super().__init__(config, underlay)
        self.mtu = underlay.mtu

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Take over another network, address or MTU."""
        super().follow(config, underlay)
        self.mtu = underlay.mtu

    def prepare(self, existing: Existing) -> None:
        """Refuse an announced address that is not the interface's own: behind a NAT nobody can route to it."""
        for version, address in self.underlay.addresses.items():
            if existing.public[version] != address:
                raise NetworkError(
                    f"the public address {existing.public[version]} differs from {address} of {self.underlay.name}",
                    "host-gw does not work through a NAT; use the vxlan backend",
                )

    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return one route per machine; the own lease is left out."""
        routes: Dict[str, Route] = {}
        for _lease, peers in self.remembered(own, leases, self._routes):
            for route in peers:
                routes[route.destination] = route
        return Desired(self.ownership(), routes=routes, firsts=firsts(own), unused=self.unused)

    def _routes(self, lease: Lease) -> Union[str, List[Route]]:
        found = []
        for subnet in lease.subnets:
            if subnet.version not in self.underlay.addresses:
                continue
            machine = lease.attributes.public(subnet.version)
            if not machine:
                return f"it announces no IPv{subnet.version} address"
            if not is_direct(machine, self.underlay):
                return f"{machine} is not on the link of {self.underlay.name}, which host-gw needs"
            found.append(Route(str(subnet), self.underlay.name, machine))
        return found
