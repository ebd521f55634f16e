"""Files on a machine: what is there, and atomic replacement."""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
import tempfile
from typing import Any

DIGESTS = "/var/lib/kubewright/digests.json"


def sha256_of(path: str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            block = stream.read(1 << 20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


class DigestCache:
    """SHA-256 of large files, remembered by what the kernel says changes when they do (device, inode, size, times)."""

    def __init__(self, path: str = DIGESTS) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = read_json(path) or {}
        self._dirty = False

    def sha256(self, path: str) -> str | None:
        """Digest of `path` with links followed, None when there is no such file."""
        try:
            info = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISREG(info.st_mode):
            return None
        key = [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
        known = self._known.get(path)
        if known and known[:-1] == key:
            return str(known[-1])
        digest = sha256_of(path)
        self._known[path] = [*key, digest]
        self._dirty = True
        return digest

    def save(self) -> None:
        """Write the cache back if anything was learnt; it is only a cache, so a full disk is no error here."""
        if not self._dirty:
            return
        alive = {path: entry for path, entry in self._known.items() if os.path.exists(path)}
        try:
            write_atomic(self._path, json.dumps(alive).encode(), 0o600)
        except OSError:
            return


def read_json(path: str) -> Any:
    """Content of a JSON file, None when it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def owner_ids(owner: str, group: str) -> tuple[int, int]:
    """Numeric ids; KeyError for an account that the machine does not have."""
    return pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid


def make_directory(path: str, mode: int = 0o755, owner: str = "root", group: str = "root") -> None:
    """Create a directory with its parents, or correct its mode and owner."""
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)
    os.chown(path, *owner_ids(owner, group))


def write_atomic(path: str, content: bytes, mode: int, owner: str = "root", group: str = "root") -> None:
    """Replace a file so that a reader, or a crash, sees either the old or the new one."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".kubewright-")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            os.fchown(stream.fileno(), *owner_ids(owner, group))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def adopt(staged: str, path: str, sha256: str, mode: int) -> None:
    """Move a transferred file to its place after checking what arrived."""
    seen = sha256_of(staged)
    if seen != sha256:
        raise OSError(f"{path}: the transfer was damaged (sha256 {seen[:12]}, expected {sha256[:12]}); run again")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = path + ".new"
    shutil.move(staged, temporary)
    os.chmod(temporary, mode)
    os.chown(temporary, 0, 0)
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def link_atomic(target: str, path: str) -> None:
    """Point a symbolic link somewhere else in one step."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = path + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)


def describe(path: str) -> dict[str, Any] | None:
    """Type, mode, owner and group of a path, links not followed; None when it does not exist."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    kind = "link" if stat.S_ISLNK(info.st_mode) else "directory" if stat.S_ISDIR(info.st_mode) else "file"
    try:
        owner, group = pwd.getpwuid(info.st_uid).pw_name, grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        owner, group = str(info.st_uid), str(info.st_gid)
    return {"kind": kind, "mode": stat.S_IMODE(info.st_mode), "owner": owner, "group": group}


def read(path: str) -> str:
    """A small text file, most of all of /proc and /etc; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def read_text(path: str, limit: int = 1 << 20) -> str:
    """Content for a diff; empty when missing, a remark when it is not text or too large."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except OSError:
        return ""
    if len(content) > limit:
        return "(too large to show)\n"
    try:
        return content.decode()
    except UnicodeDecodeError:
        return f"(binary, sha256 {hashlib.sha256(content).hexdigest()})\n"


def decode(content: str) -> bytes:
    """Bytes of a base64 text as the controller sends file contents."""
    return base64.b64decode(content.encode(), validate=True)
