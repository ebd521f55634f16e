"""Where a host's apt gets packages from, in both formats of sources.list(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubewright.errors import UserError

_FALSE = ("no", "false", "without", "off", "disable", "0")
# The options that the one-line format calls otherwise than deb822; of the others only the case differs.
_FIELDS = {"arch": "architectures", "lang": "languages", "target": "targets"}
_OPERATORS = {"=": "", "+=": "-add", "-=": "-remove"}
_LINE = re.compile(r"(?P<type>deb|deb-src)\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<rest>[^[\s].*)")


@dataclass(frozen=True)
class Source:
    """An entry. `types`: deb, deb-src or both; `options`: its other fields as (deb822's name in lower case, value)."""

    types: tuple[str, ...]
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str:
        """Value of a field, empty when there is none."""
        return dict(self.options).get(name, "")

    def stanza(self) -> str:
        """The entry in deb822."""
        lists = {"Types": self.types, "URIs": self.uris, "Suites": self.suites, "Components": self.components}
        lines = [f"{name}: {' '.join(words)}" for name, words in lists.items() if words]
        return "\n".join([*lines, *(f"{name.title()}: {value}" for name, value in self.options)]) + "\n"


def one_line(text: str) -> Iterator[Source]:
    """Yield the entries of a sources.list file."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line.partition("#")[0].strip())
        if not match:
            continue
        words = match["rest"].split()
        options = []
        for name, operator, value in re.findall(r"([A-Za-z-]+?)([+-]?=)(\S+)", match["options"] or ""):
            field = _FIELDS.get(name.lower(), name.lower())
            options.append((field + _OPERATORS[operator], value.replace(",", " ")))
        if len(words) >= 2 and _is_of_use(words[0]):
            yield Source((match["type"],), (words[0],), (words[1],), tuple(words[2:]), tuple(options))


def deb822(text: str) -> Iterator[Source]:
    """Yield the entries of a .sources file that are not switched off."""
    clean = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", clean):
        found = re.findall(r"^([A-Za-z0-9-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        fields = {name.lower(): value.strip() for name, value in found}
        lists = [tuple(fields.pop(name, "").split()) for name in ("types", "uris", "suites", "components")]
        types, uris, suites, components = lists
        uris = tuple(uri for uri in uris if _is_of_use(uri))
        enabled = fields.pop("enabled", "yes").lower() not in _FALSE
        if enabled and types and uris and suites:
            yield Source(types, uris, suites, components, tuple(fields.items()))


def _is_of_use(uri: str) -> bool:
    # Nobody is there to put a disk in.
    return not uri.startswith("cdrom:")


def read(root: Path) -> list[Source]:
    """The entries below `root`, a directory such as /etc/apt, in apt's order."""
    found: list[Source] = []
    try:
        for path in [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]:
            if path.is_file() and path.suffix in (".list", ".sources"):
                parse = deb822 if path.suffix == ".sources" else one_line
                found += parse(path.read_text(errors="replace"))
    except PermissionError as error:
        raise UserError(
            f"apt's configuration: {error.filename}: {error.strerror}", "make it readable for the user who runs this"
        ) from error
    return found
