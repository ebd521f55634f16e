"""A component on a machine: what differs from its declaration, and the way there.

The controller sends a declaration with digests only (`inspect`), gets back every difference with its reason, ships
what differs, and asks to apply it (turnover.py). Both run on the machine, and both decide by the comparison here.

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
  member       the endpoint {url, ca, cert, key} of this machine's etcd member, for a component that is one, or none;
               `all`: URLs of all members
  peers        checks of this service on other machines, one of which must pass before it is interrupted here, or none
  images       [{reference, id, sha256}]   archives to load into Docker once the component's service answers
"""

from __future__ import annotations

import os
import stat
from typing import Any

from . import docker, etcd, files, generations, systemd

STORE = "/opt/kubewright/store"
RECORDS = "/var/lib/kubewright/components"
UNITS = "/etc/systemd/system/"


def store_path(binary: dict[str, Any]) -> str:
    """Where a binary of this version and content lives."""
    directory = generations.directory_name(binary["version"], binary["sha256"])
    return f"{STORE}/{binary['name']}/{directory}/{binary['name']}"


def record_path(name: str) -> str:
    """The record of what a component's service was started with."""
    return f"{RECORDS}/{name}.json"


def ingredients(declared: dict[str, Any], cache: files.DigestCache) -> dict[str, str]:
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


def _changed(declared: dict[str, Any], cache: files.DigestCache) -> list[str] | None:
    """Paths that differ from what the service was started with last; None when kubewright has not started it yet."""
    record = files.read_json(record_path(declared["name"]))
    if not record:
        return None
    wanted, started = ingredients(declared, cache), record.get("ingredients", {})
    return sorted(p for p in set(wanted) | set(started) if wanted.get(p) != started.get(p))


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
    paths = _changed(declared, cache)
    if paths is None:
        return "not started by kubewright yet", True, False
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
    reload, running, leader, missing_inputs, current: whether it runs, or ran last, with what is declared}.
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
        "current": not differences,
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
        # What runs and needs no restart was started with all of it.
        started = not result["restart"] or (not result["running"] and _changed(declared, cache) == [])
        result["current"] = not differences and started
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


def place(declared: dict[str, Any], contents: dict[str, str], staged: dict[str, str], found: dict[str, Any]) -> None:
    """Put directories, binaries and files where they differ, by what `inspect` found, and remove what is absent."""
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
