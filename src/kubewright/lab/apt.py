"""Finds the Debian mirror that the host itself uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubewright import apt_sources
from kubewright.errors import UserError

_POCKET = re.compile(r"-(updates|security|backports|proposed.*)$|/")


@dataclass(frozen=True)
class AptSource:
    """One suite of one archive: `http://mirror.example/debian`, `bookworm`, and the keyring it is signed with."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str = ""


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
    return choose([one for entry in apt_sources.read(root) if "deb" in entry.types for one in _suites(entry)])


def _suites(entry: apt_sources.Source) -> Iterator[AptSource]:
    # Anything else than a path is a fingerprint or a key in the text itself.
    signed_by = next(iter(entry.option("signed-by").split()), "")
    keyring = signed_by if signed_by.startswith("/") else ""
    for uri in entry.uris:
        for suite in entry.suites:
            yield AptSource(uri, suite, entry.components, keyring)
