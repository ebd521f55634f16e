"""Finds the Debian mirror that the host itself uses, in apt's two source formats (sources.list(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubewright.errors import UserError

_POCKET = re.compile(r"-(updates|security|backports|proposed.*)$|/")


@dataclass(frozen=True)
class AptSource:
    """One suite of one archive: `http://mirror.example/debian`, `bookworm`, and the keyring it is signed with."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str = ""


def parse_one_line(text: str) -> Iterator[AptSource]:
    """Yield the binary sources of a sources.list file."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>\S.*)", line.split("#")[0].strip())
        if match:
            words = match["rest"].split()
            keyring = re.search(r"signed-by=(\S+)", match["options"] or "")
            if len(words) >= 2:
                yield AptSource(words[0], words[1], tuple(words[2:]), keyring[1] if keyring else "")


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Yield the binary sources of a .sources file; an embedded key counts as no keyring."""
    clean = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", clean):
        fields = {
            key.lower(): re.sub(r"\s+", " ", value).strip()
            for key, value in re.findall(r"^([A-Za-z0-9-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        keyring = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield AptSource(uri, suite, components, keyring if keyring.startswith("/") else "")


def choose(sources: list[AptSource]) -> AptSource:
    """Return the distribution's own archive: the first main suite that debootstrap has a script for."""
    for source in sources:
        known = Path("/usr/share/debootstrap/scripts", source.suite).exists()
        if "main" in source.components and known and not _POCKET.search(source.suite):
            return source
    seen = ", ".join(f"{source.uri} {source.suite}" for source in sources) or "none at all"
    raise UserError(
        f"apt's configuration has no archive of a distribution to build machines from (seen: {seen})",
        "add one with the component main to /etc/apt/sources.list, as on a freshly installed Debian",
    )


def host_source(root: Path = Path("/etc/apt")) -> AptSource:
    """Return the archive the host is installed from."""
    sources: list[AptSource] = []
    for path in [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            parse = parse_deb822 if path.suffix == ".sources" else parse_one_line
            sources += parse(path.read_text())
    return choose(sources)
