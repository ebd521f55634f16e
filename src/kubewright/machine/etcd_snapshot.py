"""Snapshots of etcd: taken from one member, proven to be whole, and taken by a timer on the machines.

etcd appends the SHA-256 of the database to the stream of a snapshot (etcd, maintenance service, Snapshot), so a file
that was cut off or altered is known without etcd. What is in it is asked of etcd's own tool.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import etcd, etcd_status, files, health

_PATH = "/usr/local/bin:/opt/etcd/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A database of the largest size that etcd recommends, over a slow disk.
_TOOL_SECONDS = 1800
_STREAM_SECONDS = 60.0
_DIGEST = hashlib.sha256().digest_size
# Beyond what is computed: other programs of the machine write as well.
_MARGIN = 64 << 20
# Of a file that is being written. A backup and the timer may meet in a directory: each removes what an interrupted one
# of its own kind left, and nothing of the other's.
_PARTIAL = ".partial-"
LENT, SCHEDULED, KEPT = "lent", "scheduled", "kept"
# What etcd held before an upgrade of its members.
BEFORE_UPGRADE = "/var/lib/kubewright/snapshots"


class SnapshotError(Exception):
    """A snapshot that is not whole, or that nothing can be made of."""


def tool(names: tuple[str, ...] = ("etcdutl", "etcdctl")) -> str:
    """The program that reads snapshots: etcdutl where there is one, which from etcd 3.6 on is the only one."""
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found:
            return found
    raise SnapshotError(f"neither {' nor '.join(names)} is on this machine (looked in {_PATH}); run --tags etcd first")


def run_tool(*arguments: str) -> str:
    """What etcd's tool prints; SnapshotError with its last words when it fails."""
    program = tool()
    environment = {"PATH": _PATH, "ETCDCTL_API": "3", "HOME": "/root"}
    reply = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=_TOOL_SECONDS, env=environment
    )
    if reply.returncode:
        words = [line for line in (reply.stderr or reply.stdout).splitlines() if line.strip()]
        raise SnapshotError(f"{os.path.basename(program)} {arguments[0]} {arguments[1]}: {(words or ['failed'])[-1]}")
    return reply.stdout


def offers(option: str, *command: str) -> bool:
    """Whether etcd's tool has an option, which differs between versions."""
    try:
        return option in run_tool(*command, "--help")
    except SnapshotError:
        return False


def contents(path: str) -> dict[str, Any]:
    """What is in a snapshot or in a database that is not in use: {hash, revision, keys, size}."""
    text = run_tool("snapshot", "status", path, "-w", "json")
    fields = {"hash": "hash", "revision": "revision", "keys": "totalKey", "size": "totalSize"}
    try:
        told = json.loads(text)
        return {name: int(told[field]) for name, field in fields.items()}
    except (ValueError, KeyError, TypeError):
        raise SnapshotError(f"{tool()} tells the status of a snapshot in words of its own: {text[:200]!r}") from None


def is_whole(path: str) -> bool:
    """Whether a file ends with the SHA-256 of what is before."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        left = os.fstat(stream.fileno()).st_size - _DIGEST
        # A database consists of pages, the smallest of which have 512 bytes.
        if left <= 0 or left % 512:
            return False
        while left:
            block = stream.read(min(left, 1 << 20))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        return stream.read() == digest.digest()


def _blobs(endpoint: dict[str, Any]) -> Iterator[bytes]:
    try:
        connection = health.connect(endpoint, _STREAM_SECONDS)
    except OSError as error:
        raise etcd.EtcdError(f"etcd at {endpoint['url']} cannot be asked: {error}") from error
    try:
        connection.request("POST", "/v3/maintenance/snapshot", "{}", {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise etcd.EtcdError(f"etcd at {endpoint['url']}: snapshot answered {reply.status}")
        for line in reply:
            if not line.strip():
                continue
            message = json.loads(line)
            if "error" in message:
                raise etcd.EtcdError(f"etcd at {endpoint['url']}: snapshot: {message['error'].get('message')}")
            yield base64.b64decode(message["result"].get("blob", ""))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise etcd.EtcdError(f"etcd at {endpoint['url']}: the snapshot broke off: {error}") from error
    finally:
        connection.close()


def need_room(path: str, wanted: int, what: str) -> None:
    """SnapshotError when the file system of `path` has not so many bytes free, and some to spare."""
    lacks = lack(path, free_bytes(path), wanted, what)
    if lacks:
        raise SnapshotError(f"{lacks}: nothing has been changed; make room there")


def lack(path: str, free: int, wanted: int, what: str) -> str:
    """Why `free` bytes at a path are not enough for `wanted` and some to spare; empty when they are."""
    if free >= wanted + _MARGIN:
        return ""
    sizes = f"{etcd_status.megabytes(free)} free, {etcd_status.megabytes(wanted + _MARGIN)} are needed"
    return f"{path} has {sizes} for {what}"


def free_bytes(path: str) -> int:
    """Free bytes of the file system that a path, which need not exist yet, is or would be on."""
    return shutil.disk_usage(existing(path)).free


def existing(path: str) -> str:
    """The path itself, or the nearest directory above it that exists."""
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    return path or "/"


def clear_partial(directory: str, use: str = LENT) -> None:
    """Remove what an interrupted run of this use left in a directory."""
    if not os.path.isdir(directory):
        return
    for name in os.listdir(directory):
        if name.startswith(f"{_PARTIAL}{use}-"):
            os.unlink(os.path.join(directory, name))


def take(
    members: list[dict[str, Any]], tls: dict[str, str], directory: str, near: str, use: str = LENT
) -> dict[str, Any]:
    """Snapshot of one member into `directory`, proven to be whole and to be of now.

    `members`: as `etcd_status.survey` tells. Returns {path, sha256, size, hash, revision, keys, member, cluster,
    version}; the name of the file is one that the next run of the same use removes when nobody moves it.
    """
    chosen = etcd_status.of_choice(members, near)
    if not chosen:
        reasons = "; ".join(f"{one['name']}: {one['reason'] or ', '.join(one['alarms'])}" for one in members)
        raise SnapshotError(f"no etcd member is healthy, so no snapshot can be taken ({reasons})")
    os.makedirs(directory, exist_ok=True)
    clear_partial(directory, use)
    need_room(directory, chosen["db_size"], f"a snapshot of {chosen['name']}")
    endpoint = etcd_status.endpoint(tls, chosen["url"])
    path = os.path.join(directory, f"{_PARTIAL}{use}-{os.getpid()}.db")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            for blob in _blobs(endpoint):
                stream.write(blob)
            stream.flush()
            os.fsync(stream.fileno())
        told = _proven(path, chosen, endpoint)
        facts = {"path": path, "sha256": files.sha256_of(path), **told, "size": os.path.getsize(path)}
        return {**facts, "member": chosen["name"], "cluster": chosen["cluster"], "version": chosen["version"]}
    except BaseException:
        if os.path.exists(path):
            os.unlink(path)
        raise


def _proven(path: str, chosen: dict[str, Any], endpoint: dict[str, Any]) -> dict[str, Any]:
    """Contents of a snapshot that was just taken; SnapshotError when it is not what the member had meanwhile."""
    if not is_whole(path):
        raise SnapshotError(f"the snapshot of {chosen['name']} is not whole: its SHA-256 is not that of etcd")
    told = contents(path)
    after = int(etcd.ask(endpoint, "/v3/maintenance/status", {})["header"].get("revision", 0))
    if not chosen["revision"] <= told["revision"] <= after:
        raise SnapshotError(
            f"the snapshot of {chosen['name']} has revision {told['revision']}, the member was between "
            f"{chosen['revision']} and {after} meanwhile"
        )
    return told


def look(members: list[dict[str, str]], tls: dict[str, str], directory: str) -> dict[str, Any]:
    """What members say of themselves, and the room for a snapshot: {members, free}."""
    return {"members": etcd_status.survey(members, tls), "free": free_bytes(directory)}


def lend(members: list[dict[str, str]], tls: dict[str, str], directory: str, near: str, owner: str) -> dict[str, Any]:
    """`take` one of members as they are now, for the user `owner` to fetch, who need not be root."""
    return hand_to(owner, take(etcd_status.survey(members, tls), tls, directory, near))


def keep(members: list[dict[str, str]], tls: dict[str, str], near: str) -> dict[str, Any]:
    """`take` one of members as they are now, and let it stay in BEFORE_UPGRADE until the next one."""
    taken = take(etcd_status.survey(members, tls), tls, BEFORE_UPGRADE, near, KEPT)
    path = f"{BEFORE_UPGRADE}/before-upgrade.db"
    os.replace(taken["path"], path)
    return {**taken, "path": path}


def hand_to(owner: str, taken: dict[str, Any]) -> dict[str, Any]:
    """Let a user, and nobody else, read a snapshot in a directory that is root's."""
    os.chmod(os.path.dirname(taken["path"]), 0o711)  # noqa: S103 - names can be entered, not listed
    os.chown(taken["path"], *files.owner_ids(owner, "root"))
    return taken


def surplus(names: list[str], keep: int) -> list[str]:
    """Of the names of snapshots, which begin alike and sort by time, those beyond the `keep` newest."""
    ours = sorted(name for name in names if name.startswith("etcd-") and name.endswith(".db"))
    return ours[: max(0, len(ours) - max(1, keep))]


def scheduled(config: dict[str, Any]) -> str:
    """What the timer does on every machine: one of the members keeps a snapshot. Returns a line for the journal.

    `config`: {name, members, tls, directory, keep}.
    """
    members = etcd_status.survey(config["members"], config["tls"])
    duty = etcd_status.on_duty(members)
    if not duty:
        raise SnapshotError("no etcd member is healthy: no snapshot has been taken")
    if duty != config["name"]:
        return f"left to {duty}"
    directory = config["directory"]
    taken = take([one for one in members if one["name"] == duty], config["tls"], directory, duty, SCHEDULED)
    name = time.strftime("etcd-%Y%m%dT%H%M%SZ", time.gmtime()) + f"-r{taken['revision']}.db"
    os.replace(taken["path"], os.path.join(directory, name))
    for old in surplus(os.listdir(directory), config["keep"]):
        os.unlink(os.path.join(directory, old))
    return f"{name}: {etcd_status.megabytes(taken['size'])}, {taken['keys']} keys, hash {taken['hash']:08x}"


def main() -> int:
    """Entry of the service; a failure is one line, and makes the unit a failed one."""
    parser = argparse.ArgumentParser(description="takes a snapshot of etcd if it is this member's turn")
    parser.add_argument("config")
    try:
        with open(parser.parse_args().config, encoding="utf-8") as stream:
            print(scheduled(json.load(stream)))  # noqa: T201 - read in the journal
    except (SnapshotError, etcd.EtcdError, OSError, ValueError) as error:
        print(f"no snapshot: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
