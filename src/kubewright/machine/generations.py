"""Versions of a component's binaries on a machine: what it runs, what it ran before, and the way back there.

A record (component.RECORDS/NAME.json) of a service that was healthy has
  ingredients  path -> SHA-256 of everything it was started with
  artifacts    artifact -> {link, version, sha256} of its binaries
  previous     the same of the binaries before them, empty when there is nothing to go back to
  changed      {by, at}: the set of artifacts that `previous` gave way to, and when; it stays when they are gone back to
  tried        {by, at}: the set that it was last begun to change to, until it is healthy with other binaries
Older records have ingredients only; the store's directories say the versions then.

A picture (BEFORE/NAME.json, 0600) holds links and files as they were when the service was last healthy. It exists only
from the first change until the service is healthy again, so that an interrupted run does not lose it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from typing import Any

from . import files

BEFORE = "/var/lib/kubewright/before"
_DIGEST_LENGTH = 12
_CNI = "/opt/cni/bin/"


def directory_name(version: str, sha256: str) -> str:
    """Of a version in the store."""
    return f"{version}-{sha256[:_DIGEST_LENGTH]}"


def artifacts(record: dict[str, Any], store: str) -> dict[str, dict[str, str]]:
    """Artifact -> {link, version, sha256} of what the service was last healthy with."""
    known = record.get("artifacts")
    if known:
        return dict(known)
    found = {}
    for path, sha256 in record.get("ingredients", {}).items():
        name = os.path.basename(path)
        versions = _versions(f"{store}/{name}")
        version = next((v for v in versions if v.endswith("-" + sha256[:_DIGEST_LENGTH])), "") if sha256 else ""
        if version:
            artifact = f"cni-{name}" if path.startswith(_CNI) else name
            found[artifact] = {"link": path, "version": version[: -_DIGEST_LENGTH - 1], "sha256": sha256}
    return found


def declared_artifacts(declared: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The same of a declaration."""
    return {
        binary["artifact"]: {"link": binary["link"], "version": binary["version"], "sha256": binary["sha256"]}
        for binary in declared["binaries"]
    }


def describe(record: dict[str, Any], store: str) -> dict[str, dict[str, Any]]:
    """As of the record, for the controller: artifact -> {link, version, sha256, stored}, twice; twice {by, at} or {}.

    `stored`: whether the store still has that content.
    """
    result: dict[str, dict[str, Any]] = {key: record.get(key) or {} for key in ("changed", "tried")}
    for key, generation in (("artifacts", artifacts(record, store)), ("previous", record.get("previous") or {})):
        result[key] = {name: {**one, "stored": os.path.exists(_stored(one, store))} for name, one in generation.items()}
    return result


def _stored(one: dict[str, str], store: str) -> str:
    name = os.path.basename(one["link"])
    return f"{store}/{name}/{directory_name(one['version'], one['sha256'])}/{name}"


def _digests(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: one["sha256"] for name, one in found.items()}


def succession(record: dict[str, Any], declared: dict[str, Any], store: str) -> dict[str, Any]:
    """What the record says of binaries that follows when the declared ones turned out healthy.

    Whoever has gone back has nothing further to go back to: a rollback that is repeated must not go forward again.
    """
    before, now = artifacts(record, store), declared_artifacts(declared)
    previous, changed, tried = (record.get(key) or {} for key in ("previous", "changed", "tried"))
    if _digests(before) != _digests(now):
        tried = {}
        previous = {} if not before or _digests(previous) == _digests(now) else before
        changed = {"by": declared["set"], "at": time.time()} if previous else changed
    return {"artifacts": now, "previous": previous, "changed": changed, "tried": tried}


def trial(record: dict[str, Any], declared: dict[str, Any], store: str) -> dict[str, Any]:
    """The record's `tried` when a service begins to change to the declared binaries: {by, at}.

    Empty for the same binaries, and for a way back, which is no upgrade.
    """
    back = _digests(record.get("previous") or {}) == _digests(declared_artifacts(declared))
    if back or not changes_binaries(record, declared, store):
        return {}
    return {"by": declared["set"], "at": time.time()}


def changes_binaries(record: dict[str, Any], declared: dict[str, Any], store: str) -> bool:
    """Whether a service that was healthy once is to run other binaries."""
    before = _digests(artifacts(record, store))
    return bool(before) and before != _digests(declared_artifacts(declared))


def _versions(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [name for name in names if re.search("-[0-9a-f]{12}$", name)]


def collect(record: dict[str, Any], store: str) -> None:
    """Remove from the store what is neither this record's `artifacts` nor its `previous`."""
    kept: dict[str, set[str]] = {}
    for generation in (record["artifacts"], record["previous"]):
        for one in generation.values():
            name = os.path.basename(one["link"])
            kept.setdefault(name, set()).add(directory_name(one["version"], one["sha256"]))
    for name, versions in kept.items():
        for version in _versions(f"{store}/{name}"):
            path = f"{store}/{name}/{version}"
            if version not in versions and os.path.realpath(_link(record, name)) != f"{path}/{name}":
                shutil.rmtree(path, ignore_errors=True)


def _link(record: dict[str, Any], name: str) -> str:
    links = (str(one["link"]) for one in record["artifacts"].values())
    return next((link for link in links if os.path.basename(link) == name), "")


def take_picture(declared: dict[str, Any], record: dict[str, Any], store: str, cache: files.DigestCache) -> None:
    """Remember links and files as they are, before binaries or a configuration that has a `check` change.

    A picture that is there was taken by a run that was interrupted before the service was healthy. It stays, unless
    the service was healthy with what is there now.
    """
    if not changes_binaries(record, declared, store) and not declared["check"]:
        return
    links = {binary["link"] for binary in declared["binaries"]}
    links |= {one["link"] for one in artifacts(record, store).values()}
    paths = {item["path"] for item in declared["files"]} | set(declared["absent"])
    watched = {item["path"] for item in declared["files"] if item["restart"]} | links
    started = record["ingredients"]
    altered = any(path in started and (cache.sha256(path) or "") != started[path] for path in watched)
    if altered and os.path.exists(_picture_path(declared["name"])):
        return
    picture = {
        "links": {path: os.readlink(path) if os.path.islink(path) else "" for path in sorted(links)},
        "files": {path: _file(path) for path in sorted(paths)},
    }
    files.write_atomic(_picture_path(declared["name"]), json.dumps(picture).encode(), 0o600)


def _file(path: str) -> dict[str, Any]:
    """Content, mode and owner; empty when there is none."""
    seen = files.describe(path)
    if not seen or seen["kind"] != "file":
        return {}
    with open(path, "rb") as stream:
        content = base64.b64encode(stream.read()).decode()
    return {"content": content, "mode": seen["mode"], "owner": seen["owner"], "group": seen["group"]}


def put_back(name: str) -> bool:
    """Restore links and files of a component from its picture; False when there is none."""
    picture = files.read_json(_picture_path(name))
    if not picture:
        return False
    for path, target in picture["links"].items():
        if target:
            files.link_atomic(target, path)
        elif os.path.islink(path):
            os.unlink(path)
    for path, item in picture["files"].items():
        if item:
            files.write_atomic(path, files.decode(item["content"]), item["mode"], item["owner"], item["group"])
        elif os.path.lexists(path):
            os.unlink(path)
    return True


def forget_picture(name: str) -> None:
    """Remove it: the service is healthy."""
    if os.path.exists(_picture_path(name)):
        os.unlink(_picture_path(name))


def _picture_path(name: str) -> str:
    return f"{BEFORE}/{name}.json"
