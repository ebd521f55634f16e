from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubepki import goflags
from kubepki.errors import FlagError
from kubepki.goflags import Flag

FLAGS = {"ca": Flag("", "CA"), "initca": Flag(False, "new CA"), "loglevel": Flag(1, "level")}


@pytest.mark.parametrize(
    ("words", "ca", "initca", "level", "rest"),
    [
        (["-ca", "x", "y"], "x", False, 1, ["y"]),
        (["--ca=x", "-initca", "y"], "x", True, 1, ["y"]),
        (["-ca=", "-initca=false", "-loglevel=5"], "", False, 5, []),
        (["-initca", "-ca", "-", "-"], "-", True, 1, ["-"]),
        (["-ca", "-initca", "y"], "-initca", False, 1, ["y"]),
        (["-ca", "a=b", "--", "-x"], "a=b", False, 1, ["-x"]),
        (["-initca", "T"], "", True, 1, ["T"]),
    ],
)
def test_as_go_reads_them(words: list[str], ca: str, initca: bool, level: int, rest: list[str]) -> None:
    found = goflags.parse(words, FLAGS)
    assert (found.text("ca"), found.switch("initca"), found.number("loglevel"), found.given) == (
        ca,
        initca,
        level,
        rest,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-initac"], "did you mean -initca?"),
        (["-zzz"], "there are -ca, -initca, -loglevel"),
        (["-ca"], "flag needs an argument: -ca"),
        (["---ca"], "bad flag syntax"),
        (["-=x"], "bad flag syntax"),
        (["-initca=maybe"], "write true or false"),
        (["-loglevel", "high"], "write a number"),
        (["a.json", "-ca", "x"], "-ca comes after a.json"),
    ],
)
def test_what_is_wrong_and_what_to_do(words: list[str], said: str) -> None:
    with pytest.raises(FlagError) as caught:
        goflags.parse(words, FLAGS)
    assert said in str(caught.value)


@given(st.lists(st.text(alphabet="-=cainlogev x5", max_size=8), max_size=5))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(FlagError):
        found = goflags.parse(words, FLAGS)
        assert found.given == words[len(words) - len(found.given) :]
