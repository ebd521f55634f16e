from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kubepki import store
from kubepki.errors import StoreError
from kubepki.store import File


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def pair(directory: Path, content: bytes, *, path: str = "a") -> list[File]:
    return [File(directory / f"{path}-key.pem", content, 0o600), File(directory / f"{path}.pem", content, 0o644)]


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_modes_are_exact_whatever_the_umask_and_whatever_was_there(tmp_path: Path, umask: int) -> None:
    (tmp_path / "a-key.pem").write_bytes(b"old")
    (tmp_path / "a-key.pem").chmod(0o644)
    before = os.umask(umask)
    try:
        store.replace([pair(tmp_path, b"new"), [File(tmp_path / "b", b"", 0o640)]])
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()}
    assert modes == {"a-key.pem": 0o600, "a.pem": 0o644, "b": 0o640}


def test_the_old_key_is_never_written_to(tmp_path: Path) -> None:
    # Whoever had opened the key while it was readable by all must not see the new one.
    store.write(tmp_path / "a-key.pem", b"old", 0o644)
    with (tmp_path / "a-key.pem").open("rb") as stream:
        store.write(tmp_path / "a-key.pem", b"new", 0o600)
        assert stream.read() == b"old"


@pytest.mark.parametrize("new", [1, 40])
def test_when_a_later_group_cannot_be_replaced_all_are_as_they_were(tmp_path: Path, new: int) -> None:
    store.replace([pair(tmp_path, b"old")])
    (tmp_path / "z.pem").mkdir()
    groups = [pair(tmp_path, b"new", path=f"n{number}") for number in range(new)]
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path}/z.pem")):
        store.replace([pair(tmp_path, b"new"), *groups, pair(tmp_path, b"new", path="z"), pair(tmp_path, b"new")])
    assert names(tmp_path) == ["a-key.pem", "a.pem", "z.pem"]
    assert {(tmp_path / name).read_bytes() for name in ("a-key.pem", "a.pem")} == {b"old"}


_WRITER = """
import sys
from pathlib import Path
from kubepki import store
here, content = Path(sys.argv[1]), sys.argv[2].encode()
pair = [store.File(here / "x" / "a-key.pem", content, 0o600), store.File(here / "y" / "a.pem", content, 0o644)]
for _ in range(50):
    store.replace([pair])
    with store._alone([here / "x", here / "y"]):
        both = {one.path.read_bytes() for one in pair}
    assert len(both) == 1, both
"""


def test_processes_that_replace_one_pair_at_once_leave_whole_ones(tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(3)]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == [b""] * 3


def test_a_directory_that_stays_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace([pair(tmp_path, b"old")])
    (tmp_path / "again").symlink_to(tmp_path)
    # By two ways to one directory nobody waits for himself.
    store.replace([pair(tmp_path, b"new"), pair(tmp_path / "again", b"new", path="b")])
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
    with store._alone([tmp_path]), pytest.raises(StoreError, match="locked by another process"):
        store.replace([pair(tmp_path, b"newer")])
    assert names(tmp_path) == ["a-key.pem", "a.pem", "again", "b-key.pem", "b.pem"]
    assert (tmp_path / "a.pem").read_bytes() == b"new"


@pytest.mark.parametrize("old", [b"old", None])
def test_when_the_certificate_cannot_be_replaced_the_key_is_as_it_was(tmp_path: Path, old: bytes | None) -> None:
    (tmp_path / "a.pem").mkdir()
    if old:
        store.write(tmp_path / "a-key.pem", old, 0o640)
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path}/a.pem: cannot be replaced: Is a directory")):
        store.replace([pair(tmp_path, b"new")])
    assert names(tmp_path) == (["a-key.pem", "a.pem"] if old else ["a.pem"])
    if old:
        key = store.read(tmp_path / "a-key.pem")
        assert key
        assert (key.content, key.mode) == (old, 0o640)


def test_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace([pair(tmp_path, b"old")])
    (tmp_path / "a.pem").unlink()
    (tmp_path / "a.pem").mkdir()

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="cannot be replaced"):
        store.replace([pair(tmp_path, b"new")])
    assert (names(tmp_path), (tmp_path / "a-key.pem").read_bytes()) == (["a-key.pem", "a.pem"], b"old")


def test_nothing_is_replaced_before_everything_is_written(tmp_path: Path) -> None:
    store.replace([pair(tmp_path, b"old")])
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path}/none/b-key.pem: cannot be written: No such file")):
        store.replace([pair(tmp_path, b"new"), pair(tmp_path / "none", b"new", path="b")])
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}


_TOO_LARGE = """
import resource, signal, sys
from pathlib import Path
from kubepki import store
from kubepki.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
here = Path(sys.argv[1])
files = [store.File(here / "a-key.pem", b"new", 0o600), store.File(here / "a.pem", b"n" * 2000, 0o644)]
try:
    store.replace([files])
except StoreError as error:
    print(error)
"""


def test_a_write_that_stops_in_the_middle(tmp_path: Path) -> None:
    store.replace([pair(tmp_path, b"old")])
    command = [sys.executable, "-c", _TOO_LARGE, str(tmp_path)]
    reply = subprocess.run(command, capture_output=True, text=True, check=True)
    assert reply.stdout == (
        f"{tmp_path}/a.pem: cannot be written: File too large\n"
        "  mend that and run again; the files that are there are as they were\n"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a-key.pem": b"old", "a.pem": b"old"}


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.pem").write_bytes(b"old")
    (tmp_path / "a.pem").symlink_to("elsewhere/real.pem")
    store.replace([pair(tmp_path, b"new")])
    assert (tmp_path / "a.pem").is_symlink()
    assert (elsewhere / "real.pem").read_bytes() == b"new"
    assert names(elsewhere) == ["real.pem"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_a_link_of_another_user_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "a.pem").symlink_to("victim")
    os.chown(tmp_path / "a.pem", 12345, 12345, follow_symlinks=False)
    with pytest.raises(StoreError, match="a link that belongs to another user"):
        store.replace([pair(tmp_path, b"new")])
    assert (tmp_path / "victim").read_bytes() == b"old"
    assert names(tmp_path) == ["a.pem", "victim"]


def test_only_what_dead_runs_of_ours_have_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    living = subprocess.Popen(["sleep", "60"])
    try:
        ours = f".kubepki-{dead.pid}-01234567-1"
        # The process has our number, and is not us: every container's first process is number 1.
        namesake = f".kubepki-{os.getpid()}-01234567-1"
        others = [f".kubepki-{living.pid}-01234567-1", ".kubepki-notes", ".kubepki-1-2", "a-key.pem", ".lock"]
        for name in [ours, namesake, *others]:
            (tmp_path / name).touch()
        store.sweep([tmp_path, tmp_path / "none"])
        assert names(tmp_path) == sorted(others)
    finally:
        living.kill()
        living.wait()


def test_many_files_in_many_directories(tmp_path: Path) -> None:
    groups = []
    for number in range(60):
        (tmp_path / str(number % 3)).mkdir(exist_ok=True)
        groups.append(pair(tmp_path / str(number % 3), b"x", path=f"n{number}"))
    store.replace(groups)
    assert len(list(tmp_path.glob("*/*"))) == 120


def test_what_is_no_file_does_not_stop_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(StoreError, match="no ordinary file"):
            store.read(tmp_path / name)
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(11 << 20)
    with pytest.raises(StoreError, match="larger than 10 MB"):
        store.read(tmp_path / "large")
    assert store.read(tmp_path / "none") is None
    with pytest.raises(StoreError, match="Not a directory"):
        store.read(tmp_path / "large" / "x")


def test_directories_are_made_for_us_alone_and_others_are_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0o077)
    try:
        store.make_directory(tmp_path / "a" / "b", 0o711)
    finally:
        os.umask(before)
    for path, mode in ((tmp_path / "a" / "b", 0o711), (tmp_path / "a", 0o711), (tmp_path, 0o755)):
        assert path.stat().st_mode & 0o777 == mode
    store.make_directory(tmp_path, 0o700)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(StoreError, match=f"{tmp_path}/file"):
            store.make_directory(path, 0o700)


def test_owners_in_numbers() -> None:
    assert store.owner("4000000:12", "it") == (4000000, 12)
    assert store.owner("0", "it") == store.owner("root", "it") == store.owner("root:0", "it") == (0, 0)
    with pytest.raises(StoreError, match="no user '4000000' here") as caught:
        store.owner("4000000", "it")
    assert "USER:GROUP" in caught.value.hint
