"""The mirror of the machines is the host's own, whichever way its apt is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.errors import UserError
from kubewright.lab.apt import AptSource, choose, host_source, parse_deb822, parse_one_line

DEB822 = """\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://embedded.example/
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_deb822() -> None:
    found = list(parse_deb822(DEB822))
    keyring = "/usr/share/keyrings/archive.gpg"
    assert found == [
        AptSource("http://mirror.example/debian", "bookworm", ("main", "contrib"), keyring),
        AptSource("http://mirror.example/debian", "bookworm-updates", ("main", "contrib"), keyring),
        AptSource("http://embedded.example/", "stable", ("main",)),
    ]


def test_one_line() -> None:
    text = (
        "# deb http://comment.example bookworm main\n"
        "deb-src http://sources.example bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main  # trailing\n"
        "deb http://other.example ./\n"
    )
    assert list(parse_one_line(text)) == [
        AptSource("http://mirror.example/debian", "bookworm", ("main",), "/k.gpg"),
        AptSource("http://other.example", "./", ()),
    ]


def test_the_first_file_with_a_distribution_wins_over_third_parties_and_pockets(tmp_path: Path) -> None:
    if not Path("/usr/share/debootstrap/scripts/bookworm").exists():
        pytest.skip("debootstrap is not installed")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/a.list").write_text("deb http://vendor.example tool-bookworm main\n")
    (tmp_path / "sources.list.d/b.sources").write_text(
        DEB822.replace("bookworm bookworm-updates", "bookworm-updates bookworm")
    )
    assert host_source(tmp_path).suite == "bookworm"
    assert host_source(tmp_path).uri == "http://mirror.example/debian"


def test_without_an_archive_the_sources_seen_are_named() -> None:
    with pytest.raises(UserError, match="vendor"):
        choose([AptSource("http://vendor.example", "nodistro", ("main",))])
    with pytest.raises(UserError, match="none at all"):
        choose([])
