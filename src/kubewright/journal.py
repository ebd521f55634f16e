"""The journal of runs: one JSON file per run below journal/ of the inventory, and how it ended in words.

`python -m kubewright.journal -i INVENTORY` lists the runs, with `last` or a run's name it shows that one.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubewright import runlock
from kubewright.errors import UserError
from kubewright.files import write_file

# The option of ansible-playbook whose value may hold a secret. Ansible takes --e for it as well, and -ve for -v -e.
_EXTRA_VARS = "--extra-vars"
_SHORT = "e"
# Short options whose value is what follows in the same word.
_VALUED = "iltucTfM"
# NAME=VALUE. What has no value, or one that begins with `=`, may be the end of a secret in base64, after a slip such as
# `NAME: VALUE`.
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=[^=].*", re.DOTALL)
_NAME = re.compile(r"\d{8}-\d{6}-\d+")
_SHOWN_ITEMS = 20
AGAIN = "Mend the cause; the same command again resumes the run."


def directory(inventory: Path) -> Path:
    """Where the journal of an inventory lies: below the directory, or beside the file."""
    return (inventory.parent if inventory.is_file() else inventory) / "journal"


def _names(value: str) -> str:
    """Extra variables without their values: nobody can tell which of them are secret."""
    if value.startswith("@"):
        return value
    if value.lstrip().startswith("{"):
        try:
            return "".join(("{", ", ".join(map(str, json.loads(value))), "}"))
        except (ValueError, TypeError):
            return "{...}"
    try:
        # As Ansible has it, with quotes around blanks.
        found = [_ASSIGNMENT.fullmatch(word) for word in shlex.split(value)]
    except ValueError:
        return "..."
    names = [match[1] for match in found if match]
    return " ".join(f"{name}=..." for name in names) if names and len(names) == len(found) else "..."


def _extra_vars(word: str) -> str:
    """The beginning of a word that says that extra variables follow, in it or in the next; empty for other words."""
    if word.startswith("--"):
        option, equals, _ = word.partition("=")
        return option + equals if len(option) > len("--") and _EXTRA_VARS.startswith(option) else ""
    for index, letter in enumerate(word[1:], 2) if word.startswith("-") else ():
        if letter == _SHORT:
            return word[:index]
        if letter in _VALUED:
            break
    return ""


def command_line(argv: Sequence[str]) -> str:
    """What was typed, without the values of extra variables."""
    words = [Path(argv[0]).name] if argv else []
    hidden = False
    for word in argv[1:]:
        option = "" if hidden else _extra_vars(word)
        value = word[len(option) :]
        if hidden or (option and (value or option.endswith("="))):
            words.append(option + _names(value))
            hidden = False
        else:
            words.append(word)
            hidden = bool(option)
    return " ".join(words)


def reason(result: Mapping[str, Any]) -> str:
    """Why a task failed, in one line: of a loop, the first item that did."""
    items = result.get("results")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("failed"):
            return first_line(item.get("msg") or "")
    return first_line(result.get("msg") or "")


def first_line(reason: str) -> str:
    """A failure's reason in one line."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason was given"
    return text.removeprefix("Task failed: ").removeprefix("Module failed: ")[:300]


def closing(record: Mapping[str, Any]) -> list[str]:
    """The words at the end of a run that did not go well; none after one that did.

    Reasons are in one line: the screen has them in full, above.
    """
    lines = []
    if record["left_out"]:
        lines.append("cannot be reached, left out:")
        lines += [f"  {entry['host']}, in {entry['task']!r}: {entry['reason']}" for entry in record["left_out"]]
    if record["failed"]:
        lines.append("failed (more above):")
        lines += [f"  {entry['host']}, in {entry['task']!r}: {entry['reason']}" for entry in record["failed"]]
    if record["result"] == "interrupted":
        lines.append("interrupted")
    if lines and not record["check"]:
        lines.append(AGAIN)
    return lines


def brief(record: Mapping[str, Any]) -> str:
    """A run in one line."""
    hosts = record.get("hosts", {}).values()
    changed = sum(counts.get("changed", 0) for counts in hosts)
    seconds = f"{record['seconds']:8.1f} s" if "seconds" in record else f"{'':10}"
    shown = "check" if record.get("check") and record["result"] == "ok" else record["result"]
    return f"{record['id']:24} {shown:11} {seconds} {changed:4} changed  {record['who']}: {record['command']}"


def text(record: Mapping[str, Any]) -> str:
    """A run for people."""
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record["began"]))
    lines = [
        f"run       {record['id']}",
        f"who       {record['who']} (pid {record['pid']})",
        f"command   {record['command']}",
        f"began     {began}",
        f"result    {record['result']}" + (f", {record['seconds']} s" if "seconds" in record else ""),
    ]
    versions = record.get("versions", {})
    if versions:
        lines.append(f"versions  {', '.join(f'{name} {version}' for name, version in versions.items())}")
    for name, counts in record.get("hosts", {}).items():
        told = ", ".join(f"{counts[key]} {key}" for key in ("ok", "changed", "failures", "unreachable") if counts[key])
        lines.append(f"machine   {name}: {told}")
    lines += [f"stage     {name}: {seconds} s" for name, seconds in record.get("stages", {}).items()]
    for entry in record.get("changed", []):
        items = entry["items"]
        more = f" and {len(items) - _SHOWN_ITEMS} more" if len(items) > _SHOWN_ITEMS else ""
        listed = f": {', '.join(items[:_SHOWN_ITEMS])}{more}" if items else ""
        lines.append(f"changed   {entry['host']}: {entry['task']}{listed}")
    return "\n".join([*lines, *(closing(record) if "failed" in record else [])]) + "\n"


def write(path: Path, record: Mapping[str, Any], keep: int) -> None:
    """Write a run's file and `last`, the same in words; only the newest `keep` runs stay. Raises OSError."""
    write_file(path / f"{record['id']}.json", json.dumps(record, indent=1) + "\n", 0o600)
    write_file(path / "last", text(record), 0o600)
    for name in sorted(_files(path))[: -max(1, keep)]:
        name.unlink(missing_ok=True)


def killed(path: Path, holder: Mapping[str, Any]) -> None:
    """Write down a run that could not do so itself. Raises OSError."""
    record = {key: holder[key] for key in ("id", "who", "pid", "command")}
    content = {**record, "began": holder["since"], "result": "killed"}
    if _NAME.fullmatch(str(holder["id"])) and not (path / f"{holder['id']}.json").exists():
        write_file(path / f"{holder['id']}.json", json.dumps(content, indent=1) + "\n", 0o600)


def _files(path: Path) -> list[Path]:
    return [file for file in path.glob("*.json") if _NAME.fullmatch(file.stem)]


def runs(path: Path) -> list[dict[str, Any]]:
    """All runs, oldest first, with the one that is under way; what cannot be read is left out."""
    found = []
    for file in sorted(_files(path)):
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and "result" in record:
            found.append(record)
    holder = runlock.read(path / "lock")
    if holder and holder["id"] not in [record["id"] for record in found]:
        result = "under way" if runlock.is_held(path / "lock") else "killed"
        found.append({**holder, "began": holder["since"], "result": result})
    return found


def last_of(path: Path, playbook: str) -> dict[str, Any] | None:
    """The last run of a playbook such as `site.yml` that came to its end and was no look ahead."""
    of = [r for r in runs(path) if playbook in r.get("playbooks", []) and "seconds" in r and not r["check"]]
    return of[-1] if of else None


def _chosen(found: Sequence[dict[str, Any]], wanted: str) -> dict[str, Any]:
    if not found:
        raise UserError("there is no run in this journal", "is it the right inventory?")
    chosen = found[-1:] if wanted == "last" else [record for record in found if record["id"] == wanted]
    if chosen:
        return chosen[0]
    raise UserError(f"there is no run {wanted!r} in this journal", f"the last one is {found[-1]['id']}")


def main() -> int:
    """List the runs or show one; 1 when there is none."""
    parser = argparse.ArgumentParser(prog="kubewright.journal", description="Runs of an inventory.")
    parser.add_argument("-i", "--inventory", type=Path, default=Path("inventories/lab"))
    parser.add_argument("run", nargs="?", help="last, or the name of a run; without it all are listed")
    arguments = parser.parse_args()
    found = runs(directory(arguments.inventory))
    try:
        if not arguments.run:
            sys.stdout.write("".join(f"{brief(record)}\n" for record in found))
        else:
            sys.stdout.write(text(_chosen(found, arguments.run)))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
