"""The way of components to their declaration: judged, placed, started, healthy, or back to what they were.

What differs, and the declaration, are in component.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from typing import Any

from . import component, docker, etcd, files, generations, health, placed, systemd

_CHECK_SECONDS = 20
# A reload is a signal: until it is taken over, what was there before answers for it.
_RELOAD_SECONDS = 2.0
# For a peer that is just being started.
_PEER_SECONDS = 20.0
_PEER_POLL_SECONDS = 1.0


def _start(declared: dict[str, Any], cache: files.DigestCache, *, reload: bool) -> dict[str, Any] | None:
    """Restart the unit, or reload it, and wait for its health; None, or what went wrong with the evidence."""
    name = declared["name"]
    before = files.read_json(component.record_path(name)) or {}
    record = {
        "ingredients": component.ingredients(declared, cache),
        **generations.succession(before, declared, component.STORE),
    }
    failure = _restart(declared, record, reload=reload)
    if not failure:
        generations.forget_picture(name)
        generations.collect(record, component.STORE)
    return failure


def _restart(declared: dict[str, Any], record: dict[str, Any], *, reload: bool = False) -> dict[str, Any] | None:
    """Restart the unit, or reload it, and write the record when it is healthy."""
    unit, name = declared["unit"], declared["name"]
    begin = time.time()
    reason = ""
    if reload:
        reason = systemd.reload(unit)
        time.sleep(_RELOAD_SECONDS)
    else:
        systemd.restart(unit)
    reason = reason or health.wait(unit, declared["health"]["checks"], float(declared["health"]["timeout"]))
    if reason:
        state = systemd.states([unit])[unit]
        return {
            "component": name,
            "unit": unit,
            "reason": reason,
            "journal": systemd.journal(unit, begin),
            "state": state,
        }
    _write_record(name, {**record, "started": time.time()})
    return None


def _write_record(name: str, record: dict[str, Any]) -> None:
    files.write_atomic(component.record_path(name), json.dumps(record, indent=1, sort_keys=True).encode(), 0o600)


def _roll_back(
    failed: dict[str, Any], rest: list[dict[str, Any]], cache: files.DigestCache, *, reload: bool
) -> dict[str, Any] | None:
    """Back to the binaries, files and unit with which the failed component was healthy; those of `rest` unstarted.

    `reload`: that was all that the change needed, so it is enough for the way back, while the unit runs.
    Returns {to: {artifact: version}, failure: reason or "", refused: why it stays as it is, or ""}. None when nothing
    leads back: a new setting of the same binaries stays for its owner to correct, unless the component has a `check`.
    """
    record = files.read_json(component.record_path(failed["name"])) or {}
    changed = generations.changes_binaries(record, failed, component.STORE)
    if not changed and not failed["check"]:
        return None
    refused = _no_return(failed, record) if changed and failed["member"] else ""
    if refused:
        return {"to": {}, "failure": "", "refused": refused}
    if not generations.put_back(failed["name"]):
        return None
    for other in rest:
        generations.put_back(other["name"])
        generations.forget_picture(other["name"])
    systemd.daemon_reload()
    unit = failed["unit"]
    runs = systemd.states([unit])[unit].get("ActiveState") == "active"
    found = {path: cache.sha256(path) or "" for path in record["ingredients"]}
    artifacts = generations.artifacts(record, component.STORE)
    before = {**record, "ingredients": found, "artifacts": artifacts}
    failure = _restart(failed, before, reload=reload and runs)
    if not failure:
        generations.forget_picture(failed["name"])
    return {
        "to": {name: one["version"] for name, one in artifacts.items()},
        "failure": failure["reason"] if failure else "",
        "refused": "",
    }


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _no_return(declared: dict[str, Any], record: dict[str, Any]) -> str:
    """Why an etcd member cannot go back to the binary of before; empty when it can, or when no member says.

    An older minor does not start in a cluster whose version has been raised (etcd, downgrading).
    """
    before = generations.artifacts(record, component.STORE).get("etcd", {}).get("version", "")
    member = declared["member"]
    versions = [etcd.cluster_version({**member, "url": url}) for url in [member["url"], *member.get("all", [])]]
    highest = max(versions, key=_minor, default="")
    if not before or _minor(highest) <= _minor(before):
        return ""
    return (
        f"the version of the etcd cluster is {highest} already, and {before} does not start in it any more. The others "
        "have the data: mend what is said here, or give this member a new start: playbooks/ops/restore_member.yml"
    )


def _judge(declared: dict[str, Any], contents: dict[str, str], found: dict[str, Any]) -> str:
    """What the program itself has against its new configuration, asked before any of it is placed."""
    if not declared["check"] or not any(d["kind"] == "file" and d["content"] for d in found["differences"]):
        return ""
    with tempfile.TemporaryDirectory(prefix="kubewright-check-") as root:
        for item in declared["files"]:
            path = item["path"]
            if path in contents:
                content = files.decode(contents[path])
            else:
                with open(path, "rb") as stream:
                    content = stream.read()
            files.write_atomic(root + path, content, int(item["mode"], 8))
        argv = [part.replace("{root}", root) for part in declared["check"]]
        try:
            reply = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_CHECK_SECONDS)
            said = " ".join(f"{reply.stdout}{reply.stderr}".replace(root, "").split()) if reply.returncode else ""
            failed = bool(reply.returncode)
        except (OSError, subprocess.TimeoutExpired) as error:
            said, failed = str(error), True
    if not failed:
        return ""
    return (
        f"{declared['name']}: {os.path.basename(argv[0])} refuses its new configuration, which was not put in place: "
        f"{said[-1500:] or 'without a word'}"
    )


def _refusal(declared: list[dict[str, Any]], contents: dict[str, str], found: list[dict[str, Any]]) -> str:
    """Why nothing may be changed: a configuration is bad, or a service must not be interrupted now. Empty: it may."""
    for one, finding in zip(declared, found):
        refused = _judge(one, contents, finding)
        if refused:
            return refused
        if one["member"] and finding["restart"] and finding["running"]:
            try:
                reason = etcd.quorum_depends_on(one["member"])
            except etcd.EtcdError:
                continue  # without an answer there is no quorum that could be lost
            if reason:
                return reason
        if finding["restart"] and finding["running"] and one["peers"]:
            reason = _alone(one)
            if reason:
                return reason
    return ""


def _alone(declared: dict[str, Any]) -> str:
    """Why a service must not be interrupted that answers while none of its peers does; empty when it may."""
    if any(health.probe(check) for check in declared["health"]["checks"]):
        return ""
    deadline = time.monotonic() + _PEER_SECONDS
    while True:
        reasons = [health.probe(check) for check in declared["peers"]]
        if not all(reasons):
            return ""
        if time.monotonic() > deadline:
            return (
                f"restarting {declared['name']} here would leave none that answers: {'; '.join(reasons)}. Nothing was "
                "changed here. Bring one of the others up first"
            )
        time.sleep(_PEER_POLL_SECONDS)


def apply_all(declared: list[dict[str, Any]], contents: dict[str, str], staged: dict[str, str]) -> dict[str, Any]:
    """Bring every component to its declaration; stops at the first service that does not become healthy.

    `contents`: path -> base64 of files to write. `staged`: SHA-256 -> path of a transferred binary.
    One that fails with other binaries than it was healthy with, or with a configuration that its `check` let pass,
    goes back to those of before, with its files and unit.
    Returns {restarted: [unit], reloaded: [unit], seconds: {name: float}, refusal: text, failure: None or {...}}; after
    a refusal nothing has been changed.
    """
    cache = files.DigestCache()
    states = systemd.states([c["unit"] for c in declared if c["unit"]])
    found = [component.inspect(one, cache, states) for one in declared]
    result: dict[str, Any] = {
        "restarted": [],
        "reloaded": [],
        "seconds": {},
        "refusal": _refusal(declared, contents, found),
        "failure": None,
    }
    if result["refusal"]:
        return result
    stored = {binary["link"]: component.store_path(binary) for one in declared for binary in one["binaries"]}
    placed.remember(declared, stored, {c["name"] for c in declared if os.path.exists(component.record_path(c["name"]))})
    for one, finding in zip(declared, found):
        record = files.read_json(component.record_path(one["name"]))
        if record and finding["restart"]:
            generations.take_picture(one, record, component.STORE, cache)
            tried = generations.trial(record, one, component.STORE)
            if tried:
                _write_record(one["name"], {**record, "tried": tried})
        component.place(one, contents, staged, finding)
    touched_units = any(d["path"].startswith(component.UNITS) for finding in found for d in finding["differences"])
    if touched_units or any(s.get("NeedDaemonReload") == "yes" for s in states.values()):
        systemd.daemon_reload()
    for index, (one, finding) in enumerate(zip(declared, found)):
        if any(d["kind"] == "enable" for d in finding["differences"]):
            systemd.enable(one["unit"])
        if one["unit"] and finding["restart"]:
            begin = time.monotonic()
            reload = bool(finding["reload"])
            result["failure"] = _start(one, cache, reload=reload)
            result["seconds"][one["name"]] = round(time.monotonic() - begin, 2)
            if result["failure"]:
                result["failure"]["rollback"] = _roll_back(one, declared[index + 1 :], cache, reload=reload)
                break
            result["reloaded" if reload else "restarted"].append(one["unit"])
        wanted = {d["path"] for d in finding["differences"] if d["kind"] == "image"}
        for image in one["images"]:
            if image["reference"] in wanted:
                docker.load(image, staged[image["sha256"]])
    cache.save()
    return result
