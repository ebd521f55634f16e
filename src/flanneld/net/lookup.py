"""Looks at single things in the kernel's network, for people: neighbours in any state, and the way to an address."""

from __future__ import annotations

import ipaddress
import socket
from typing import Dict, Iterator, List, NamedTuple, Optional

from flanneld import dataplane as dp
from flanneld.net import wire
from flanneld.net.kernel import Kernel


class Way(NamedTuple):
    """The way the kernel takes to an address: `device`, and `gateway` if there is one."""

    device: str
    gateway: str

    def __str__(self) -> str:
        return f"dev {self.device}{f' via {self.gateway}' if self.gateway else ''}"


_KINDS = {6: "blackhole ", 7: "unreachable ", 8: "prohibit ", 9: "throw "}
"""Kinds of routes that lead nowhere, by number (linux/rtnetlink.h), as `ip route` calls them; rules have the same."""

_BY_KERNEL = 2  # the protocol of a route that comes of an address
_TABLES = {253: "default", 254: "main", 255: "local"}  # those that every machine has


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

    def obstacle(self, address: str, wanted: dp.Route) -> str:
        """Return in words what of this machine takes precedence over a wanted route to an address, and the remedy.

        Empty when nothing of the kind is there.
        """
        names = self.names()
        for one in self.addresses():
            if one.address == address:
                held = f"{address}/{one.length} dev {names.get(one.ifindex, one.ifindex)}"
                return f"its own address {held}; remove that (`ip addr del {held}`)"
        version = wire.version_of(address)
        best = max(
            (one for one in self.routes(version) if _contains(one.destination, address)),
            key=lambda one: (_length(one.destination), -one.priority),
            default=None,
        )
        if best is not None and _length(best.destination) >= _length(wanted.destination):
            device = names.get(best.oif, "")
            same = (best.destination, device, best.gateway) == (wanted.destination, wanted.device, wanted.gateway)
            if not same or best.kind != wire.UNICAST:
                return _foreign_route(best, device)
        return " and ".join(self._rules_to(address, version))

    def _rules_to(self, address: str, version: int) -> Iterator[str]:
        for message in self._dump(wire.GETRULE, wire.rule_query(version)):
            one = wire.parse_rule(message)
            takes = one.unmarked and (not one.destination or _contains(one.destination, address))
            if takes == one.inverted or (one.action == 1 and one.table in _TABLES):
                continue
            to = f"to {one.destination} " if one.destination else ""
            end = _KINDS.get(one.action, f"lookup {one.table}").strip()
            family = "-6 " if version == 6 else ""
            yield (
                f"the rule {one.priority}: {'not ' if one.inverted else ''}{to}{end}; remove that"
                f" (`ip {family}rule del priority {one.priority}`)"
            )


def _foreign_route(one: wire.RouteEntry, device: str) -> str:
    way = f"{f' via {one.gateway}' if one.gateway else ''}{f' dev {device}' if device else ''}"
    what = f"{_KINDS.get(one.kind, '')}{one.destination}{way}"
    if one.protocol == _BY_KERNEL:
        return f"its own network {what}; give that one or the pod network other addresses"
    metric = f" metric {one.priority}" if one.priority else ""
    return f"the route {what}{metric}; remove that (`ip route del {what}{metric}`)"


def _contains(prefix: str, address: str) -> bool:
    return dp.contains(ipaddress.ip_network(prefix), address)


def _length(prefix: str) -> int:
    return int(prefix.partition("/")[2])
