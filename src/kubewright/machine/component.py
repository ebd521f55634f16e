"""A component on a machine: what differs from its declaration, and the way there.

The controller sends a declaration with digests only (`inspect`), gets back every difference with its reason, ships
what differs, and asks to `apply`. Both run here, on the machine, and both decide by the same comparison.

Declaration of one component (all paths absolute):
  name         identifies the record of what its service was started with
  directories  [{path, mode, owner, group}]
  binaries     [{artifact, name, version, sha256, link}]   stored by content, reached through the link
  set          name of the set of artifacts that they are of
  files        [{path, sha256, mode, owner, group, secret, restart}]
  absent       [path]
  inputs       [path]   files that other stages put there; a change needs a restart
  reload       [path]   those of the files and inputs whose change the running service takes over by a reload
  check        command that judges the files before they are placed; `{root}` in it is the directory that they lie below
  unit         name of the systemd unit, or ""
  health       {timeout, checks}
  member       the endpoint {url, ca, cert, key} of this machine's etcd member, for a component that is one, or none
  peers        checks of this service on other machines, one of which must pass before it is interrupted here, or none
  images       [{reference, id, sha256}]   archives to load into Docker once the component's service answers
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
import time
from typing import Any

from . import docker, etcd, files, generations, health, placed, systemd

STORE = "/opt/kubewright/store"
RECORDS = "/var/lib/kubewright/components"
UNITS = "/etc/systemd/system/"
_CHECK_SECONDS = 20
# For a peer that is just being started.
_PEER_SECONDS = 20.0
_PEER_POLL_SECONDS = 1.0


def store_path(binary: dict[str, Any]) -> str:
    """Where a binary of this version and content lives."""
    directory = generations.directory_name(binary["version"], binary["sha256"])
    return f"{STORE}/{binary['name']}/{directory}/{binary['name']}"


def _record_path(name: str) -> str:
    return f"{RECORDS}/{name}.json"


def _ingredients(declared: dict[str, Any], cache: files.DigestCache) -> dict[str, str]:
    """Everything that the running service depends on: path -> SHA-256, as declared or as found for inputs."""
    found = {item["path"]: item["sha256"] for item in declared["files"] if item["restart"]}
    for binary in declared["binaries"]:
        found[binary["link"]] = binary["sha256"]
    for path in declared["inputs"]:
        found[path] = cache.sha256(path) or ""
    return found


def _file_difference(item: dict[str, Any], cache: files.DigestCache) -> dict[str, Any] | None:
    path, mode = item["path"], int(item["mode"], 8)
    seen = files.describe(path)
    if seen is None:
        return {"kind": "file", "path": path, "reason": "missing", "content": True, "before": ""}
    reasons, content = [], False
    if seen["kind"] != "file":
        reasons.append(f"is a {seen['kind']}")
        content = True
    elif cache.sha256(path) != item["sha256"]:
        reasons.append("content differs")
        content = True
    if seen["kind"] == "file" and seen["mode"] != mode:
        reasons.append(f"mode {seen['mode']:04o}, wanted {mode:04o}")
    if (seen["owner"], seen["group"]) != (item["owner"], item["group"]):
        reasons.append(f"owner {seen['owner']}:{seen['group']}, wanted {item['owner']}:{item['group']}")
    if not reasons:
        return None
    before = "" if item["secret"] else files.read_text(path)
    return {"kind": "file", "path": path, "reason": ", ".join(reasons), "content": content, "before": before}


def _directory_difference(item: dict[str, Any]) -> dict[str, Any] | None:
    seen = files.describe(item["path"])
    if seen is None:
        return {"kind": "directory", "path": item["path"], "reason": "missing"}
    wanted = {
        "kind": "directory",
        "mode": int(item["mode"], 8),
        "owner": item["owner"],
        "group": item["group"],
    }
    if seen == wanted:
        return None
    return {
        "kind": "directory",
        "path": item["path"],
        "reason": f"{seen['kind']} {seen['mode']:04o} {seen['owner']}:{seen['group']}, "
        f"wanted {wanted['mode']:04o} {item['owner']}:{item['group']}",
    }


def _binary_difference(binary: dict[str, Any], cache: files.DigestCache) -> dict[str, Any] | None:
    stored, link = store_path(binary), binary["link"]
    held = cache.sha256(stored) == binary["sha256"]
    if held and not os.stat(stored).st_mode & stat.S_IXUSR:
        held = False
    current = os.readlink(link) if os.path.islink(link) else ""
    if held and current == stored:
        return None
    if held:
        reason = "link missing" if not os.path.lexists(link) else f"link to {current or 'something else'}"
    else:
        reason = "missing" if not os.path.exists(stored) else "content differs"
    if current and current.startswith(f"{STORE}/{binary['name']}/"):
        before = os.path.basename(os.path.dirname(current))
        reason = f"{before} becomes {generations.directory_name(binary['version'], binary['sha256'])}"
    return {"kind": "binary", "path": link, "name": binary["name"], "reason": reason, "content": not held}


def _restart_reason(
    declared: dict[str, Any], state: dict[str, str], altered: set[str], cache: files.DigestCache
) -> tuple[str, bool, bool]:
    """Why the service must be (re)started, if so, whether it runs now, and whether a reload is enough.

    `altered`: files and links of it that are not as declared.
    """
    # A unit that is still activating serves nobody yet: starting it anew interrupts nothing and needs no turn.
    running = state.get("ActiveState") in ("active", "reloading")
    if not running:
        return f"not running ({state.get('ActiveState') or 'unknown'})", False, False
    record = files.read_json(_record_path(declared["name"]))
    if not record:
        return "not started by kubewright yet", True, False
    wanted, started = _ingredients(declared, cache), record.get("ingredients", {})
    paths = sorted(p for p in set(wanted) | set(started) if wanted.get(p) != started.get(p))
    reload = {*paths, *altered} <= set(declared["reload"])
    if paths:
        return f"changed since it was started: {', '.join(paths)}", True, reload
    if altered:
        # A file was altered on the machine behind our back: the service may have read it.
        return "a file that it uses had been altered on the machine", True, reload
    return "", True, False


def inspect(declared: dict[str, Any], cache: files.DigestCache, unit_states: dict[str, Any]) -> dict[str, Any]:
    """Compare one component with the machine.

    Returns {differences: [{kind, path, reason, ...}], restart: reason or "", reload: whether that restart is only a
    reload, running, leader, missing_inputs}.
    """
    differences: list[dict[str, Any]] = []
    for directory in declared["directories"]:
        differences += filter(None, [_directory_difference(directory)])
    for binary in declared["binaries"]:
        differences += filter(None, [_binary_difference(binary, cache)])
    for item in declared["files"]:
        differences += filter(None, [_file_difference(item, cache)])
    for path in declared["absent"]:
        if os.path.lexists(path):
            differences.append({"kind": "absent", "path": path, "reason": "present", "before": files.read_text(path)})
    missing = [path for path in declared["inputs"] if not os.path.exists(path)]
    result: dict[str, Any] = {
        "differences": differences,
        "missing_inputs": missing,
        "restart": "",
        "reload": False,
        "running": False,
        "leader": False,
    }
    unit = declared["unit"]
    if unit:
        state = unit_states.get(unit, {})
        if state.get("UnitFileState") != "enabled":
            seen = state.get("UnitFileState") or "unknown to systemd"
            differences.append({"kind": "enable", "path": unit, "reason": seen})
        relevant = {item["path"] for item in declared["files"] if item["restart"]}
        relevant |= {binary["link"] for binary in declared["binaries"]}
        altered = {d["path"] for d in differences} & relevant
        result["restart"], result["running"], result["reload"] = _restart_reason(declared, state, altered, cache)
        if result["restart"] and result["running"] and declared.get("member"):
            result["leader"] = _leads(declared["member"])
    for image in declared["images"]:
        if docker.image_id(image["reference"]) != image["id"]:
            differences.append({"kind": "image", "path": image["reference"], "reason": "missing", "content": True})
    return result


def _leads(endpoint: dict[str, Any]) -> bool:
    try:
        return etcd.leads(endpoint)
    except etcd.EtcdError:
        return False


def inspect_all(components: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`inspect` for each component, with one question to systemd for all of them."""
    cache = files.DigestCache()
    states = systemd.states([c["unit"] for c in components if c["unit"]])
    result = [inspect(component, cache, states) for component in components]
    cache.save()
    return result


def _place(declared: dict[str, Any], contents: dict[str, str], staged: dict[str, str], found: dict[str, Any]) -> None:
    differing = {(d["kind"], d["path"]): d for d in found["differences"]}
    for directory in declared["directories"]:
        if ("directory", directory["path"]) in differing:
            files.make_directory(directory["path"], int(directory["mode"], 8), directory["owner"], directory["group"])
    for binary in declared["binaries"]:
        difference = differing.get(("binary", binary["link"]))
        if not difference:
            continue
        if difference["content"]:
            files.adopt(staged[binary["sha256"]], store_path(binary), binary["sha256"], 0o755)
        files.link_atomic(store_path(binary), binary["link"])
    for item in declared["files"]:
        difference = differing.get(("file", item["path"]))
        if not difference:
            continue
        if difference["content"]:
            files.write_atomic(
                item["path"],
                files.decode(contents[item["path"]]),
                int(item["mode"], 8),
                item["owner"],
                item["group"],
            )
        else:
            os.chmod(item["path"], int(item["mode"], 8))
            os.chown(item["path"], *files.owner_ids(item["owner"], item["group"]))
    for path in declared["absent"]:
        if os.path.lexists(path):
            if path.startswith(UNITS):
                # While systemd still knows what it is.
                systemd.disable(os.path.basename(path))
            os.unlink(path)


def _start(declared: dict[str, Any], cache: files.DigestCache, *, reload: bool) -> dict[str, Any] | None:
    """Restart the unit, or reload it, and wait for its health; None, or what went wrong with the evidence."""
    name = declared["name"]
    before = files.read_json(_record_path(name)) or {}
    record = {
        "ingredients": _ingredients(declared, cache),
        **generations.succession(before, declared, STORE),
    }
    failure = _restart(declared, record, reload=reload)
    if not failure:
        generations.forget_picture(name)
        generations.collect(record, STORE)
    return failure


def _restart(declared: dict[str, Any], record: dict[str, Any], *, reload: bool = False) -> dict[str, Any] | None:
    """Restart the unit, or reload it, and write the record when it is healthy."""
    unit, name = declared["unit"], declared["name"]
    begin = time.time()
    reason = ""
    if reload:
        reason = systemd.reload(unit)
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
    files.write_atomic(
        _record_path(name),
        json.dumps({**record, "started": time.time()}, indent=1, sort_keys=True).encode(),
        0o600,
    )
    return None


def _roll_back(failed: dict[str, Any], rest: list[dict[str, Any]], cache: files.DigestCache) -> dict[str, Any] | None:
    """Back to the binaries, files and unit with which the failed component was healthy; those of `rest` unstarted.

    Returns {to: {artifact: version}, failure: reason or ""}; None when nothing but binaries leads back, or nothing at
    all: a new setting of the same binaries stays, for its owner to correct.
    """
    record = files.read_json(_record_path(failed["name"])) or {}
    if not generations.changes_binaries(record, failed, STORE) or not generations.put_back(failed["name"]):
        return None
    for component in rest:
        generations.put_back(component["name"])
        generations.forget_picture(component["name"])
    systemd.daemon_reload()
    found = {path: cache.sha256(path) or "" for path in record["ingredients"]}
    artifacts = generations.artifacts(record, STORE)
    failure = _restart(failed, {**record, "ingredients": found, "artifacts": artifacts})
    if not failure:
        generations.forget_picture(failed["name"])
    return {
        "to": {name: one["version"] for name, one in artifacts.items()},
        "failure": failure["reason"] if failure else "",
    }


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


def _refusal(components: list[dict[str, Any]], contents: dict[str, str], found: list[dict[str, Any]]) -> str:
    """Why nothing may be changed: a configuration is bad, or a service must not be interrupted now. Empty: it may."""
    for component, finding in zip(components, found):
        refused = _judge(component, contents, finding)
        if refused:
            return refused
        if component["member"] and finding["restart"] and finding["running"]:
            try:
                reason = etcd.quorum_depends_on(component["member"])
            except etcd.EtcdError:
                continue  # without an answer there is no quorum that could be lost
            if reason:
                return reason
        if finding["restart"] and finding["running"] and component["peers"]:
            reason = _alone(component)
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


def apply_all(components: list[dict[str, Any]], contents: dict[str, str], staged: dict[str, str]) -> dict[str, Any]:
    """Bring every component to its declaration; stops at the first service that does not become healthy.

    `contents`: path -> base64 of files to write. `staged`: SHA-256 -> path of a transferred binary.
    One that fails with other binaries than it was healthy with goes back to those, with its files and unit.
    Returns {restarted: [unit], reloaded: [unit], seconds: {name: float}, refusal: text, failure: None or {...}}; after
    a refusal nothing has been changed.
    """
    cache = files.DigestCache()
    states = systemd.states([c["unit"] for c in components if c["unit"]])
    found = [inspect(component, cache, states) for component in components]
    result: dict[str, Any] = {
        "restarted": [],
        "reloaded": [],
        "seconds": {},
        "refusal": _refusal(components, contents, found),
        "failure": None,
    }
    if result["refusal"]:
        return result
    stored = {binary["link"]: store_path(binary) for component in components for binary in component["binaries"]}
    placed.remember(components, stored, {c["name"] for c in components if os.path.exists(_record_path(c["name"]))})
    for component, finding in zip(components, found):
        record = files.read_json(_record_path(component["name"]))
        if record and finding["restart"]:
            generations.take_picture(component, record, STORE, cache)
        _place(component, contents, staged, finding)
    touched_units = any(d["path"].startswith(UNITS) for finding in found for d in finding["differences"])
    if touched_units or any(s.get("NeedDaemonReload") == "yes" for s in states.values()):
        systemd.daemon_reload()
    for component, finding in zip(components, found):
        if any(d["kind"] == "enable" for d in finding["differences"]):
            systemd.enable(component["unit"])
        if component["unit"] and finding["restart"]:
            begin = time.monotonic()
            result["failure"] = _start(component, cache, reload=finding["reload"])
            result["seconds"][component["name"]] = round(time.monotonic() - begin, 2)
            if result["failure"]:
                rest = components[components.index(component) + 1 :]
                result["failure"]["rollback"] = _roll_back(component, rest, cache)
                break
            result["reloaded" if finding["reload"] else "restarted"].append(component["unit"])
        wanted = {d["path"] for d in finding["differences"] if d["kind"] == "image"}
        for image in component["images"]:
            if image["reference"] in wanted:
                docker.load(image, staged[image["sha256"]])
    cache.save()
    return result
