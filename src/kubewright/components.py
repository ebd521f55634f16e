"""Declarations of components, expanded on the controller into what the machine compares itself with.

Pure: rendering and artifact look-ups come in as functions.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubepki import describe
from kubewright.errors import UserError

_KEYS = {
    "name",
    "directories",
    "binaries",
    "files",
    "absent",
    "inputs",
    "input_stage",
    "reload",
    "check",
    "unit",
    "health",
    "member",
    "peers",
    "images",
}
_SYSTEMD = "etc/systemd/system/"


@dataclass(frozen=True)
class Declared:
    """One component: `wire` goes to the machine, contents and binaries follow only where they differ."""

    wire: dict[str, Any]
    contents: Mapping[str, bytes]
    binaries: Mapping[str, str]
    input_stage: str


def _mode(value: object, where: str) -> str:
    text = str(value)
    if not text or len(text) > 4 or any(c not in "01234567" for c in text):
        raise UserError(f"{where}: mode {value!r} is not octal", "write it in quotes, for example mode: '0644'")
    return text.zfill(4)


# What a check-mode run shows for a file whose sources an earlier stage would have made, or made anew.
_TO_BE_MADE = b"(to be made in this run)\n"


def _content(item: Mapping[str, Any], render: Callable[[str], str], *, foresee: bool) -> bytes:
    if item.get("template"):
        return render(f"{item['template']}.j2").encode()
    if item.get("sources"):
        missing = [source for source in item["sources"] if not Path(source).is_file()]
        if foresee and (missing or item.get("pending")):
            return _TO_BE_MADE
        if missing:
            raise UserError(f"{', '.join(missing)}: not there yet", "run the stage that makes it first: --tags pki")
        try:
            return b"".join(Path(source).read_bytes() for source in item["sources"])
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}", "who runs the playbook must be able to read it"
            ) from None
    return str(item["content"]).encode()


def _file(
    entry: str | Mapping[str, Any], render: Callable[[str], str], *, foresee: bool
) -> tuple[dict[str, Any], bytes]:
    """A template path such as `etc/docker/daemon.json`, or {template|content|sources, path, mode, owner, secret}.

    `sources` are files of the controller, joined; `pending` says that a run would write them anew.
    """
    item: dict[str, Any] = {"template": entry} if isinstance(entry, str) else dict(entry)
    path = str(item.get("path") or f"/{item.get('template')}")
    content = _content(item, render, foresee=foresee)
    wire = {
        "path": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "mode": _mode(item.get("mode", "0644"), path),
        "owner": str(item.get("owner", "root")),
        "group": str(item.get("group", "root")),
        "secret": bool(item.get("secret", False)),
        "restart": bool(item.get("restart", True)),
    }
    return wire, content


def set_name(artifacts: Mapping[str, Mapping[str, Any]]) -> str:
    """The same for the same binaries of others: an upgrade that is resumed, or done in parts, stays one upgrade."""
    found = [(name, one.get("version"), one.get("sha256")) for name, one in artifacts.items() if name != "flanneld"]
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()[:12]


def expand(
    component: Mapping[str, Any],
    render: Callable[[str], str],
    artifacts: Mapping[str, Mapping[str, Any]],
    *,
    artifacts_set: str = "",
    foresee: bool = False,
) -> Declared:
    """Turn one entry of the action's `components` into what the machine is asked.

    `render`: path of a template below the role's templates -> text. `artifacts`: name -> {version, sha256, path}.
    With `foresee` (check mode) files of the controller may be missing yet.
    """
    unknown = set(component) - _KEYS
    if unknown:
        raise UserError(
            f"component {component.get('name')!r}: unknown {', '.join(sorted(unknown))}",
            f"known are {', '.join(sorted(_KEYS))}",
        )
    name = str(component["name"])
    unit = str(component.get("unit") or "")
    entries: list[str | Mapping[str, Any]] = [*component.get("files", [])]
    if unit:
        entries.append(f"{_SYSTEMD}{unit}")
    wires, contents = [], {}
    for entry in entries:
        wire, content = _file(entry, render, foresee=foresee)
        wires.append(wire)
        contents[wire["path"]] = content
    binaries, sources = [], {}
    for artifact_name, link in dict(component.get("binaries") or {}).items():
        artifact = artifacts.get(artifact_name)
        if not artifact:
            raise UserError(f"component {name!r}: no artifact {artifact_name!r}", "see artifacts.lock.yml")
        binaries.append(
            {
                "artifact": str(artifact_name),
                "name": str(link).rpartition("/")[2],
                "version": str(artifact["version"]),
                # An artifact that a check-mode run would first have to obtain has no digest yet.
                "sha256": str(artifact.get("sha256") or "0" * 64),
                "link": str(link),
            }
        )
        if artifact.get("path"):
            sources[str(artifact["sha256"])] = str(artifact["path"])
    images = []
    for artifact_name in component.get("images") or []:
        artifact = artifacts[artifact_name]
        images.append({**artifact["image"], "sha256": str(artifact["sha256"])})
        if artifact.get("path"):
            sources[str(artifact["sha256"])] = str(artifact["path"])
    health = dict(component.get("health") or {})
    wire = {
        "name": name,
        "directories": [
            {"mode": "0755", "owner": "root", "group": "root", **dict(d)} for d in component.get("directories", [])
        ],
        "binaries": binaries,
        "set": artifacts_set or set_name(artifacts),
        "files": wires,
        "absent": [str(p) for p in component.get("absent", [])],
        "inputs": [str(p) for p in component.get("inputs", [])],
        "reload": [str(p) for p in component.get("reload", [])],
        "check": [str(part) for part in component.get("check", [])],
        "unit": unit,
        "health": {"timeout": float(health.get("timeout", 60)), "checks": list(health.get("checks", []))},
        "member": component.get("member"),
        "peers": [dict(check) for check in component.get("peers", [])],
        "images": images,
    }
    return Declared(wire, contents, sources, str(component.get("input_stage", "pki")))


def shipment(declared: Sequence[Declared], found: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """What to send: ({path: base64 content}, {sha256: local path of a binary})."""
    contents: dict[str, str] = {}
    binaries: dict[str, str] = {}
    for component, finding in zip(declared, found, strict=True):
        by_path = {binary["link"]: binary["sha256"] for binary in component.wire["binaries"]}
        by_path |= {image["reference"]: image["sha256"] for image in component.wire["images"]}
        for difference in finding["differences"]:
            if difference["kind"] == "file" and difference["content"]:
                content = component.contents[difference["path"]]
                contents[difference["path"]] = base64.b64encode(content).decode()
            elif difference["kind"] in ("binary", "image") and difference["content"]:
                digest = by_path[difference["path"]]
                binaries[digest] = component.binaries[digest]
    return contents, binaries


def _readable(content: bytes) -> str:
    return describe.pem(content) or content.decode()


def interrupts(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a service that runs is restarted or reloaded, by what machines found: only one machine at a time.

    A configuration that passes its check and does not work must meet one machine, not all of them.
    """
    return any(finding["restart"] and finding["running"] for finding in found)


def foresee_restarts(
    declared: Sequence[Declared], found: Sequence[dict[str, Any]], changing: Collection[str]
) -> list[str]:
    """In check mode: add the restarts that earlier changes would cause; returns the paths that change from here on.

    `changing`: paths that earlier tasks of this run would have changed on the machine.
    """
    for component, finding in zip(declared, found, strict=True):
        ahead = sorted(set(component.wire["inputs"]) & set(changing))
        if ahead and component.wire["unit"] and not finding["restart"]:
            reload = set(ahead) <= set(component.wire["reload"])
            finding.update(restart=f"will have changed: {', '.join(ahead)}", running=True, reload=reload)
    own = {d["path"] for finding in found for d in finding["differences"] if d["kind"] in ("file", "absent")}
    return sorted(own | set(changing))


def diffs(declared: Sequence[Declared], found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Ansible's diff entries: text for files, a line of reason for everything else, nothing of a secret."""
    result: list[dict[str, str]] = []
    remarks: list[str] = []
    for component, finding in zip(declared, found, strict=True):
        secrets = {item["path"] for item in component.wire["files"] if item["secret"]}
        for difference in finding["differences"]:
            path = difference["path"]
            if difference["kind"] == "file" and difference["content"] and path not in secrets:
                result.append(
                    {
                        "before_header": path,
                        "after_header": path,
                        "before": _readable(difference["before"].encode()),
                        "after": _readable(component.contents[path]),
                    }
                )
            elif difference["kind"] == "absent":
                result.append(
                    {"before_header": path, "after_header": path, "before": difference["before"], "after": ""}
                )
            else:
                remarks.append(f"{difference['kind']} {path}: {difference['reason']}")
        if finding["restart"]:
            verb = ("reload" if finding["reload"] else "restart") if finding["running"] else "start"
            remarks.append(f"{verb} {component.wire['unit']}: {finding['restart']}")
    if remarks:
        result.append({"prepared": "".join(f"{remark}\n" for remark in remarks)})
    return result
