"""A role's public variables as its two sources have them: defaults/main.yml and meta/argument_specs.yml.

The specs say what a value may be, the defaults what it is; a variable's meaning stands in both, where each is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubewright.errors import UserError

_TYPES: Mapping[str, type] = {
    "str": str,
    "path": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
}


@dataclass(frozen=True)
class Default:
    """One entry of defaults/main.yml: `source` are its lines as they stand there, `paragraph` counts blank lines."""

    name: str
    comment: str
    source: tuple[str, ...]
    value: Any
    paragraph: int

    @property
    def is_computed(self) -> bool:
        """Whether the value is a template, which no specification can repeat."""
        return isinstance(self.value, str) and "{{" in self.value


@dataclass(frozen=True)
class Role:
    """`options` are those of the entry point `main`: name -> specification."""

    name: str
    title: str
    description: str
    defaults: tuple[Default, ...]
    options: Mapping[str, Mapping[str, Any]]


def defaults(text: str) -> tuple[Default, ...]:
    """Entries of a defaults file in their order. A comment belongs to the one entry directly below it."""
    values = yaml.safe_load(text) or {}
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    starts = [key.start_mark.line for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    found = []
    for name, start, end in zip(values, starts, [*starts[1:], len(lines)], strict=True):
        last, first = end, start
        while not lines[last - 1].strip() or lines[last - 1].startswith("#"):
            last -= 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        found.append(
            Default(
                name=str(name),
                comment=" ".join(line.lstrip("#").strip() for line in lines[first:start]),
                source=tuple(lines[start:last]),
                value=values[name],
                paragraph=sum(not line.strip() for line in lines[:start]),
            )
        )
    return tuple(found)


def read(directory: Path) -> Role:
    """The role in `directory`; UserError when one of its files is missing or no YAML."""
    specs = _load(directory / "meta/argument_specs.yml", "argument_specs", "main")
    meta = _load(directory / "meta/main.yml", "galaxy_info")
    path = directory / "defaults/main.yml"
    _load(path)
    return Role(
        name=directory.name,
        title=str(specs.get("short_description")),
        description=str(meta.get("description")),
        defaults=defaults(path.read_text()),
        options=specs.get("options") or {},
    )


def _load(path: Path, *keys: str) -> dict[str, Any]:
    """The mapping below these keys of a YAML file."""
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "every role has this file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no mapping {'.'.join(keys)}".rstrip(), "see those of the other roles")
    return found


def disagreements(role: Role) -> list[str]:
    """Everything in which the defaults and the specs of a role contradict each other, as sentences."""
    found = []
    if role.description != role.title:
        found.append(f"meta/main.yml describes the role as {role.description!r}, argument_specs.yml as {role.title!r}")
    names = [entry.name for entry in role.defaults]
    found += [f"{name}: in argument_specs.yml only" for name in role.options if name not in names]
    for entry in role.defaults:
        option = role.options.get(entry.name)
        problems = ["in defaults/main.yml only"] if option is None else _contradictions(entry, option)
        found += [f"{entry.name}: {problem}" for problem in problems]
    return [f"roles/{role.name}: {problem}" for problem in found]


def _contradictions(entry: Default, option: Mapping[str, Any]) -> list[str]:
    found = []
    described = " ".join(str(option.get("description", "")).split())
    if not entry.comment:
        found.append("has no comment directly above it in defaults/main.yml")
    elif described != entry.comment:
        found.append(f"the comment says {entry.comment!r}, the description {described!r}")
    if entry.is_computed:
        return [*found, *(["its default is computed, the spec must have none"] if "default" in option else [])]
    if not _same(option.get("default"), entry.value):
        found.append(f"the default is {entry.value!r}, the spec says {option.get('default')!r}")
    kind = str(option.get("type"))
    # A truth value is a number for Python, but not for whoever writes an inventory.
    if kind not in _TYPES or type(entry.value) is not _TYPES[kind]:
        found.append(f"the default {entry.value!r} is not of the type {kind}")
    if kind == "list" and "elements" not in option:
        found.append("a list without elements")
    choices: Sequence[Any] = option.get("choices") or []
    if choices and entry.value not in choices:
        found.append(f"the default {entry.value!r} is none of the choices {choices}")
    return found


def _same(one: Any, other: Any) -> bool:
    # JSON tells 1 from true, which == does not; the order of keys does matter to nobody.
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
