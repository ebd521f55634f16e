"""Durations as Go writes them (`time.ParseDuration`): `8760h`, `1h30m`, `1.5h`."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

# Nanoseconds.
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)")
_LONGER = {"d": 24, "w": 7 * 24, "y": 365 * 24}
# An int64 of nanoseconds, as in Go.
_LONGEST = 2**63


def parse(text: str) -> timedelta:
    """A duration with Go's units, possibly negative, to the microsecond; ValueError says what is wrong with it."""
    body = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if body == "0":
        return timedelta(0)
    total = Fraction(0)
    position = 0
    while position < len(body):
        match = _PART.match(body, position)
        if not match:
            break
        number, unit = match.groups()
        if not unit:
            raise ValueError(f"{text!r} lacks a unit; write hours, such as 8760h")
        if unit not in _UNITS:
            raise ValueError(f"{text!r} has the unknown unit {unit!r}; {_remedy(body, number, unit)}")
        total += Fraction(number if not number.endswith(".") else number[:-1]) * _UNITS[unit]
        position = match.end()
    if not body or position < len(body):
        raise ValueError(f"{text!r} is no duration; write hours, such as 8760h")
    if total >= _LONGEST:
        raise ValueError(f"{text!r} is longer than 2562047h, the longest there is")
    nanoseconds = -total if text.startswith("-") else total
    return timedelta(microseconds=int(nanoseconds / 1000))


def _remedy(body: str, number: str, unit: str) -> str:
    if unit in _LONGER and body == f"{number}{unit}" and "." not in number and len(number) < 8:
        return f"write {int(number) * _LONGER[unit]}h"
    return "there are h, m, s, ms, us and ns"


def positive(text: str) -> timedelta:
    """As `parse`, and more than nothing."""
    found = parse(text)
    if found <= timedelta(0):
        raise ValueError(f"{text!r} is not a positive duration such as 8760h")
    return found


def words(seconds: float) -> str:
    """A length of time as people say it: `412 days`, `3 hours`."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= (2 if name == "day" else 1):
            return f"{count} {name}" + ("s" if count != 1 else "")
    return "less than a minute"
