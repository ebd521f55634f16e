from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kubepki import sources
from kubepki.errors import StoreError


def test_a_source_is_a_path_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd:name"
    path.write_bytes(b"\xff\n")
    monkeypatch.setenv("KUBEPKI_TEST", "key\n")
    assert sources.read(str(path)) == sources.read(f"file:{path}") == b"\xff\n"
    assert sources.read("env:KUBEPKI_TEST") == b"key\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"x", b"x"), (b"x\n", b"x"), (b"x\r\n", b"x"), (b"x\n\n", b"x\n"), (b" x ", b" x ")],
)
def test_a_password_loses_one_newline(tmp_path: Path, content: bytes, expected: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    assert sources.password(f"file:{tmp_path}/p") == expected


def test_no_source_is_no_password() -> None:
    assert sources.password("") == b""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("env:KUBEPKI_NOTHING", "there is no such variable"),
        ("file:/nowhere/x", "/nowhere/x: No such file"),
        ("/", "/: Is a directory"),
        ("file:/dev/null", "file:/dev/null: the password is empty"),
        ("/dev/zero", "/dev/zero: larger than 10 MB"),
        ("a\0b", "null"),
    ],
)
def test_what_cannot_be_read_is_said(source: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        sources.password(source)


def test_standard_input_is_read_to_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").write_bytes(b"\xff\n")
    with (tmp_path / "some").open() as some, Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", some)
        assert sources.stdin() == b"\xff\n"
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(StoreError, match="standard input: larger than 10 MB"):
            sources.stdin()


def test_a_path_that_must_not_be_shown_has_another_name() -> None:
    with pytest.raises(StoreError, match="the file: No such file"):
        sources.file("/nowhere/\x1b[2J", "the file")
