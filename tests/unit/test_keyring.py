"""Keys that masters share: what a rotation does to their files, also when it is cut short."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kubepki import keys
from kubepki.keys import Key
from kubewright import keyring
from kubewright.errors import UserError

OLD = "a" * 32


def test_a_rotation_of_the_encryption_key() -> None:
    [first] = keyring.parse(OLD + "\n")
    assert first == ("key1", OLD)
    name = keyring.encryption_next(OLD)
    added = keyring.encryption_added(OLD, name)
    assert [one.name for one in keyring.parse(added)] == ["key1", "key2"]
    promoted = keyring.encryption_promoted(added, name)
    assert [one.name for one in keyring.parse(promoted)] == ["key2", "key1"]
    dropped = keyring.encryption_dropped(promoted, name)
    [new] = keyring.parse(dropped)
    assert new.name == "key2"
    assert len(new.secret) == 32
    assert new.secret != OLD
    # A name is never used again: it is written beside what was encrypted.
    assert keyring.encryption_next(dropped) == "key3"


def test_a_rotation_with_keys_that_a_person_added_makes_a_new_one() -> None:
    # For a snapshot of before a rotation: the second only reads.
    text = f"key2:{'b' * 32}\nkey1:{OLD}\n"
    name = keyring.encryption_next(text)
    promoted = keyring.encryption_promoted(keyring.encryption_added(text, name), name)
    assert [one.name for one in keyring.parse(promoted)] == ["key3", "key2", "key1"]
    [left] = keyring.parse(keyring.encryption_dropped(promoted, name))
    assert left.name == "key3"
    assert left.secret not in text


def test_a_key_that_is_gone_is_missed() -> None:
    for step in (keyring.encryption_promoted, keyring.encryption_dropped):
        with pytest.raises(UserError, match="key2 is not there, which this rotation made"):
            step(OLD, "key2")


def test_each_step_can_be_taken_twice() -> None:
    added = keyring.encryption_added(OLD, "key2")
    assert keyring.encryption_added(added, "key2") == added
    promoted = keyring.encryption_promoted(added, "key2")
    assert keyring.encryption_promoted(promoted, "key2") == promoted
    dropped = keyring.encryption_dropped(promoted, "key2")
    assert keyring.encryption_dropped(dropped, "key2") == dropped


@pytest.mark.parametrize("text", ["", "\n", "key2:short\n", f"key1:{OLD}\n{OLD}\n", f"other:{OLD}\n"])
def test_a_damaged_file_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UserError) as refused:
        keyring.parse(text)
    assert OLD not in str(refused.value)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = keys.generate(Key())
    pair = keyring.pair(tmp_path)
    pair.key.write_bytes(keys.pem(made))
    pair.public.write_bytes(keys.public_pem(made))
    return tmp_path


def test_a_rotation_of_the_key_of_service_accounts(directory: Path) -> None:
    old = keyring.pair(directory).public.read_bytes()
    keyring.pair_made(directory, Key())
    following = keyring.pair(directory, "-next").public.read_bytes()
    keyring.pair_made(directory, Key())
    assert keyring.pair(directory, "-next").public.read_bytes() == following
    assert keyring.pair(directory).public.read_bytes() == old
    keyring.pair_promoted(directory)
    keyring.pair_promoted(directory)
    current = keyring.pair(directory)
    assert current.public.read_bytes() == following
    assert current.key.stat().st_mode & 0o777 == 0o600
    assert keys.public_pem(keys.load(current.key.read_bytes(), "")) == following
    assert keyring.pair(directory, "-previous").public.read_bytes() == old
    keyring.pair_dropped(directory)
    keyring.pair_dropped(directory)
    assert sorted(path.name for path in directory.iterdir()) == [
        "retired",
        "service-account.key",
        "service-account.pub",
    ]
    retired = sorted((directory / "retired").iterdir())
    assert {path.suffix for path in retired} == {".key", ".pub"}
    assert retired[1].read_bytes() == old


def test_a_promotion_that_was_cut_short_loses_no_key(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keyring.pair_made(directory, Key())
    old, new = (keyring.pair(directory, which).public.read_bytes() for which in ("", "-next"))
    for writes in range(1, 5):
        place = tmp_path_factory.mktemp("cut") / "pki"
        shutil.copytree(directory, place)
        monkeypatch.setattr(keyring, "write_file", cut_after(writes))
        with pytest.raises(KeyboardInterrupt):
            keyring.pair_promoted(place)
        monkeypatch.undo()
        keyring.pair_promoted(place)
        assert keyring.pair(place).public.read_bytes() == new
        assert keyring.pair(place, "-previous").public.read_bytes() == old
        assert not keyring.pair(place, "-next").key.exists()


def cut_after(writes: int) -> Callable[..., None]:
    """`write_file`, until the given number of it has been done."""
    done = []
    whole = keyring.write_file

    def write(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        done.append(1)
        if len(done) == writes:
            raise KeyboardInterrupt

    return write


def test_the_key_id_is_that_of_kubernetes(directory: Path) -> None:
    public = keyring.pair(directory).public
    encoded = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], check=True, capture_output=True
    ).stdout
    expected = base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()).decode().rstrip("=")
    assert keyring.key_id(public.read_bytes()) == expected


def test_what_is_kept_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "encryption_key"
    for content in ("one", "two", "two"):
        path.write_text(content)
        keyring.keep(path, "encryption_key-until-today")
    kept = sorted((tmp_path / "retired").iterdir())
    assert [one.read_text() for one in kept] == ["one", "two"]
    assert kept[0].stat().st_mode & 0o777 == 0o600
