"""The alloc backend: a subnet is leased, and everything else is left to others (a cloud's routes, another daemon)."""

from __future__ import annotations

from typing import Iterable

from flanneld.backend.base import Backend, Underlay
from flanneld.dataplane import Desired, Ownership
from flanneld.subnet.config import NetworkConfig
from flanneld.subnet.lease import Lease


class AllocBackend(Backend):
    """Leases carry no BackendType. Nothing is put into the kernel and nothing there is owned."""

    type = "alloc"

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        super().__init__(config, underlay)
        self.mtu = underlay.mtu

    def desired(self, own: Lease, leases: Iterable[Lease]) -> Desired:
        """Return an overlay without anything."""
        del own, leases
        return Desired(self.ownership())

    def follow(self, config: NetworkConfig, underlay: Underlay) -> None:
        """Take over the configuration, and the MTU of the interface."""
        super().follow(config, underlay)
        self.mtu = underlay.mtu

    def ownership(self) -> Ownership:
        """Return that nothing is owned: routes within the network are those of whoever makes them here."""
        return Ownership({})
