"""Command-line flags as Go's `flag` package parses them, with `FLANNELD_*` variables for those not given.

`-x v`, `-x=v` and `--x ...` are the same; a boolean takes a value only after `=`. Unlike the Go daemon, an
unknown flag and a word that is not a flag are errors: with Go's rules `-ip-masq true -iface eth1` silently ignores
everything after `true`.
"""

from __future__ import annotations

import difflib
import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.errors import UsageError

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Flag(NamedTuple):
    """One flag: `kind` is str, int, bool or list (a repeatable string).

    A flag that is not `supported` is accepted with its default value only.
    """

    name: str
    kind: str
    default: str
    help: str
    supported: bool = True


class Parsed(NamedTuple):
    """Values by flag name as text (a list for repeatable ones), defaults filled in, and whether help was asked."""

    values: Mapping[str, str]
    lists: Mapping[str, Tuple[str, ...]]
    help: bool

    def text(self, name: str) -> str:
        """Return a string flag."""
        return self.values[name]

    def number(self, name: str) -> int:
        """Return an integer flag."""
        return int(self.values[name], 0)

    def truth(self, name: str) -> bool:
        """Return a boolean flag."""
        return self.values[name] in _TRUE

    def several(self, name: str) -> Tuple[str, ...]:
        """Return a repeatable flag's values in order."""
        return self.lists[name]


def environment_name(flag: str) -> str:
    """Return the variable of a flag: etcd-endpoints -> FLANNELD_ETCD_ENDPOINTS."""
    return "FLANNELD_" + flag.upper().replace("-", "_")


def parse(flags: Sequence[Flag], argv: Sequence[str], environ: Mapping[str, str]) -> Parsed:
    """Parse `argv` (without the program's name) and fill the rest from `environ` and the defaults.

    Raises UsageError for an unknown flag, a missing or malformed value, or a flag that is not implemented.
    """
    by_name = {flag.name: flag for flag in flags}
    given, help_asked = _command_line(by_name, argv)
    if not help_asked:
        for flag in flags:
            variable = environment_name(flag.name)
            if flag.name not in given and variable in environ:
                given[flag.name] = [_checked(flag, environ[variable], variable)]
    values: Dict[str, str] = {}
    lists: Dict[str, Tuple[str, ...]] = {}
    for flag in flags:
        seen = given.get(flag.name, [])
        if flag.kind == "list":
            lists[flag.name] = tuple(seen)
        else:
            values[flag.name] = seen[-1] if seen else flag.default
    return Parsed(values, lists, help_asked)


def usage(flags: Sequence[Flag]) -> str:
    """Return the help text, one flag with its default per entry."""
    lines = ["Usage: flanneld [OPTION]..."]
    for flag in flags:
        if not flag.supported:
            continue
        kind = {"bool": "", "list": " value", "int": " int", "str": " string"}[flag.kind]
        default = f" (default {flag.default})" if flag.default not in {"", "false"} else ""
        lines += [f"  -{flag.name}{kind}", f"    \t{flag.help}{default}"]
    return "\n".join(lines) + "\n"


def _command_line(by_name: Mapping[str, Flag], argv: Sequence[str]) -> Tuple[Dict[str, List[str]], bool]:
    given: Dict[str, List[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            raise UsageError(
                f"{word!r} is not a flag",
                "boolean flags take their value after '=', for example -ip-masq=true",
            )
        name, value = match.group(1), match.group(2)
        if name in {"h", "help"}:
            return given, True
        flag = by_name.get(name)
        if flag is None:
            near = difflib.get_close_matches(name, list(by_name), 1)
            hint = f"did you mean -{near[0]}?" if near else "flanneld -help lists the flags"
            raise UsageError(f"unknown flag -{name}", hint)
        if value is None:
            value = _value(flag, words)
        given.setdefault(name, []).append(_checked(flag, value, f"-{name}"))
    return given, False


def _value(flag: Flag, words: List[str]) -> str:
    if flag.kind == "bool":
        return "true"
    if not words:
        raise UsageError(f"flag -{flag.name} needs a value", f"write -{flag.name}=VALUE")
    return words.pop(0)


def _checked(flag: Flag, value: str, origin: str) -> str:
    if flag.kind == "bool" and value not in _TRUE + _FALSE:
        raise UsageError(f"{origin} is {value!r}, not a boolean", "use true or false")
    if flag.kind == "int" and _integer(value) is None:
        raise UsageError(f"{origin} is {value!r}, not an integer")
    if not flag.supported and not _same(flag, value):
        raise UsageError(
            f"{origin} is not implemented by this flanneld",
            f"leave it out, or at its default {flag.default!r}",
        )
    return value


def _same(flag: Flag, value: str) -> bool:
    if flag.kind == "bool":
        return (value in _TRUE) == (flag.default in _TRUE)
    return value == flag.default


def _integer(text: str) -> Optional[int]:
    try:
        return int(text, 0)
    except ValueError:
        return None
