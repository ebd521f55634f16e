"""Looks at single things in the kernel's network, for people: neighbours in any state, and the way to an address."""

from __future__ import annotations

import socket
from typing import Dict, List, NamedTuple, Optional

from flanneld.net import wire
from flanneld.net.kernel import Kernel


class Way(NamedTuple):
    """The way the kernel takes to an address: `device`, and `gateway` if there is one."""

    device: str
    gateway: str

    def __str__(self) -> str:
        return f"dev {self.device}{f' via {self.gateway}' if self.gateway else ''}"


class Lookup(Kernel):
    """The door to the kernel's network, with questions that only people have."""

    def names(self) -> Dict[int, str]:
        """Return the names of the interfaces by their index."""
        return {link.ifindex: link.name for link in self.links()}

    def holder(self, address: str) -> str:
        """Return the interface of this machine that has an address, empty when none has it."""
        names = self.names()
        return next((names.get(one.ifindex, "") for one in self.addresses() if one.address == address), "")

    def way(self, address: str) -> Optional[Way]:
        """Return the way to an address by the main table, None when there is none."""
        route = self.route_to(address)
        if route is None or not route.oif:
            return None
        return Way(self.names().get(route.oif, str(route.oif)), route.gateway)

    def neighbours(self, device: str, version: int) -> List[wire.Neighbour]:
        """Return the neighbours of an interface in whatever state; those without a MAC did not answer."""
        try:
            index = socket.if_nametoindex(device)
        except OSError:
            return []
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        found = map(wire.parse_neighbour, self._dump(wire.GETNEIGH, wire.neighbour_query(family, index)))
        return [one for one in found if one.ifindex == index and one.address]
