"""Files of keys and certificates: read whole, written atomically and in pairs.

All that is to change is first written to temporary files beside the targets, and is on the disk before the first target
is replaced. So a full disk, missing permissions and a loss of power leave what was there.
"""

from __future__ import annotations

import fcntl
import grp
import itertools
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from kubepki import issue, keys
from kubepki.errors import CertificateError, PrivateKeyError, StoreError
from kubepki.keys import PrivateKey

# (uid, gid)
Owner = tuple[int, int]
# A temporary file of ours: the process that made it, and what tells this process from others of the same number.
_TEMPORARY = re.compile(r"\.kubepki-(\d{1,9})-([0-9a-f]{8})-\d+")
_SELF = secrets.token_hex(4)
_numbers = itertools.count()
# The number of a dead process may have been given to a living one since.
_STALE_SECONDS = 3600
_LARGEST = 10 * 2**20
# From so many files on, one flush of the whole filesystem is cheaper than one of each file.
_MANY = 16
# How long another process may take to rename its files.
_PATIENCE_SECONDS = 30
_UNTOUCHED = "mend that and run again; the files that are there are as they were"


@dataclass(frozen=True)
class Found:
    """A file as it was found; `mode` are the permission bits."""

    content: bytes
    mode: int
    owner: Owner


@dataclass(frozen=True)
class File:
    """A file as it is to be: exactly this mode, whatever the umask; without an owner that of whoever runs this."""

    path: Path
    content: bytes
    mode: int
    owner: Owner | None = None


@dataclass
class _Staged:
    """A temporary file that waits for its turn; `target` is where the path leads when it is a link."""

    temporary: Path
    target: Path


def read(path: Path) -> Found | None:
    """A file, following links; None when there is none. StoreError when it cannot be read or is no ordinary file."""
    try:
        # A pipe without a writer must not stop us.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "whoever runs this must be able to read it") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is no ordinary file", "move it away")
        if status.st_size > _LARGEST:
            raise StoreError(f"{path} is larger than {_LARGEST // 2**20} MB; this is no key or certificate")
        return Found(_all(handle, status.st_size), stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "is its disk in order?") from error
    finally:
        os.close(handle)


def _all(handle: int, size: int) -> bytes:
    parts = [os.read(handle, size + 1)]
    while parts[-1] and sum(map(len, parts)) <= _LARGEST:
        parts.append(os.read(handle, size + 1))
    return b"".join(parts)


def read_certificate(path: Path) -> x509.Certificate | None:
    """The first certificate in a file, None when the file is missing; ValueError when it is damaged."""
    found = read(path)
    try:
        return issue.load_all(found.content, str(path))[0] if found else None
    except CertificateError as error:
        raise ValueError(error.message) from error


def read_key(path: Path, password: Callable[[], bytes] | None = None) -> PrivateKey | None:
    """The private key in a file, None when the file is missing; ValueError when it is damaged or of another kind."""
    found = read(path)
    try:
        return keys.load(found.content, str(path), password) if found else None
    except PrivateKeyError as error:
        raise ValueError(error.message) from error


def owner(text: str, where: str) -> Owner | None:
    """The numbers of `USER` (with the group that is the user's own) or `USER:GROUP`; None for an empty text.

    Both may be numbers already.
    """
    if not text:
        return None
    user, _, group = text.partition(":")
    try:
        if user.isdecimal() and group:
            # A number need not be anybody's here: the files may be for a container.
            uid, own = int(user), 0
        else:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
            uid, own = entry.pw_uid, entry.pw_gid
    except KeyError as error:
        hint = "write its group too, as USER:GROUP" if user.isdecimal() else "make the user first, or mend owner"
        raise StoreError(f"{where}: there is no user {user!r} here", hint) from error
    try:
        if not group:
            return uid, own
        return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StoreError(f"{where}: there is no group {group!r} here", "make the group first, or mend owner") from error


def passes(directory: Path, who: Owner) -> bool:
    """Whether an owner of files may go through a directory; yes, when it is not there."""
    try:
        status = directory.stat()
    except OSError:
        return True
    if who[0] == 0:
        return True
    if who[0] == status.st_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    return bool(status.st_mode & (stat.S_IXGRP if who[1] == status.st_gid else stat.S_IXOTH))


def make_directory(path: Path, mode: int) -> None:
    """Make a directory with its parents, of which those that are new get the mode too. StoreError."""
    missing = [path]
    try:
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for one in reversed(missing):
            with suppress(FileExistsError):
                one.mkdir(0o700)
                one.chmod(mode)
                flush_directory(one.parent)
        if not path.is_dir():
            raise StoreError(f"{path} is no directory", "move it away")
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror}", _UNTOUCHED) from error


@contextmanager
def locked(directory: Path, mode: int = 0o700) -> Iterator[None]:
    """Make the directory, with this mode if it is new, and hold its lock.

    StoreError when another run holds it or it cannot be made.
    """
    make_directory(directory, mode)
    try:
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be written: {error.strerror}", _UNTOUCHED) from error
    with os.fdopen(handle) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{directory}: another run is issuing certificates there", "wait for it to end") from error
        yield


def sweep(directories: Iterable[Path]) -> None:
    """Remove what runs that were killed have left in directories."""
    for directory in directories:
        try:
            paths = list(directory.iterdir())
        except OSError:
            continue
        for path in paths:
            match = _TEMPORARY.fullmatch(path.name)
            if match and _is_stale(path, int(match[1]), match[2]):
                with suppress(OSError):
                    path.unlink()


def _is_stale(path: Path, process: int, which: str) -> bool:
    if process == os.getpid():
        return which != _SELF
    try:
        os.kill(process, 0)
        return time.time() - path.lstat().st_ctime > _STALE_SECONDS
    except ProcessLookupError:
        return True
    except OSError:
        return False


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, with exactly this mode whatever the umask and whatever was there before."""
    replace([[File(path, content, mode)]])


def replace(groups: Iterable[Sequence[File]]) -> None:
    """Replace all files, those of a group one after the other (the key before its certificate), or none of them.

    Nothing is replaced before everything is on the disk, and when one cannot be replaced, those before it are put back.
    Of processes that do so at once, one after the other replaces its files. A link stays, and the file that it leads to
    is replaced. StoreError names the path and the cause.
    """
    wanted = [list(group) for group in groups]
    many = len(wanted) > _MANY
    made: list[Path] = []
    try:
        targets = [[_target(file.path) for file in group] for group in wanted]
        directories = {target.parent for group in targets for target in group}
        sweep(directories)
        staged = [
            [_stage(file, target, made, flush=not many) for file, target in zip(group, those, strict=True)]
            for group, those in zip(wanted, targets, strict=True)
        ]
        if many:
            _flush_filesystems(directories)
        with _alone(directories):
            try:
                _swap(list(itertools.chain.from_iterable(staged)), made)
            finally:
                for directory in directories:
                    flush_directory(directory)
    except OSError as error:
        raise StoreError(f"{error.filename or 'the disk'}: {error.strerror}", "mend that and run again") from error
    finally:
        _discard(made)


def probe(directory: Path, owners: Iterable[Owner]) -> None:
    """Find out whether files can be made in a directory and given to all these owners; StoreError when not."""
    made: list[Path] = []
    try:
        for one in owners:
            _stage(File(directory / "files", b"", 0o600, one), directory / "files", made, flush=False)
    finally:
        _discard(made)


def _discard(made: Iterable[Path]) -> None:
    """Remove temporary files; those that were renamed are not there any more."""
    for path in made:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _temporary(directory: Path) -> Path:
    return directory / f".kubepki-{os.getpid()}-{_SELF}-{next(_numbers)}"


def _target(path: Path) -> Path:
    """Where to write: where a link leads. Not those of other users, who could lead us anywhere."""
    try:
        status = path.lstat()
    except OSError:
        # Whatever it is, the writing meets it too.
        return path
    if not stat.S_ISLNK(status.st_mode):
        return path
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError(f"{path} is a link that belongs to another user", "remove it, or make it your own")
    return Path(os.path.realpath(path))


def _stage(file: File, target: Path, made: list[Path], *, flush: bool) -> _Staged:
    try:
        temporary = _temporary(target.parent)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made.append(temporary)
        try:
            if file.owner:
                _give(handle, file)
            os.fchmod(handle, file.mode)
            rest = memoryview(file.content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            if flush:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StoreError(f"{file.path}: cannot be written: {error.strerror}", _UNTOUCHED) from error
    return _Staged(temporary, target)


def _give(handle: int, file: File) -> None:
    uid, gid = file.owner or (-1, -1)
    try:
        os.fchown(handle, uid, gid)
    except OSError as error:
        raise StoreError(
            f"{file.path}: cannot be given to user {uid}, group {gid}: {error.strerror}",
            "run as root, or leave owner out; the files that are there are as they were",
        ) from error


@contextmanager
def _alone(directories: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of directories themselves: renames of two runs that mix leave a key beside another certificate."""
    handles: dict[tuple[int, int], int] = {}
    try:
        for directory in directories:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            status = os.fstat(handle)
            # By two ways to one directory we would wait for ourselves.
            if handles.setdefault((status.st_dev, status.st_ino), handle) != handle:
                os.close(handle)
        end = time.monotonic() + _PATIENCE_SECONDS
        # In one order for everybody, so that no two wait for each other.
        for which in sorted(handles):
            _lock(handles[which], end, directories)
        yield
    finally:
        for handle in handles.values():
            os.close(handle)


def _lock(handle: int, end: float, directories: Iterable[Path]) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                where = ", ".join(map(str, sorted(directories)))
                raise StoreError(
                    f"{where}: locked by another process for more than {_PATIENCE_SECONDS} seconds",
                    "find it with lslocks; the files that are there are as they were",
                ) from error
            time.sleep(0.005)
        except OSError:
            # Not every filesystem has locks for directories; NFS wants them open for writing.
            return
        else:
            return


def _swap(files: Sequence[_Staged], made: list[Path]) -> None:
    """Rename all, or put back what was there."""
    before: list[tuple[Path, Path | None]] = []
    where = files[0].target if files else None
    try:
        for one in files:
            where = one.target
            # What is last needs no way back.
            if one is not files[-1]:
                before.append((one.target, _second_name(one.target, made)))
            one.temporary.replace(one.target)
    except BaseException as error:
        left = _put_back(before, made)
        if isinstance(error, OSError):
            hint = f"mend that and run again; these are new already: {', '.join(left)}" if left else _UNTOUCHED
            raise StoreError(f"{where}: cannot be replaced: {error.strerror}", hint) from error
        raise


def _put_back(before: Sequence[tuple[Path, Path | None]], made: list[Path]) -> list[str]:
    """Undo renames; returns the files that could not be, with where their old content is."""
    left = []
    for target, old in reversed(before):
        try:
            if old:
                # Where nothing was renamed yet both are the same file, and this does nothing.
                old.replace(target)
            else:
                target.unlink(missing_ok=True)
        except OSError:
            left.append(f"{target} (as it was: {old})" if old else str(target))
            if old:
                made.remove(old)
    return left


def _second_name(target: Path, made: list[Path]) -> Path | None:
    """What keeps the old content until its partner is replaced as well; None when there is none."""
    name = _temporary(target.parent)
    try:
        os.link(target, name)
        made.append(name)
    except FileNotFoundError:
        return None
    except OSError:
        # Not every filesystem has links, and not everybody may make them to the files of others.
        old = read(target)
        whose = old.owner if old and os.geteuid() == 0 else None
        return _stage(File(name, old.content, old.mode, whose), name, made, flush=True).temporary if old else None
    return name


def _flush_filesystems(directories: Iterable[Path]) -> None:
    """Everything that was written to the filesystems of these directories is on the disk afterwards."""
    import ctypes  # noqa: PLC0415 - only many files are worth its loading

    sync = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync is None:
        os.sync()
        return
    for directory in {path.stat().st_dev: path for path in directories}.values():
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if sync(handle):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(directory))
        finally:
            os.close(handle)


def flush_directory(directory: Path) -> None:
    """What was made, renamed or removed in a directory is on the disk afterwards. OSError when it cannot be opened."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some filesystems cannot, and need not.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
