"""JSON files of cfssl's formats: every problem at once, by name and with a remedy.

Keys match whatever their case, as in Go. What Go passes over in silence is a problem here: a key that nothing reads,
or one that is given twice. With `compat` it is a warning.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from typing import Any

from kubepki import durations
from kubepki.errors import KubepkiError

_LARGEST = 2**20
Warn = Callable[[str], None]


class Reader:
    """Collects what is wrong with one file, which messages call `where`; `error` is what `finish` raises."""

    def __init__(self, where: str, error: type[KubepkiError], warn: Warn, *, compat: bool = False) -> None:
        self.where = where
        self.problems: list[str] = []
        self._error = error
        self._warn = warn
        self._compat = compat

    def decode(self, content: bytes) -> Any:
        """The JSON value of a file."""
        if len(content) > _LARGEST:
            raise self._error(
                f"{self.where} has {len(content)} bytes", f"such a file has at most {_LARGEST}; is it the right one?"
            )
        if content.startswith(codecs.BOM_UTF8):
            raise self._error(f"{self.where} begins with a byte order mark", "save it as UTF-8 without one")
        if not content.strip():
            raise self._error(f"{self.where} is empty", "kubepki print-defaults shows what belongs into it")
        try:
            return json.loads(content.decode(), object_pairs_hook=self._pairs, parse_constant=self._constant)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise self._error(
                f"{self.where} is no JSON: {error.msg} at {place}", _remedy(content, error.pos)
            ) from error
        except UnicodeDecodeError as error:
            raise self._error(f"{self.where} is not in UTF-8: byte {error.start}") from error
        except RecursionError as error:
            raise self._error(f"{self.where} is nested too deeply") from error
        except ValueError as error:
            # A number with thousands of digits.
            raise self._error(f"{self.where} is no JSON: {error}") from error

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.lenient(f"the key {key!r} is given twice; keep one")
            found[key] = value
        return found

    def _constant(self, text: str) -> None:
        raise ValueError(f"{text} is not a value of JSON")

    def problem(self, text: str) -> None:
        """Something that must be mended."""
        self.problems.append(text)

    def warn(self, text: str) -> None:
        """Something to tell."""
        self._warn(f"{self.where}: {text}")

    def lenient(self, text: str) -> None:
        """Something that cfssl passes over, where it does no harm but to what was meant."""
        if self._compat:
            self.warn(f"{text} (ignored)")
        else:
            self.problem(text)

    def finish(self) -> None:
        """Raise the error when there were problems."""
        if self.problems:
            text = self.problems[0] if len(self.problems) == 1 else "".join(f"\n  - {one}" for one in self.problems)
            raise self._error(f"{self.where}: {text}")


class Section:
    """An object of a file, read field by field; null is as good as absent."""

    def __init__(self, reader: Reader, path: str, data: object, known: tuple[str, ...]) -> None:
        self._reader = reader
        self._path = path
        self._fields: dict[str, Any] = {}
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            reader.problem(f"{path or 'it'} is {shown(data)}; write {{...}}")
            return
        lower = {name.lower(): name for name in known}
        for key, value in data.items():
            name = lower.get(key.lower())
            if name is None:
                reader.lenient(f"unknown key {self.at(key)!r}{_close(key, known)}")
                continue
            if name in self._fields:
                reader.lenient(f"the key {self.at(name)!r} is given twice, in other letters; keep one")
            if value is not None:
                self._fields[name] = value

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def raw(self, name: str) -> Any:
        """A field as it is; None when absent."""
        return self._fields.get(name)

    def _typed(self, name: str, kind: type, wanted: str, default: Any) -> Any:
        value = self._fields.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._reader.problem(f"{self.at(name)} is {shown(value)}; write {wanted}")
            return default
        return value

    def text(self, name: str) -> str:
        """A text, empty when absent."""
        return str(self._typed(name, str, "a text in quotes", ""))

    def number(self, name: str) -> int:
        """A whole number, 0 when absent."""
        return int(self._typed(name, int, "a number without quotes", 0))

    def switch(self, name: str) -> bool:
        """True or false, false when absent."""
        return bool(self._typed(name, bool, "true or false", False))

    def entries(self, name: str) -> list[Any]:
        """A list, empty when absent."""
        return list(self._typed(name, list, "a list in [ ]", []))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.entries(name)
        wrong = [value for value in values if not isinstance(value, str)]
        for value in wrong:
            self._reader.problem(f"{self.at(name)} has {shown(value)} in it; write a text in quotes")
        return () if wrong else tuple(values)

    def duration(self, name: str) -> Any:
        """A timedelta, possibly negative; None when absent or empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            return durations.parse(text)
        except ValueError as error:
            self._reader.problem(f"{self.at(name)} {error}")
            return None

    def section(self, name: str, known: tuple[str, ...]) -> Section:
        """An object in this one; empty when absent."""
        return Section(self._reader, self.at(name), self._fields.get(name), known)

    def sections(self, name: str, known: tuple[str, ...]) -> list[Section]:
        """A list of objects."""
        return [Section(self._reader, f"{self.at(name)}[{n}]", one, known) for n, one in enumerate(self.entries(name))]


def shown(value: object) -> str:
    """A value as JSON has it, cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _close(key: str, known: tuple[str, ...]) -> str:
    import difflib  # noqa: PLC0415 - each call of the command would pay for it

    close = difflib.get_close_matches(key.lower(), [name.lower() for name in known], 1)
    return (
        f"; did you mean {next(name for name in known if name.lower() == close[0])!r}?"
        if close
        else f"; known are {', '.join(known)}"
    )


def _remedy(content: bytes, position: int) -> str:
    rest = content.decode(errors="replace")
    before = rest[:position].rstrip()
    if before.endswith(","):
        return "remove the comma before it: JSON has none after the last entry"
    if "//" in rest or "/*" in rest or rest.lstrip().startswith("#"):
        return "remove the comments: JSON has none"
    return "an editor that knows JSON shows the place"
