"""Flags as Go's package `flag` reads them: `-x v`, `-x=v`, `--x`; a flag that is a switch takes no value of its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kubepki.errors import FlagError

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Flag(NamedTuple):
    """`default` gives the kind: a text, a switch (bool) or a number (int)."""

    default: str | bool | int
    help: str


class Arguments:
    """What was given: values by the flags' names, and the arguments after the flags."""

    def __init__(self, values: dict[str, str | bool | int]) -> None:
        self.values = values
        self.given: list[str] = []

    def text(self, name: str) -> str:
        """The value of a flag that takes a text."""
        return str(self.values[name])

    def switch(self, name: str) -> bool:
        """Whether a switch is on."""
        return bool(self.values[name])

    def number(self, name: str) -> int:
        """The value of a flag that takes a number."""
        return int(self.values[name])


def parse(argv: Sequence[str], flags: Mapping[str, Flag]) -> Arguments:
    """Flags end at the first argument that is none, or after `--`. FlagError."""
    found = Arguments({name: flag.default for name, flag in flags.items()})
    rest = list(argv)
    while rest:
        word = rest[0]
        if word == "-" or not word.startswith("-"):
            break
        rest.pop(0)
        if word == "--":
            break
        body = word[2:] if word.startswith("--") else word[1:]
        name, equals, value = body.partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {word}")
        if name not in flags:
            raise FlagError(f"flag provided but not defined: -{name}", _hint(name, flags))
        default = flags[name].default
        if isinstance(default, bool):
            found.values[name] = _boolean(name, value) if equals else True
            continue
        if not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        found.values[name] = _integer(name, value) if isinstance(default, int) else value
    late = [word for word in rest if word.startswith("-") and word.lstrip("-").partition("=")[0] in flags]
    if late:
        raise FlagError(
            f"{late[0]} comes after {rest[0]}", "flags come first: what follows the first argument is read as files"
        )
    found.given = rest
    return found


def _hint(name: str, flags: Mapping[str, Flag]) -> str:
    close = difflib.get_close_matches(name, flags, 1)
    return f"did you mean -{close[0]}?" if close else f"there are {', '.join(f'-{flag}' for flag in flags)}"


def _boolean(name: str, value: str) -> bool:
    if value not in (*_TRUE, *_FALSE):
        raise FlagError(f"invalid boolean value {value!r} for -{name}", "write true or false")
    return value in _TRUE


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise FlagError(f"invalid value {value!r} for flag -{name}", "write a number") from error


def describe(flags: Mapping[str, Flag]) -> str:
    """The flags with their defaults, a line each."""
    lines = []
    for name, flag in flags.items():
        default = str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
        shown = f'"{default}"' if isinstance(flag.default, str) else default
        lines.append(f"  -{name}={shown}: {flag.help}")
    return "\n".join(lines)
