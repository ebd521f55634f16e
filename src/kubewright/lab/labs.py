"""The labs of this host, and what they have in common: a lab is known here also when its inventory is gone."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from contextlib import AbstractContextManager
from pathlib import Path

from kubewright.errors import UserError
from kubewright.files import write_file
from kubewright.lab.lock import locked
from kubewright.lab.model import LABS, RUNTIME, LabSpec, Machine
from kubewright.lab.modules import MODULES, unload

_RECORD = "lab.json"


def host_lock() -> AbstractContextManager[None]:
    """Keep other labs from coming or going, by a directory that is always there."""
    return locked(LABS.parent.parent)


def register(spec: LabSpec) -> None:
    """Write down what the lab is made from."""
    record = {
        "inventory": str(spec.inventory),
        "network": str(spec.network),
        "machines": {machine.name: str(machine.address) for machine in spec.machines},
    }
    write_file(spec.directory / _RECORD, json.dumps(record, indent=1) + "\n")


def labs() -> list[LabSpec]:
    """Return the labs of this host; one with a damaged record has its own directory for an inventory."""
    return [_read(path) for path in sorted(LABS.iterdir())] if LABS.is_dir() else []


def lab_called(identity: str) -> LabSpec:
    """Return a lab by its id; a `UserError` names the labs that there are."""
    known = {spec.lab_id: spec for spec in labs()}
    if identity not in known:
        there = ", ".join(f"{name} ({spec.inventory})" for name, spec in known.items()) or "none at all"
        raise UserError(f"there is no lab {identity!r} on this host", f"the labs here: {there}")
    return known[identity]


def _read(directory: Path) -> LabSpec:
    try:
        record = json.loads((directory / _RECORD).read_text())
        machines = tuple(
            Machine(name, ipaddress.IPv4Address(address), directory / name)
            for name, address in record["machines"].items()
        )
        network = ipaddress.IPv4Network(record["network"])
        return LabSpec(Path(record["inventory"]), directory.name, network, machines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return LabSpec(directory, directory.name, ipaddress.IPv4Network("0.0.0.0/0"), ())


def machines_there(spec: LabSpec) -> list[Machine]:
    """Return the machines that have disks, also those that the inventory no longer names."""
    known = {machine.name: machine for machine in spec.machines}
    directories = [path for path in spec.directory.iterdir() if path.is_dir()] if spec.directory.is_dir() else []
    return [known.get(path.name) or Machine(path.name, spec.gateway.ip, path) for path in sorted(directories)]


def leave_host() -> None:
    """Remove what labs have in common, if no lab is left; call it with the `host_lock`."""
    if labs():
        return
    unload(MODULES)
    for parent in (LABS, LABS.parent, RUNTIME):
        with contextlib.suppress(OSError):
            parent.rmdir()
