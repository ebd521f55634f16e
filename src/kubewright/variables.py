"""Variables of the inventory against the roles' argument specs: misspelt names, wrong types and values."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

# Variables of single hosts; they have no default, so no role specifies them.
HOST_SPECS: Mapping[str, Mapping[str, Any]] = {
    "machine_address": {"type": "str"},
    "kube_node_labels": {"type": "dict"},
}


def misspelt(used: Mapping[str, Collection[str]], known: Collection[str], prefixes: Collection[str]) -> list[str]:
    """Names that are nearly ours, or have a prefix of ours. `used`: variable -> hosts that set it."""
    found = []
    for name in sorted(used):
        if name in known or name.startswith(("ansible_", "molecule_", "lab_")):
            continue
        close = difflib.get_close_matches(name, known, 1, 0.85)
        if close or name.startswith(tuple(prefixes)):
            hint = f"did you mean {close[0]}?" if close else "docs/variables.md lists those that exist"
            found.append(f"{name}: unknown variable (set for {_some(used[name])}); {hint}")
    return found


def wrong(values: Mapping[str, Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Values that are not what the specs say. `values`: host -> {variable: value}; reasons with their hosts."""
    reasons: dict[str, list[str]] = {}
    for host, variables in values.items():
        for name, value in variables.items():
            reason = _reason(name, value, specs[name])
            if reason:
                reasons.setdefault(f"{name}: {reason}", []).append(host)
    return [f"{reason} (set for {_some(hosts)})" for reason, hosts in sorted(reasons.items())]


def differing(values: Mapping[str, Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Variables of the whole cluster on which its hosts do not agree; who sets none has the default of the spec."""
    found = []
    for name in sorted(specs):
        seen: dict[str, list[str]] = {}
        for host, variables in values.items():
            seen.setdefault(repr(variables.get(name, specs[name].get("default"))), []).append(host)
        if len(seen) > 1:
            listed = ", ".join(f"{value} for {_some(hosts)}" for value, hosts in seen.items())
            found.append(f"{name}: must be the same for all machines, it is {listed}; set it once, in group_vars/all")
    return found


def _reason(name: str, value: Any, spec: Mapping[str, Any]) -> str:
    wanted = spec["type"]
    if wanted == "bool" and not isinstance(value, bool):
        # Ansible's own conversion would take it, but a template that asks `if` sees a text, which is true.
        return f"{value!r} is not true or false; on the command line write -e '{{\"{name}\": true}}'"
    if wanted == "str" and isinstance(value, bool):
        return f"{value!r} is a truth value for YAML; write it in quotes"
    if wanted in ("list", "dict") and not isinstance(value, list if wanted == "list" else dict):
        return f"{value!r} is not a {'list' if wanted == 'list' else 'mapping'}"
    if wanted == "path" and not str(value).startswith("/"):
        return f"{value!r} is not an absolute path"
    choices = spec.get("choices")
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        return f"{value!r} is none of {', '.join(map(str, choices))}{meant}"
    result = ArgumentSpecValidator({name: {"type": wanted}}).validate({name: value})
    return f"{value!r} is not of the type {wanted}" if result.error_messages else ""


def _some(hosts: Collection[str]) -> str:
    names = sorted(hosts)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
