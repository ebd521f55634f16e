"""`python -m kubewright.lab`: machines up and down, and broken on purpose."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kubewright.errors import UserError
from kubewright.lab import machine as machines
from kubewright.lab.host import complete_path, parse_cgroups, probe, require_programs, require_root, require_space
from kubewright.lab.image import ensure_image, find_image, remove_tree
from kubewright.lab.labs import host_lock, lab_called, labs, leave_host, machines_there, register
from kubewright.lab.lock import locked
from kubewright.lab.model import LABS, LabSpec, Machine
from kubewright.lab.modules import MODULES, remembered
from kubewright.lab.network import ensure_network, remove_network
from kubewright.lab.sshconf import drop_connections, make_access

_SPACE_PER_MACHINE = 2 * 2**30
_BOOT_SECONDS = 90.0
_STOP_SECONDS = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        require_root()
        complete_path()
        if options.command == "list":
            return _list()
        return int(_COMMANDS[options.command][0](_spec(options), options))
    except UserError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command again goes on from here", file=sys.stderr)
        return 130


def _spec(options: argparse.Namespace) -> LabSpec:
    if getattr(options, "id", None):
        return lab_called(options.id)
    # Importing Ansible makes directories in the home directory: not before it is clear that they are ours.
    from kubewright.lab.inventory import read_lab  # noqa: PLC0415 -- see above

    return read_lab(options.inventory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kubewright.lab", description=__doc__)
    inventory = argparse.ArgumentParser(add_help=False)
    inventory.add_argument(
        "-i", "--inventory", type=Path, default=argparse.SUPPRESS, help="Ansible inventory (default: inventories/lab)"
    )
    parser.add_argument(
        "-i", "--inventory", type=Path, default=Path("inventories/lab"), help="Ansible inventory (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[inventory])
        if name in ("exec", "ssh"):
            command.add_argument("machine", metavar="MACHINE")
            command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
        elif name == "down":
            command.add_argument("--id", help="of `list`: takes a lab down whose inventory is gone")
        else:
            many = "*" if name in ("up", "status", "start", "stop", "reboot") else "+"
            command.add_argument("machines", nargs=many, metavar="MACHINE")
    text = "show the labs of this host: id, inventory, machines that run"
    commands.add_parser("list", help=text, description=text)
    return parser


def _lock(spec: LabSpec) -> contextlib.AbstractContextManager[None]:
    """Keep out other commands that change the same lab; the inventory directory itself is the lock, if it is there."""
    directory = spec.inventory if spec.inventory.is_dir() else spec.directory
    return locked(directory, lambda: _say("waiting for another lab command to end"))


def _say(text: str) -> None:
    print(text, flush=True)


def _for_each(chosen: tuple[Machine, ...], action: Callable[[Machine], str]) -> int:
    """Do something to machines in parallel, print a table of results; all failures are shown."""
    begin = time.monotonic()
    failures: list[UserError] = []
    rows: list[tuple[str, str, str, str]] = []

    def one(machine: Machine) -> None:
        try:
            answer = action(machine)
        except UserError as error:
            failures.append(error)
            answer = "failed"
        rows.append((machine.name, str(machine.address), answer, f"{time.monotonic() - begin:.1f}"))

    with ThreadPoolExecutor(max_workers=max(len(chosen), 1)) as pool:
        list(pool.map(one, chosen))
    order = {machine.name: place for place, machine in enumerate(chosen)}
    _table([("machine", "address", "state", "seconds"), *sorted(rows, key=lambda row: order[row[0]])])
    for error in failures:
        print(f"lab: {error}", file=sys.stderr)
    return 1 if failures else 0


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _up(spec: LabSpec, options: argparse.Namespace) -> int:
    require_programs()
    chosen = spec.select(options.machines)
    with _lock(spec):
        new = sum(not machine.directory.exists() for machine in chosen)
        if new:
            require_space(LABS, new * _SPACE_PER_MACHINE, f"a lab of {new} new machines")
        with host_lock(), remembered(MODULES):
            register(spec)
            host = probe()
        for line in host.adaptations():
            _say(f"adapted: {line}")
        # The current image is for new disks; others stay on the one that they were made on.
        images = {machine: machines.image_of(machine) for machine in chosen}
        current = None if all(images.values()) else ensure_image(_say)
        ensure_network(spec)
        public_key = make_access(spec)

        def up(machine: Machine) -> str:
            if machines.supervisor(machine) is None:
                image = images[machine] or str(current)
                machines.prepare(spec, machine, host, image, public_key)
                machines.boot(spec, machine, host, find_image(image))
            return machines.wait_ready(spec, machine, _BOOT_SECONDS, admit=public_key)

        return _for_each(chosen, up)


def _down(spec: LabSpec, _: argparse.Namespace) -> int:
    with _lock(spec):
        # What is there decides, not the inventory: it may have changed since.
        found = machines_there(spec)
        drop_connections(spec)
        for machine in found:
            machines.kill(machine)
        remove_network(spec)
        machines.remove_cgroups(spec, parse_cgroups(Path("/proc/self/mounts").read_text()))
        for machine in found:
            machines.remove_disks(machine)
        with host_lock():
            for path in (spec.access, spec.runtime, spec.directory):
                remove_tree(path)
            leave_host()
    _say(f"the lab of {spec.inventory} is gone" if found else f"there is no lab of {spec.inventory}")
    return 0


def _list() -> int:
    rows: list[tuple[str, ...]] = [("id", "running", "inventory")]
    for spec in labs():
        there = machines_there(spec)
        running = sum(machines.supervisor(machine) is not None for machine in there)
        if spec.inventory == spec.directory:
            where = "unknown"
        else:
            where = str(spec.inventory) if spec.inventory.is_dir() else f"gone (was {spec.inventory})"
        rows.append((spec.lab_id, f"{running} of {len(there)}", where))
    if len(rows) == 1:
        _say("there are no labs on this host")
    else:
        _table(rows)
        if any(row[2] == "unknown" or row[2].startswith("gone") for row in rows):
            _say("to remove a lab without its inventory: python -m kubewright.lab down --id ID")
    return 0


def _status(spec: LabSpec, options: argparse.Namespace) -> int:
    rows: list[tuple[str, ...]] = [("machine", "address", "state", "cable", "disks")]
    for machine in spec.select(options.machines):
        cable = "cut" if machine.cut_mark.exists() else "connected"
        disks = str(machine.directory) if machine.directory.exists() else "none"
        rows.append((machine.name, str(machine.address), machines.state(machine), cable, disks))
    _table(rows)
    return 0 if all(row[2] in ("running", "degraded") for row in rows[1:]) else 3


def _stop(spec: LabSpec, options: argparse.Namespace) -> int:
    def stop(machine: Machine) -> str:
        return "off" if machines.power_off(machine, _STOP_SECONDS) else f"off (killed after {_STOP_SECONDS:.0f} s)"

    with _lock(spec):
        chosen = spec.select(options.machines)
        drop_connections(spec, chosen)
        return _for_each(chosen, stop)


def _reboot(spec: LabSpec, options: argparse.Namespace) -> int:
    def again(machine: Machine) -> str:
        before = machines.reboot(machine)
        return machines.wait_ready(spec, machine, _STOP_SECONDS + _BOOT_SECONDS, after=before)

    with _lock(spec):
        chosen = spec.select(options.machines)
        drop_connections(spec, chosen)
        return _for_each(chosen, again)


def _kill(spec: LabSpec, options: argparse.Namespace) -> int:
    def power_loss(machine: Machine) -> str:
        machines.kill(machine)
        return "off"

    with _lock(spec):
        chosen = spec.select(options.machines)
        drop_connections(spec, chosen)
        return _for_each(chosen, power_loss)


def _plug(*, connected: bool) -> Callable[[LabSpec, argparse.Namespace], int]:
    def command(spec: LabSpec, options: argparse.Namespace) -> int:
        for machine in spec.select(options.machines):
            if not machine.directory.exists():
                raise UserError(f"{machine.name} does not exist", "make it: python -m kubewright.lab up")
            machines.connect(spec, machine, connected=connected)
            _say(f"{machine.name}: {'connected' if connected else 'cut off'}")
        return 0

    return command


def _exec(spec: LabSpec, options: argparse.Namespace) -> int:
    (machine,) = spec.select([options.machine])
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    command = machines.console(machine, arguments or ["bash", "--login"])
    return subprocess.call(command)


def _ssh(spec: LabSpec, options: argparse.Namespace) -> int:
    (machine,) = spec.select([options.machine])
    config = spec.access / "ssh_config"
    if not config.exists():
        raise UserError(f"there is no lab of {spec.inventory}", "make one: python -m kubewright.lab up")
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    return subprocess.call(["ssh", "-F", str(config), machine.name, *arguments])


_COMMANDS: dict[str, tuple[Callable[[LabSpec, argparse.Namespace], int], str]] = {
    "up": (_up, "make and boot what is missing, wait until every machine answers SSH"),
    "down": (_down, "remove the machines, their disks and everything else of the lab"),
    "status": (_status, "show the machines; exit code 3 unless all are running"),
    "start": (_up, "switch machines on"),
    "stop": (_stop, "shut machines down in order"),
    "reboot": (_reboot, "reboot machines in order and wait for them"),
    "kill": (_kill, "take the power of machines away"),
    "cut": (_plug(connected=False), "pull the network cable of machines"),
    "connect": (_plug(connected=True), "put the network cable of machines back"),
    "exec": (_exec, "run a command in a machine from outside its network (a console)"),
    "ssh": (_ssh, "log in to a machine, or run a command there, by SSH"),
}
