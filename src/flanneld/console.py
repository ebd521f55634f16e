"""What the commands for people print: aligned columns, colours only on a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, Iterable, List, Sequence

from flanneld.log import logger

_COLOURS = {"red": "31", "yellow": "33", "green": "32"}


def quiet() -> None:
    """Keep the daemon's log lines, which the shared modules write, out of a command's output."""
    logger.handlers[:] = [logging.NullHandler()]
    logger.propagate = False


def write(lines: Iterable[str]) -> None:
    """Print lines."""
    text = "".join(f"{line}\n" for line in lines)
    sys.stdout.write(text.encode("ascii", "backslashreplace").decode())


def write_json(document: Any) -> None:
    """Print a JSON document."""
    write([json.dumps(document, indent=2)])


def coloured(text: str, colour: str) -> str:
    """Return text in a colour when the output is a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> List[str]:
    """Return rows with aligned columns; the last one may be as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows))] if rows else []
    return [
        indent + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip() for row in rows
    ]


def seconds(value: float) -> str:
    """Return a duration in its two largest units: 23h 59m."""
    left = max(0, int(value))
    parts: List[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
        left %= size
    return " ".join(parts[:2])
