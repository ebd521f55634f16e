"""Packages for tests come from the archive as it is now, whatever the host's apt knows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import debian_packages
import pytest
from debian_archive import Archive

from kubewright.artifacts import debian
from kubewright.errors import UserError

_RUN = """
import runpy, sys
from pathlib import Path
from kubewright.artifacts import debian
debian._HOST_SOURCES = Path(sys.argv.pop(1))
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_the_host_has_never_heard_of_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(tmp_path)
    monkeypatch.setattr(debian, "_HOST_SOURCES", archive.sources)
    monkeypatch.setenv("KUBEWRIGHT_CACHE", "relative")
    monkeypatch.chdir(tmp_path)
    archive.package("one", "1", {"usr/bin/one": "first"})
    with pytest.raises(UserError, match="have no two"):
        debian_packages.unpacked("tools", ["one", "two"])
    archive.package("two", "1", {"usr/bin/two": "second"})
    for _ in range(2):
        root = debian_packages.unpacked("tools", ["one", "two"])
        assert root == tmp_path / "relative" / "test-tools" / "tools"
        assert [path.read_text() for path in sorted(root.glob("usr/bin/*"))] == ["first", "second"]
        # The second time nobody asks it.
        archive.withdraw("*")
    assert not list((tmp_path / "relative" / "tmp").glob("[!.]*"))


def test_a_command_for_playbooks(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.package("ufw", "1", {"usr/sbin/ufw": "x"})
    command = [sys.executable, "-c", _RUN, archive.sources, debian_packages.__file__, "firewall"]
    environment = {**os.environ, "KUBEWRIGHT_CACHE": "relative"}
    for package, status in (("no-such", 1), ("ufw", 0)):
        ended = subprocess.run(
            [*command, package], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == status, ended.stderr
    directory = tmp_path / "relative" / "test-tools" / "firewall"
    assert ended.stdout == f"{directory}\n"
    assert [path.name for path in directory.iterdir()] == ["ufw_1_all.deb"]
