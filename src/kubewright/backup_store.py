"""Where backups are: how their files are called and found, how many stay, where copies go."""

from __future__ import annotations

import datetime
import glob
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubewright.backup_archive import digest
from kubewright.errors import UserError

_SUFFIX = ".kwbackup"
_STAMP = "%Y%m%dT%H%M%SZ"
# Of what is being written; the next run removes it.
PARTIAL = ".partial-"
_UNPACKED = "kubewright-restore-"
_COMMAND_SECONDS = 3600
_MARGIN = 64 << 20


def age(moment: float) -> str:
    """How long ago a moment (seconds of the epoch) was, for people."""
    seconds = max(0.0, datetime.datetime.now(datetime.UTC).timestamp() - moment)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def name_of(cluster: str, moment: datetime.datetime, revision: int) -> str:
    """File name; those of one cluster sort by time."""
    return f"{cluster}-{moment.strftime(_STAMP)}-r{revision}{_SUFFIX}"


def listed(directory: Path, cluster: str) -> list[Path]:
    """Backups of a cluster in a directory, newest first."""
    pattern = re.compile(rf"{re.escape(cluster)}-\d{{8}}T\d{{6}}Z-r\d+{re.escape(_SUFFIX)}")
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in found if pattern.fullmatch(path.name)), key=lambda path: path.name, reverse=True)


def find(wanted: str, directory: Path, cluster: str) -> Path:
    """The backup that an operator means: a path, or `latest`. UserError names those that there are."""
    there = listed(directory, cluster)
    if wanted == "latest":
        if not there:
            raise UserError(
                f"{directory} holds no backup of {cluster}", "backup.yml makes one; or give the path of one"
            )
        return there[0]
    path = Path(wanted).expanduser()
    for candidate in (path, directory / wanted):
        if candidate.is_file():
            return candidate
    names = ", ".join(one.name for one in there[:5]) or "none"
    raise UserError(f"{wanted}: no such backup", f"in {directory} there are: {names}")


_ANOTHER_PLACE = "make room there, or set etcd_backup_directory to another place"


def need_room(directory: Path, wanted: int, what: str, hint: str = _ANOTHER_PLACE) -> None:
    """UserError when the file system of `directory`, which need not exist yet, has not so many bytes free."""
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted + _MARGIN:
        raise UserError(
            f"{directory} on the controller has {free >> 20} MiB free, {(wanted + _MARGIN) >> 20} MiB are needed for "
            f"{what}: nothing has been done",
            hint,
        )


def partial(directory: Path, name: str = "") -> Path:
    """Where this process makes something below `directory` that `clear` removes when it was killed meanwhile."""
    return directory / f"{PARTIAL}{os.getpid()}-{name}"


def clear(directory: Path) -> None:
    """Remove what killed runs left in plain, and nothing of those that live: this is before the cluster's lock."""
    for left in directory.glob(f"{PARTIAL}*"):
        owner = left.name.removeprefix(PARTIAL).partition("-")[0]
        if not (owner.isdecimal() and Path("/proc", owner).exists()):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """A directory (0700) for what is not finished, below `directory`; gone afterwards, and what a killed run left."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear(directory)
    path = Path(tempfile.mkdtemp(prefix=partial(directory).name, dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unpacking(temporary: Path, owner: int) -> Path:
    """Where what a backup holds lies in plain for one run, below Ansible's `temporary` directory of this run.

    Ansible removes that at its end; what runs left that were killed goes here. `owner`: process id of the run.
    """
    # Not Path.glob, which fails when a directory of another run goes while it looks.
    for left in map(Path, glob.glob(f"{glob.escape(str(temporary.parent))}/*/{_UNPACKED}*")):  # noqa: PTH207
        number = left.name.removeprefix(_UNPACKED)
        if number.isdecimal() and int(number) != owner and not Path("/proc", number).exists():
            shutil.rmtree(left, ignore_errors=True)
    return temporary / f"{_UNPACKED}{owner}"


def prune(directory: Path, cluster: str, keep: int) -> list[str]:
    """Remove backups beyond the `keep` newest, at least one; their names. Called after one was written and verified."""
    old = listed(directory, cluster)[max(1, keep) :]
    for path in old:
        path.unlink()
    return [path.name for path in old]


def target_problems(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with further targets: {directory: PATH} that must exist, or {command: [PROGRAM, ...]}."""
    found = []
    for target in targets:
        if set(target) == {"directory"}:
            path = Path(str(target["directory"]))
            if not path.is_dir() or not os.access(path, os.W_OK):
                found.append(f"{path} is no directory that can be written; is it mounted?")
        elif set(target) == {"command"} and isinstance(target["command"], list) and target["command"]:
            program = str(target["command"][0])
            if not shutil.which(program):
                found.append(f"the program {program} is not on this controller")
        else:
            found.append(f"{dict(target)} is neither {{directory: PATH}} nor {{command: [PROGRAM, ...]}}")
    return [f"etcd_backup_targets: {problem}" for problem in found]


def deliver_all(
    path: Path, targets: Sequence[Mapping[str, Any]], cluster: str, keep: int
) -> tuple[list[str], list[str]]:
    """`deliver` to every target, and `prune` those that are directories; (what was done, what failed)."""
    done, failed = [], []
    for target in targets:
        try:
            done.append(f"copied to {deliver(path, target)}")
            if "directory" in target:
                directory = Path(str(target["directory"]))
                for left in directory.glob(f"{PARTIAL}{cluster}-*{_SUFFIX}"):
                    left.unlink()
                removed = prune(directory, cluster, keep)
                done += [f"removed from {directory}: {', '.join(removed)}"] if removed else []
        except (UserError, OSError) as error:
            failed.append(str(error))
    return done, failed


def deliver(path: Path, target: Mapping[str, Any]) -> str:
    """Copy a finished backup to one target; what was done. `{}` in a command stands for the path, else it is the last.

    UserError with the command's last words when it fails.
    """
    if "directory" in target:
        place = Path(str(target["directory"])) / path.name
        temporary = place.with_name(f"{PARTIAL}{path.name}")
        try:
            shutil.copyfile(path, temporary)
            temporary.chmod(0o600)
            if digest(temporary) != digest(path):
                raise UserError(f"{place}: the copy differs from {path}", "is that disk failing?")
            temporary.replace(place)
        except OSError as error:
            raise UserError(f"{place}: {error.strerror or error}", f"the backup itself is {path}") from None
        finally:
            temporary.unlink(missing_ok=True)
        return str(place)
    words = [str(word) for word in target["command"]]
    argv = [word.replace("{}", str(path)) for word in words]
    argv += [] if any("{}" in word for word in words) else [str(path)]
    try:
        reply = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"{argv[0]} did not end within an hour", f"the backup itself is {path}") from None
    if reply.returncode:
        last = " ".join((reply.stderr or reply.stdout).split())[-300:]
        raise UserError(f"{argv[0]} ended with {reply.returncode}: {last}", f"the backup itself is {path}")
    return " ".join(words)
