"""Command-line flags as Go's `flag` package parses them, with `FLANNELD_*` variables for those not given.

`-x v`, `-x=v` and `--x ...` are the same; a boolean takes a value only after `=`; `--` ends the flags. Unlike the Go
daemon, an unknown flag and a word that is not a flag are errors: with Go's rules `-ip-masq true -iface eth1` silently
ignores everything after `true`. An empty word is passed over: systemd makes one of a quoted variable that is not set.
"""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.errors import UsageError

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_PREFIX = "FLANNELD_"
_INTEGER = re.compile(r"([+-]?)(0[xX]_?[0-9a-fA-F]|0[oO]_?[0-7]|0[bB]_?[01]|\d)[0-9a-fA-F_]*", re.ASCII)


class Flag(NamedTuple):
    """One flag: `kind` is str, int, bool, list (a repeatable string) or gone (old versions had it).

    `help` of a flag that is gone says what took its place. The value of a `secret` flag is never shown. One that is
    `idle` is accepted, for old units, and does nothing.
    """

    name: str
    kind: str
    default: str
    help: str
    secret: bool = False
    idle: bool = False


class Parsed(NamedTuple):
    """Values by flag name as text (a list for repeatable ones), defaults filled in, and whether help was asked.

    `unknown`: variables that look like ours and belong to no flag. `idle`: flags that were given and do nothing.
    """

    values: Mapping[str, str]
    lists: Mapping[str, Tuple[str, ...]]
    help: bool
    unknown: Tuple[str, ...] = ()
    idle: Tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """Return a string flag."""
        return self.values[name]

    def number(self, name: str) -> int:
        """Return an integer flag."""
        found = _integer(self.values[name])
        assert found is not None  # noqa: S101 - `parse` has checked it
        return found

    def truth(self, name: str) -> bool:
        """Return a boolean flag."""
        return self.values[name] in _TRUE

    def several(self, name: str) -> Tuple[str, ...]:
        """Return a repeatable flag's values in order."""
        return self.lists[name]


def environment_name(flag: str) -> str:
    """Return the variable of a flag: etcd-endpoints -> FLANNELD_ETCD_ENDPOINTS."""
    return _PREFIX + flag.upper().replace("-", "_")


def parse(flags: Sequence[Flag], argv: Sequence[str], environ: Mapping[str, str]) -> Parsed:
    """Parse `argv` (without the program's name) and fill the rest from `environ` and the defaults.

    An empty variable counts as absent, and a variable gives exactly one value, as in the Go daemon. Raises UsageError
    for a flag that is unknown or gone, and for a missing or malformed value.
    """
    given, help_asked = _command_line({flag.name: flag for flag in flags}, argv)
    flags = [flag for flag in flags if flag.kind != "gone"]
    variables = {environment_name(flag.name): flag for flag in flags if flag.name != "version"}
    if not help_asked:
        for variable, flag in variables.items():
            if flag.name not in given and environ.get(variable):
                given[flag.name] = [_checked(flag, environ[variable], variable)]
    values: Dict[str, str] = {}
    lists: Dict[str, Tuple[str, ...]] = {}
    for flag in flags:
        seen = given.get(flag.name, [])
        if flag.kind == "list":
            lists[flag.name] = tuple(seen)
        else:
            values[flag.name] = seen[-1] if seen else flag.default
    unknown = sorted(name for name in environ if name.startswith(_PREFIX) and name not in variables)
    idle = tuple(flag.name for flag in flags if flag.idle and flag.name in given)
    return Parsed(values, lists, help_asked, tuple(unknown), idle)


def usage(flags: Sequence[Flag]) -> str:
    """Return two lines on each flag, with its default."""
    lines: List[str] = []
    for flag in _present(flags):
        kind = {"bool": "", "list": " value", "int": " int", "str": " string"}[flag.kind]
        default = f" (default {flag.default})" if flag.default not in {"", "false"} else ""
        lines += [f"  -{flag.name}{kind}", f"    \t{flag.help}{default}"]
    return "\n".join(lines) + "\n"


def shown(flags: Iterable[Flag], parsed: Parsed) -> str:
    """Return what the flags are set to in one line, names sorted, secrets as stars."""
    words: List[str] = []
    for flag in sorted(_present(flags)):
        several = flag.kind == "list"
        value = f"[{' '.join(parsed.several(flag.name))}]" if several else parsed.text(flag.name)
        hidden = "***" if flag.secret and value else re.sub(r"//[^/,]*@", "//***@", value)  # passwords in URLs
        words.append(f"{flag.name}:{hidden}")
    return "{" + " ".join(words) + "}"


def near(word: str, known: Iterable[str]) -> str:
    """Return the known word that `word` was probably meant to be, empty when there is none."""
    import difflib  # noqa: PLC0415 - only mistakes need it

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


def _present(flags: Iterable[Flag]) -> List[Flag]:
    """Return the flags that do something."""
    return [flag for flag in flags if flag.kind != "gone" and not flag.idle]


def _command_line(by_name: Mapping[str, Flag], argv: Sequence[str]) -> Tuple[Dict[str, List[str]], bool]:
    given: Dict[str, List[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word:
            continue
        if word == "--":
            word = next(filter(None, words), "")
            if not word:
                break
            raise UsageError(f"{word!r} stands behind '--'", "all settings are flags: take the '--' out")
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
            likely = near(name, (one.name for one in _present(by_name.values())))
            hint = f"did you mean -{likely}?" if likely else "flanneld -help lists the flags"
            raise UsageError(f"unknown flag -{name}", hint)
        if flag.kind == "gone":
            raise UsageError(f"-{name} is a flag of old versions", flag.help)
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
    return value


def _integer(text: str) -> Optional[int]:
    """Return a number as Go writes them: 12, 0x1f, 0b11, 0o17, and 017, which is octal there; None for others."""
    if not _INTEGER.fullmatch(text):
        return None
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_"
    try:
        found = int(text, 8 if octal else 0)
    except ValueError:
        return None
    return found if -(1 << 63) <= found < 1 << 63 else None
