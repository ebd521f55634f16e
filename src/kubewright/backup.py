"""Backups of a cluster: one encrypted file with a snapshot of etcd, the PKI directory and the inventory's secrets.

Inside is a compressed tar: `manifest.json` first, then `etcd/snapshot.db`, `pki/...`, `secrets/...`. The manifest is
  {format: 1, cluster, created (RFC 3339), etcd: {member, cluster, version, revision, hash, keys, size},
   cas: [SHA-256 of each CA certificate], parts: {name: {sha256, size, mode}}}
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kubewright.envelope import DamagedError, Reader, Writer
from kubewright.errors import UserError
from kubewright.machine.etcd_snapshot import is_whole
from kubewright.machine.facts import certificates

SNAPSHOT = "etcd/snapshot.db"
_MANIFEST = "manifest.json"
_SUFFIX = ".kwbackup"
_STAMP = "%Y%m%dT%H%M%SZ"
# Of what is being written; the next run removes it.
_PARTIAL = ".partial-"
_UNPACKED = "kubewright-restore-"
_SHORTEST_PASSPHRASE = 12
_COMMAND_SECONDS = 3600
# The CAs whose certificates say which cluster it is.
_IDENTITY = ("etcd-ca.pem", "kubernetes-ca.pem")
_MARGIN = 64 << 20


@dataclass(frozen=True)
class Opened:
    """A backup that was read to its end: every part has the SHA-256 of the manifest."""

    path: Path
    manifest: Mapping[str, Any]
    directory: Path

    @property
    def snapshot(self) -> Path:
        """The snapshot of etcd."""
        return self.directory / SNAPSHOT

    def age(self) -> str:
        """How old it is, for people."""
        return age(datetime.datetime.fromisoformat(self.manifest["created"]).timestamp())


def age(moment: float) -> str:
    """How long ago a moment (seconds of the epoch) was, for people."""
    seconds = max(0.0, datetime.datetime.now(datetime.UTC).timestamp() - moment)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def passphrase(value: str, file: str, environment: str) -> str:
    """The passphrase: a variable's `value`, else the first line of `file`, else of the `environment`; UserError."""
    said = value or environment
    if not value and file:
        path = Path(file).expanduser()
        try:
            mode = path.stat().st_mode
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"etcd_backup_passphrase_file: {path} cannot be read: {error}") from None
        if mode & 0o077:
            raise UserError(
                f"etcd_backup_passphrase_file: {path} has mode {mode & 0o777:04o}, so others may read it",
                f"chmod 600 {path}",
            )
        if any(line.strip() for line in lines[1:]):
            raise UserError(
                f"etcd_backup_passphrase_file: {path} has more than one line: nothing has been done",
                "only the first could be the passphrase; keep notes elsewhere",
            )
        said = lines[0] if lines else ""
    if not said:
        raise UserError(
            "there is no passphrase for backups, which hold the keys of the whole cluster: nothing has been done",
            "write one into a file of mode 0600 and set etcd_backup_passphrase_file, or etcd_backup_passphrase from a "
            "vault, or the environment's KUBEWRIGHT_BACKUP_PASSPHRASE; keep a copy away from this controller",
        )
    if len(said) < _SHORTEST_PASSPHRASE:
        raise UserError(
            f"the passphrase for backups has {len(said)} characters, {_SHORTEST_PASSPHRASE} are needed",
            "backups hold the keys of the whole cluster and travel: openssl rand -base64 24 makes a good one",
        )
    return said


def name_of(cluster: str, moment: datetime.datetime, revision: int) -> str:
    """File name; those of one cluster sort by time."""
    return f"{cluster}-{moment.strftime(_STAMP)}-r{revision}{_SUFFIX}"


def listed(directory: Path, cluster: str) -> list[Path]:
    """Backups of a cluster in a directory, newest first."""
    pattern = re.compile(rf"{re.escape(cluster)}-\d{{8}}T\d{{6}}Z-r\d+{re.escape(_SUFFIX)}")
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in found if pattern.fullmatch(path.name)), key=lambda path: path.name, reverse=True)


def cas(pki: Path) -> list[str]:
    """SHA-256 of the certificates, bundles of a rotation included, by which a cluster is told from others."""
    paths = [pki / name for one in _IDENTITY for name in (one, f"{one[:-4]}-bundle.pem")]
    texts = [path.read_text(errors="replace") for path in paths if path.is_file()]
    return sorted({digest for text in texts for digest in certificates(text)})


def need_room(directory: Path, wanted: int, what: str) -> None:
    """UserError when the file system of `directory`, which need not exist yet, has not so many bytes free."""
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted + _MARGIN:
        raise UserError(
            f"{directory} on the controller has {free >> 20} MiB free, {(wanted + _MARGIN) >> 20} MiB are needed for "
            f"{what}: nothing has been done",
            "make room there, or set etcd_backup_directory to another place",
        )


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tree(prefix: str, directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob("*")):
        # A key may be kept in a safe that is mounted, with a link to it here.
        if path.is_file():
            yield f"{prefix}/{path.relative_to(directory).as_posix()}", path
        elif path.is_symlink():
            raise UserError(
                f"{path} is a link to what is no file, and a backup without it may be of no use: nothing has been done",
                "mount what it points to, or remove it",
            )


@contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """A directory (0700) for what is not finished, below `directory`; gone afterwards, and what a killed run left."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unpacking(temporary: Path, owner: int) -> Path:
    """Where what a backup holds lies in plain for one run, below Ansible's `temporary` directory of this run.

    Ansible removes that at its end; what runs left that were killed goes here. `owner`: process id of the run.
    """
    for left in temporary.parent.glob(f"*/{_UNPACKED}*"):
        number = left.name.removeprefix(_UNPACKED)
        if number.isdecimal() and int(number) != owner and not Path("/proc", number).exists():
            shutil.rmtree(left, ignore_errors=True)
    return temporary / f"{_UNPACKED}{owner}"


def write(
    target: Path, secret: str, facts: Mapping[str, Any], snapshot: Path, trees: Mapping[str, Path]
) -> dict[str, Any]:
    """Write a backup to `target` (0600) and return its manifest.

    `facts`: cluster, created, etcd. `trees`: prefix such as `pki` -> directory, whose files are taken along, also those
    that it links to.
    """
    parts = [(SNAPSHOT, snapshot), *(entry for prefix, tree in trees.items() for entry in _tree(prefix, tree))]
    described: dict[str, dict[str, Any]] = {
        name: {"sha256": digest(path), "size": path.stat().st_size, "mode": path.stat().st_mode & 0o777}
        for name, path in parts
    }
    manifest = {"format": 1, **facts, "cas": cas(trees["pki"]), "parts": described}
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        envelope = Writer(stream, secret)
        with (
            gzip.GzipFile(fileobj=envelope, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            content = json.dumps(manifest, indent=1, sort_keys=True).encode()
            archive.addfile(_member(_MANIFEST, len(content), 0o600), io.BytesIO(content))
            for name, path in parts:
                with path.open("rb") as part:
                    archive.addfile(_member(name, described[name]["size"], described[name]["mode"]), part)
        envelope.finish()
        stream.flush()
        os.fsync(stream.fileno())
    return manifest


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


def _copy(source: IO[bytes], target: Path | None, mode: int) -> str:
    digest = hashlib.sha256()
    if target is None:
        while block := source.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
    except OSError as error:
        raise _unwritten(target, error) from None
    with stream:
        while block := source.read(1 << 20):
            digest.update(block)
            try:
                _write_all(stream, block)
            except OSError as error:
                raise _unwritten(target, error) from None
        # Whatever an archive says: nobody else reads what was in it.
        os.fchmod(stream.fileno(), 0o600 | (mode & 0o044))
    return digest.hexdigest()


def _write_all(stream: IO[bytes], block: bytes) -> None:
    left = memoryview(block)
    while left:
        left = left[stream.write(left) :]


def _unwritten(target: Path, error: OSError) -> UserError:
    return UserError(f"{target} cannot be written: {error.strerror or error}", "nothing but this has been done")


def read(path: Path, secret: str, directory: Path | None, wanted: Sequence[str] = ("",)) -> dict[str, Any]:
    """Read a backup to its end and return its manifest.

    Its parts whose names begin with one of `wanted` go below `directory` (0700), if there is one.

    UserError for a wrong passphrase, a file that is damaged, or one whose parts are not those of its manifest.
    """
    seen: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    damaged = DamagedError(f"{path} is damaged; nothing has been done", "take another backup")
    try:
        with path.open("rb") as stream:
            reader = io.BufferedReader(Reader(stream, secret, str(path)), 1 << 20)
            with gzip.GzipFile(fileobj=reader) as packed:
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    for entry in archive:
                        pure = PurePosixPath(entry.name)
                        content = archive.extractfile(entry)
                        if content is None or pure.is_absolute() or ".." in pure.parts:
                            raise damaged
                        if entry.name == _MANIFEST:
                            manifest = json.loads(content.read())
                            continue
                        target = directory / pure if directory and entry.name.startswith(tuple(wanted)) else None
                        seen[entry.name] = _copy(content, target, entry.mode)
                while packed.read(1 << 20):
                    pass
            while reader.read(1 << 20):
                pass
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise damaged from None
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise damaged from error
    if manifest.get("format") != 1 or seen != {name: part["sha256"] for name, part in manifest["parts"].items()}:
        raise damaged
    return manifest


def opened(path: Path, secret: str, directory: Path) -> Opened:
    """`read` the snapshot into a directory, with etcd's own checksum compared as well."""
    found = Opened(path, read(path, secret, directory, (SNAPSHOT,)), directory)
    if not is_whole(str(found.snapshot)):
        raise DamagedError(
            f"the snapshot in {path} is corrupt: it does not end with its SHA-256; nothing has been done",
            "take another backup",
        )
    return found


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


def foreign(manifest: Mapping[str, Any], cluster: str, own: Iterable[str]) -> str:
    """Why a backup is one of another cluster; empty when it is ours. `own`: CA digests of this controller.

    etcd's own cluster id is no witness: every restore makes a new one.
    """
    if manifest["cluster"] != cluster:
        return f"it is one of the cluster {manifest['cluster']}, this is {cluster}"
    mine = set(own)
    if mine and not mine & set(manifest["cas"]):
        return f"it is one of another cluster that is called {cluster} too: none of its CAs is ours"
    return ""


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
                for left in directory.glob(f"{_PARTIAL}{cluster}-*{_SUFFIX}"):
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
        temporary = place.with_name(f"{_PARTIAL}{path.name}")
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


def custody(directory: Path, prefix: str, target: Path, moment: str, *, replace: bool) -> str:
    """Bring `pki` or `secrets` of an opened backup to the controller, where there is none or with `replace`.

    What was there is moved to NAME.before-MOMENT. Returns what was done; empty when the controller keeps its own.
    """
    source = directory / prefix
    if not source.is_dir() or (target.is_dir() and any(target.iterdir()) and not replace):
        return ""
    told = f"{target} restored from the backup"
    staged = target.with_name(f"{_PARTIAL}{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(source, staged)
    staged.chmod(0o700)
    if target.exists():
        aside = target.with_name(f"{target.name}.before-{moment}")
        target.rename(aside)
        told += f", the one before is {aside}"
    staged.rename(target)
    return told


def differing(manifest: Mapping[str, Any], secrets: Path) -> str:
    """Why Secrets of a backup could not be read with what this controller has; empty when they could."""
    kept, own = manifest["parts"].get("secrets/encryption_key"), secrets / "encryption_key"
    if kept and own.is_file():
        key = own.read_bytes().strip()
        # It is told by its digest, so that it need not be unpacked.
        same = kept["sha256"] in {hashlib.sha256(text).hexdigest() for text in (own.read_bytes(), key, key + b"\n")}
    else:
        same = True
    if not same:
        return (
            f"Secrets of the backup are encrypted with another key than that in {secrets}; to take pki/ and secrets/ "
            "of the backup, add -e etcd_restore_secrets=replace: those that are there are moved aside"
        )
    return ""
