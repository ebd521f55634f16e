"""The commands `plan` and `apply`: what a specification asks of a PKI directory, in words or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubepki import reconcile, spec
from kubepki.arguments import Parser, add_specification, directory
from kubepki.reconcile import Plan

# As `terraform plan -detailed-exitcode` and `diff` have it: 1 is an error.
_PENDING = 2
_DONE = {"issue": "issued", "repair": "repaired"}


def plan(argv: list[str]) -> int:
    """`kubepki plan`: 0 when there is nothing to do, 2 when there is."""
    arguments = _arguments("plan", argv, "Exit code: 0 when there is nothing to do, 2 when there is, 1 for an error.")
    found = reconcile.plan(*_wanted(arguments), datetime.now(UTC), arguments.old_password)
    _say(found, as_json=arguments.json, done=False)
    return _PENDING if found.changed else 0


def apply(argv: list[str]) -> int:
    """`kubepki apply`: 0 when everything is as it should be afterwards."""
    arguments = _arguments("apply", argv, "Exit code: 0, or 1 for an error; then the files are as they were.")
    found = reconcile.apply(*_wanted(arguments), datetime.now(UTC), arguments.old_password)
    _say(found, as_json=arguments.json, done=True)
    return 0


def report(found: Plan) -> dict[str, Any]:
    """A plan, or the outcome of an apply, as plain data: no keys in it."""
    return {
        "directory": str(found.directory),
        "changed": found.changed,
        "counts": {"issue": len(found.issued), "repair": len(found.repaired), "keep": len(found.kept)},
        "items": [
            {
                "name": item.name,
                "action": item.action,
                "reasons": list(item.reasons),
                "serial": item.serial,
                "not_after": item.not_after,
                "files": list(item.files),
                "consumers": list(item.consumers),
            }
            for item in found.items
        ],
        "consumers": {name: list(items) for name, items in found.consumers.items()},
        "warnings": list(found.warnings),
    }


def lines(found: Plan, *, done: bool) -> list[str]:
    """A plan, or with `done` the outcome of an apply, in words: a line for each change, counts, who to restart."""
    changes = [item for item in found.items if item.action != "keep"]
    width = max((len(item.name) for item in changes), default=0)
    said = [str(found.directory)]
    for item in changes:
        action = f"{_DONE[item.action]:<8}" if done else f"{item.action:<6}"
        until = f"until {item.not_after[:10] or '-':<10}  " if done else ""
        said.append(f"  {action}  {item.name:<{width}}  {until}{'; '.join(item.reasons)}")
    counts = [(len(found.issued), "issue"), (len(found.repaired), "repair")]
    words = [f"{count} {_DONE[what] if done else f'to {what}'}" for count, what in counts if count]
    said.append(", ".join([*(words or ["nothing to do"]), f"{len(found.kept)} kept"]))
    if found.consumers:
        said.append(f"restart or reload{'' if done else ' afterwards'}: {', '.join(found.consumers)}")
    return said


def _arguments(name: str, argv: list[str], codes: str) -> argparse.Namespace:
    # 2 as argparse has it for a wrong flag would say here that there is something to do.
    parser = Parser(prog=f"kubepki {name}", epilog=codes)
    add_specification(parser)
    parser.add_argument("--json", action="store_true", help="for programs: every decision, in one object")
    parser.add_argument(
        "--old-password",
        default="",
        metavar="SOURCE",
        help="env:NAME or file:PATH: what CA keys were encrypted with, when the password in SPEC is new or gone",
    )
    return parser.parse_args(argv)


def _wanted(arguments: argparse.Namespace) -> tuple[spec.Spec, Path]:
    return spec.load(arguments.spec), directory(arguments)


def _say(found: Plan, *, as_json: bool, done: bool) -> None:
    for warning in found.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    text = json.dumps(report(found)) if as_json else "\n".join(lines(found, done=done))
    sys.stdout.write(f"{text}\n")
