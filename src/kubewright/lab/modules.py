"""Kernel modules that labs loaded on the host, remembered so that they go with the last lab."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from kubewright.files import write_file
from kubewright.lab.model import LABS
from kubewright.lab.run import succeeds

MODULES = LABS.parent / "modules.json"
_PROC = Path("/proc")


def use_counts(text: str) -> dict[str, int]:
    """Return {module: how many use it} from the text of /proc/modules."""
    return {fields[0]: int(fields[2]) for fields in map(str.split, text.splitlines()) if len(fields) > 2}


@contextlib.contextmanager
def remembered(record: Path, proc: Path = _PROC) -> Iterator[None]:
    """Add to `record` the modules that appear while the body runs, also when it fails."""
    before = _loaded(proc)
    try:
        yield
    finally:
        new = _loaded(proc).keys() - before.keys()
        if new:
            names = sorted(new.union(_ours(record, proc)))
            write_file(record, json.dumps({"boot": _boot(proc), "modules": names}) + "\n")


def unload(record: Path, proc: Path = _PROC, rmmod: Sequence[str] = ("rmmod",)) -> None:
    """Unload the recorded modules that nothing uses, users before what they use, and forget the record."""
    ours = _ours(record, proc)
    while idle := [name for name, count in _loaded(proc).items() if count == 0 and name in ours]:
        gone = [name for name in idle if succeeds([*rmmod, name])]
        if not gone:
            break
    record.unlink(missing_ok=True)


def _ours(record: Path, proc: Path) -> set[str]:
    try:
        data = json.loads(record.read_text())
        # Modules do not survive a boot of the host: what is loaded since is not ours.
        return set(data["modules"]) if data["boot"] == _boot(proc) else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _boot(proc: Path) -> str:
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


def _loaded(proc: Path) -> dict[str, int]:
    modules = proc / "modules"
    # A kernel without loadable modules has no such file.
    return use_counts(modules.read_text()) if modules.exists() else {}
