"""What can be restored, how old it is, and whether it may be. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubewright import backup_store, versions
from kubewright.machine import etcd_status

_SPARE = 64 << 20


def moment() -> str:
    """Now, as in the names of what a restore moves aside."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")


def states(members: Sequence[Mapping[str, Any]], remains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line on each member: what it has, and of when. `remains`: machine -> what `etcd_restore.remains` found."""
    lines = []
    for one in members:
        left = remains.get(one["name"])
        state = "healthy" if one["healthy"] else "answers, without a quorum"
        if one["answers"]:
            lines.append(f"{one['name']}: {state}, revision {one['revision']}")
        elif left is None:
            lines.append(f"{one['name']}: not in this run")
        elif not left["data"]:
            lines.append(f"{one['name']}: no data")
        else:
            revision = "" if left["revision"] is None else f", revision {left['revision']}"
            size = etcd_status.megabytes(left["size"])
            lines.append(
                f"{one['name']}: data of {backup_store.age(left['written'])} ago ({size}){revision}, does not answer"
            )
        if left and left["interrupted"]:
            lines[-1] += ", from a restore that was interrupted"
    return lines


def backups(paths: Sequence[Path], shown: int = 5) -> list[str]:
    """A line on each of the newest backups."""
    return [f"{path.name}: {backup_store.age(path.stat().st_mtime)} ago" for path in paths[:shown]] or ["no backup"]


def newest(members: Sequence[Mapping[str, Any]], remains: Mapping[str, Mapping[str, Any]]) -> int:
    """The highest revision that any member is known to have; 0 when none is."""
    known = [int(one["revision"]) for one in members if one["answers"]]
    return max([*known, *(int(left["revision"] or 0) for left in remains.values())], default=0)


def too_old(etcd: Mapping[str, str], version: str) -> list[str]:
    """Which machines have an etcd of an older minor version than that of a snapshot. `etcd`: machine -> version."""
    return [
        f"{name}: etcd {own} does not read a snapshot of etcd {version}: set artifacts_lock to a set with that one"
        for name, own in etcd.items()
        if versions.minor(own) < versions.minor(version)
    ]


def problems(
    wanted: Sequence[str],
    remains: Mapping[str, Mapping[str, Any]],
    size: int,
    directory: str,
    masters: Sequence[str] = (),
) -> list[str]:
    """Why a snapshot of `size` bytes cannot become the data of all of `wanted` (machines of the group etcd).

    `masters`: those of the cluster that the run does not reach.
    """
    absent = [name for name in wanted if name not in remains]
    found = []
    if absent:
        found.append(
            f"{', '.join(absent)}: not in this run, and all members of a new cluster are restored together: bring them "
            "back, or take them out of the group etcd for now"
        )
    if masters:
        found.append(
            f"{', '.join(masters)}: not in this run, and an API server that goes on there would tell of what is gone: "
            "bring them back, or stop them for good and take them out of the group kube_master for now"
        )
    for name, left in remains.items():
        # The data made of the snapshot, and the snapshot on its way, which goes through Ansible's directory.
        way = left["transfer"]
        rooms = [(directory, left["free"], size + (size if way["same"] else 0) + _SPARE)]
        rooms += [] if way["same"] else [(way["path"], way["free"], size + _SPARE)]
        found += [
            f"{name}: {path} has {free >> 20} MiB free, {needed >> 20} MiB are needed; make room there"
            for path, free, needed in rooms
            if free < needed
        ]
    return found
