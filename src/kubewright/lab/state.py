"""Which process runs a machine, remembered so that a pid that was given to another process is never mistaken."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kubewright.files import write_file

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessMark:
    """A process for good: pid, start time in clock ticks since boot, id of the host's boot."""

    pid: int
    started: int
    boot: str

    def alive(self, proc: Path = _PROC) -> bool:
        """Tell whether exactly this process still runs; a zombie does not."""
        try:
            return mark_of(self.pid, proc) == self
        except ProcessLookupError:
            return False


def mark_of(pid: int, proc: Path = _PROC) -> ProcessMark:
    """Return the mark of a running process; `ProcessLookupError` when there is none (or a zombie)."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    # proc(5): the command name may hold spaces and parentheses, fields are counted from the last ")".
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(pid)
    return ProcessMark(pid, int(fields[19]), (proc / "sys/kernel/random/boot_id").read_text().strip())


def read_mark(path: Path) -> ProcessMark | None:
    """Return what `write_mark` stored; None when there is nothing usable."""
    try:
        data = json.loads(path.read_text())
        return ProcessMark(int(data["pid"]), int(data["started"]), str(data["boot"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write_mark(path: Path, mark: ProcessMark) -> None:
    """Store a mark."""
    write_file(path, json.dumps(asdict(mark)) + "\n")


def children(pid: int, proc: Path = _PROC) -> list[int]:
    """Return the pids of the processes whose parent is `pid`."""
    found = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def is_init(pid: int, proc: Path = _PROC) -> bool:
    """Tell whether a process is PID 1 of a pid namespace below ours."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[2:] == ["1"] for line in status.splitlines())
