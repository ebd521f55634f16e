"""The mirror of the machines is the host's own, whichever way its apt is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.errors import UserError
from kubewright.lab.apt import AptSource, choose, host_source

SOURCES = """\
Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-updates bookworm
Components: main
Signed-By: /usr/share/keyrings/archive.gpg
"""


def test_the_first_file_with_a_distribution_wins_over_third_parties_and_pockets(tmp_path: Path) -> None:
    if not Path("/usr/share/debootstrap/scripts/bookworm").exists():
        pytest.skip("debootstrap is not installed")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/a.list").write_text("deb http://vendor.example tool-bookworm main\n")
    (tmp_path / "sources.list.d/b.sources").write_text(SOURCES)
    keyring = "/usr/share/keyrings/archive.gpg"
    assert host_source(tmp_path) == AptSource("http://mirror.example/debian", "bookworm", ("main",), keyring)
    (tmp_path / "sources.list").write_text("deb\t[ signed-by=ABCDEF ]\thttp://first.example/debian\tbookworm\tmain\n")
    assert host_source(tmp_path) == AptSource("http://first.example/debian", "bookworm", ("main",))


def test_without_an_archive_the_sources_seen_are_named() -> None:
    with pytest.raises(UserError, match="vendor"):
        choose([AptSource("http://vendor.example", "nodistro", ("main",))])
    with pytest.raises(UserError, match="none at all"):
        choose([])
