"""A file is written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.files import write_file


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "old", 0o600)
    with pytest.raises(TypeError):
        write_file(path, object())  # type: ignore[arg-type]
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "directory", "new")
    assert path.read_text() == "old"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [tmp_path / "directory", path]


def test_parents_are_made_and_bytes_stay_as_they_are(tmp_path: Path) -> None:
    write_file(tmp_path / "a/b", b"\x00\xff", 0o755)
    assert (tmp_path / "a/b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o755
