"""What differs between what a daemon wants and what the kernel has, in words and by peer. Pure."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from flanneld import dataplane as dp

_MISSING, _FOREIGN = "is missing", "does not belong there"


class Way(NamedTuple):
    """How packets to a subnet leave: the route, and for vxlan the MAC and the machine that follow from it."""

    route: dp.Route
    mac: str = ""
    machine: str = ""

    def __str__(self) -> str:
        if self.mac:
            return f"{self.route.device} {self.mac}"
        return f"{self.route.device} via {self.route.gateway}" if self.route.gateway else self.route.device


class Difference(NamedTuple):
    """One thing that is not as it should be, and what is wrong with it.

    `concerns`: the route's prefix, a device, or what keys an entry of a device.
    """

    thing: str
    wrong: str
    concerns: Union[str, Tuple[str, str]] = ""

    def __str__(self) -> str:
        return f"{self.thing} {self.wrong}"


def way(desired: dp.Desired, subnet: dp.Network) -> Optional[Way]:
    """Return how packets to a subnet should leave, None when nothing should lead there."""
    route = desired.routes.get(str(subnet))
    if route is None:
        # Backends with a data path of their own have one route for the whole network.
        network = desired.ownership.networks.get(subnet.version)
        route = desired.routes.get(str(network)) if network is not None else None
    if route is None:
        return None
    mac = desired.neighbours.get((route.device, route.gateway), "")
    return Way(route, mac, desired.forwarding.get((route.device, mac), ""))


def differences(desired: dp.Desired, found: dp.Found) -> List[Difference]:
    """Return what is not as it should be, in the order in which it would be set right."""
    tuns = [one.name for one in desired.devices if isinstance(one, dp.Tun)]
    # The plan leaves a tun that is not there to its backend; for people it is missing like anything else.
    absent = [Difference(name, _MISSING, name) for name in tuns if name not in found.devices]
    return absent + [_difference(step) for step in dp.plan(desired, found)]


class Concerned:
    """Differences sorted by what they concern."""

    def __init__(self, found: Sequence[Difference]) -> None:
        self._found: Dict[Union[str, Tuple[str, str]], List[Difference]] = {}
        for one in found:
            self._found.setdefault(one.concerns, []).append(one)

    def by(self, *keys: Union[str, Tuple[str, str]]) -> List[Difference]:
        """Return the differences that concern one of these."""
        return [one for key in keys for one in self._found.get(key, [])] if self._found else []

    def of(self, desired: dp.Desired, subnets: Sequence[dp.Network]) -> List[Difference]:
        """Return the differences on the way to these subnets."""
        found: List[Difference] = []
        for subnet in subnets if self._found else ():
            there = way(desired, subnet)
            if there is not None:
                device = there.route.device
                entries = ((device, there.route.gateway), (device, there.mac))
                found += self.by(device, *entries, there.route.destination)
        return found


def _difference(step: dp.Step) -> Difference:
    if isinstance(step, dp.CreateDevice):
        return Difference(step.device.name, _MISSING, step.device.name)
    if isinstance(step, dp.DeleteDevice):
        return Difference(step.name, f"is wrong: {step.reason}", step.name)
    if isinstance(step, dp.SetDevice):
        device = step.device
        mac = f"MAC {device.mac}, " if isinstance(device, dp.Vxlan) else ""
        return Difference(device.name, f"should have {mac}MTU {device.mtu}, and be up", device.name)
    return _entry_difference(step)


def _entry_difference(step: dp.Entry) -> Difference:
    if isinstance(step, (dp.AddAddress, dp.RemoveAddress)):
        wrong = _MISSING if isinstance(step, dp.AddAddress) else _FOREIGN
        return Difference(f"address {step.address} of {step.device}", wrong, step.device)
    if isinstance(step, (dp.PutRoute, dp.RemoveRoute)):
        wrong = _FOREIGN
        if isinstance(step, dp.PutRoute):
            wrong = f"{_MISSING}: another route is in its place" if step.replaces else _MISSING
        return Difference(str(step.route), wrong, step.route.destination)
    if isinstance(step, (dp.PutNeighbour, dp.RemoveNeighbour)):
        wrong = _MISSING if isinstance(step, dp.PutNeighbour) else _FOREIGN
        thing = f"neighbour {step.address} at {step.mac} on {step.device}"
        return Difference(thing, wrong, (step.device, step.address))
    wrong = _MISSING if isinstance(step, dp.PutForwarding) else _FOREIGN
    thing = f"forwarding of {step.mac} to {step.machine} on {step.device}"
    return Difference(thing, wrong, (step.device, step.mac))
