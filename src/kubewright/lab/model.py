"""What the lab consists of, computed from an Ansible inventory.

The inventory is the only source: its hosts are the machines, `ansible_host` their addresses. `lab_network`
(group variable, optional) is the network of the lab's bridge; without it, the /24 of the first machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kubewright.errors import UserError

LABS = Path("/var/lib/kubewright/labs")
RUNTIME = Path("/run/kubewright")
BRIDGE = "kwbr0"
# RFC 1123: what a host name and a Kubernetes node name may look like.
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True)
class Machine:
    """One machine: its inventory name, its address and the directory with its disks and state."""

    name: str
    address: ipaddress.IPv4Address
    directory: Path

    @property
    def state_file(self) -> Path:
        """Which process runs the machine."""
        return self.directory / "process.json"

    @property
    def image_file(self) -> Path:
        """Which base image the machine's disks lie on."""
        return self.directory / "image"

    @property
    def cut_mark(self) -> Path:
        """Exists while the machine's cable is pulled."""
        return self.directory / "cut"

    @property
    def log(self) -> Path:
        """Console output of the machine and of what boots it."""
        return self.directory / "console.log"


@dataclass(frozen=True)
class LabSpec:
    """A lab: where its inventory is, its network, its machines in inventory order."""

    inventory: Path
    lab_id: str
    network: ipaddress.IPv4Network
    machines: tuple[Machine, ...]

    @property
    def namespace(self) -> str:
        """Name of the network namespace that holds the bridge."""
        return f"kw-{self.lab_id}"

    @property
    def namespace_path(self) -> Path:
        """The namespace as a file, the way iproute2 keeps it."""
        return Path("/run/netns") / self.namespace

    @property
    def gateway(self) -> ipaddress.IPv4Interface:
        """Address of the bridge: the first of the network."""
        return ipaddress.IPv4Interface((next(self.network.hosts()), self.network.prefixlen))

    @property
    def directory(self) -> Path:
        """Everything of the lab that has to survive a reboot of the host."""
        return LABS / self.lab_id

    @property
    def runtime(self) -> Path:
        """Sockets of SSH connections kept open by Ansible."""
        return RUNTIME / self.lab_id

    @property
    def access(self) -> Path:
        """Keys and SSH configuration, beside the inventory that points to them."""
        return self.inventory / ".lab"

    @property
    def cgroup(self) -> str:
        """Name of the lab's control group in each hierarchy."""
        return f"kubewright-{self.lab_id}"

    def select(self, names: list[str]) -> tuple[Machine, ...]:
        """Return the machines called `names`, all without names; a `UserError` names what is unknown."""
        known = {machine.name: machine for machine in self.machines}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"no machine called {', '.join(unknown)} in {self.inventory}", f"there are {', '.join(known)}"
            )
        return tuple(known[name] for name in dict.fromkeys(names)) if names else self.machines


def lab_id(inventory: Path) -> str:
    """Return the eight hex digits that tell labs of different inventories (and checkouts) apart."""
    return hashlib.sha256(str(inventory.resolve()).encode()).hexdigest()[:8]


def lab_spec(inventory: Path, addresses: Mapping[str, object], network: object = None) -> LabSpec:
    """Compute a lab from `{machine name: ansible_host}` and `lab_network`.

    Raises a `UserError` that lists every fault found.
    """
    inventory = inventory.resolve()
    identity = lab_id(inventory)
    faults: list[str] = []
    parsed: dict[str, ipaddress.IPv4Address] = {}
    for name, value in addresses.items():
        if not _HOST_NAME.fullmatch(name) or len(name) > 64:
            faults.append(f"{name!r} cannot be a host name (a-z, 0-9, '-' and '.', 64 characters at most)")
        try:
            parsed[name] = ipaddress.IPv4Address(str(value))
        except ValueError:
            faults.append(f"{name}: ansible_host is {value!r}, which is not an IPv4 address")
    if not addresses:
        faults.append("it names no machines")
    if faults:
        raise _bad_inventory(inventory, faults)

    first = next(iter(parsed.values()))
    try:
        chosen = ipaddress.IPv4Network(str(network)) if network else None
    except ValueError as error:
        raise _bad_inventory(inventory, [f"lab_network {network!r}: {error}"]) from None
    chosen = chosen or ipaddress.IPv4Network((first, 24), strict=False)
    if chosen.prefixlen > 29:
        raise _bad_inventory(inventory, [f"lab_network {chosen} has no room for machines"])
    gateway = next(chosen.hosts())
    owners: dict[ipaddress.IPv4Address, str] = {}
    for name, address in parsed.items():
        if address not in chosen or address in (chosen.network_address, chosen.broadcast_address):
            faults.append(f"{name}: {address} is not a host address of the lab's network {chosen}")
        elif address == gateway:
            faults.append(f"{name}: {address} is the address of the lab's bridge")
        if address in owners:
            faults.append(f"{name} and {owners[address]} have the same address {address}")
        owners[address] = name
    if faults:
        raise _bad_inventory(inventory, faults)
    machines = tuple(Machine(name, address, LABS / identity / name) for name, address in parsed.items())
    return LabSpec(inventory, identity, chosen, machines)


def _bad_inventory(inventory: Path, faults: list[str]) -> UserError:
    return UserError(
        f"the lab cannot be built from {inventory}: {'; '.join(faults)}",
        "every host of a lab inventory needs a host name and an ansible_host inside lab_network",
    )
