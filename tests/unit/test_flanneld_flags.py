from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.errors import UsageError
from flanneld.flags import Flag, Parsed, environment_name, parse, shown, usage

FLAGS = (
    Flag("name", "str", "x", "a name"),
    Flag("count", "int", "3", "a number"),
    Flag("on", "bool", "false", "a switch"),
    Flag("off", "bool", "true", "another"),
    Flag("many", "list", "", "several"),
    Flag("password", "str", "", "a secret", secret=True),
    Flag("version", "bool", "false", "the version"),
    Flag("old", "gone", "", "use -name"),
    Flag("calm", "bool", "false", "nothing", idle=True),
    Flag("dir", "str", "", "nothing", idle=True),
)


def parsed(*argv: str, **environ: str) -> Parsed:
    return parse(FLAGS, argv, environ)


@pytest.mark.parametrize("words", [["-name", "/x"], ["-name=/x"], ["--name", "/x"], ["--name=/x"]])
def test_go_spellings_are_the_same(words: list[str]) -> None:
    assert parsed(*words).text("name") == "/x"


def test_a_value_may_be_empty_look_like_a_flag_or_hold_an_equals_sign() -> None:
    assert parsed("-name=").text("name") == ""
    assert parsed("-name", "-on").text("name") == "-on"
    assert not parsed("-name", "-on").truth("on")
    assert parsed("-name=a=b\nc").text("name") == "a=b\nc"
    assert parsed("-name=a", "-name=b").text("name") == "b"


def test_booleans_take_a_value_after_the_equals_sign_only() -> None:
    assert parsed("-on").truth("on")
    assert parsed("-on=T").truth("on")
    assert not parsed("-on=false").truth("on")
    assert not parsed("-off=0").truth("off")
    with pytest.raises(UsageError, match=r"'true' is not a flag.*-ip-masq=true"):
        parsed("-on", "true", "-name", "eth1")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("12", 12),
        ("-5", -5),
        ("+5", 5),
        ("0x1F", 31),
        ("0b11", 3),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
    ],
)
def test_integers_as_go_writes_them(text: str, number: int) -> None:
    assert parsed(f"-count={text}").number("count") == number


@pytest.mark.parametrize(
    "text", ["", "x", "1.5", " 1", "08", "1__0", "_1", "0x", "٣", "9223372036854775808", "9" * 5000]
)
def test_other_integers_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an integer"):
        parsed(f"-count={text}")


def test_the_environment_fills_what_the_command_line_leaves() -> None:
    found = parsed("-name=cli", FLANNELD_NAME="env", FLANNELD_MANY="a,b", FLANNELD_ON="true", FLANNELD_COUNT="")
    assert (found.text("name"), found.several("many"), found.truth("on"), found.number("count")) == (
        "cli",
        ("a,b",),
        True,
        3,
    )
    assert environment_name("etcd-endpoints") == "FLANNELD_ETCD_ENDPOINTS"
    with pytest.raises(UsageError, match="FLANNELD_ON is 'yes'"):
        parsed(FLANNELD_ON="yes")


def test_variables_of_no_flag_are_named() -> None:
    # A variable named FLANNELD_VERSION tells the version to a script; the Go daemon takes no notice of it, too.
    found = parsed(FLANNELD_NAEM="x", FLANNELD_OLD="x", FLANNELD_VERSION="v0.11.0", PATH="/bin")
    assert found.unknown == ("FLANNELD_NAEM", "FLANNELD_OLD", "FLANNELD_VERSION")


def test_repeatable_flags_keep_their_order() -> None:
    assert parsed("-many=b", "-many", "a").several("many") == ("b", "a")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-nmae=x"], "did you mean -name"),
        (["-zzzzzzz"], "-help lists"),
        (["-name"], "needs a value"),
        (["-on=yes"], "'yes', not a boolean"),
        (["-old=x"], "-old is a flag of old versions (use -name)"),
        (["-old"], "use -name"),
        (["stray"], "not a flag"),
        (["-"], "not a flag"),
        (["--", "-name=x"], "'-name=x' stands behind '--'"),
        (["--", "", "stray"], "'stray' stands behind '--'"),
        (["---name=x"], "not a flag"),
        (["-=x"], "not a flag"),
    ],
)
def test_mistakes_end_in_a_clear_error(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert text in str(caught.value)


@pytest.mark.parametrize("words", [["", "-name=x"], ["-name=x", ""], ["-name=x", "--"], ["-name=x", "", "--", ""]])
def test_empty_words_and_the_end_of_the_flags_are_passed_over(words: list[str]) -> None:
    assert parsed(*words).text("name") == "x"
    assert parsed("-name", "", "-on").truth("on"), "here the empty word is a value"


def test_idle_flags_are_accepted_and_named() -> None:
    assert parsed("-dir", "/var/log", "-calm", "-name=x").idle == ("calm", "dir")
    assert parsed(FLANNELD_DIR="/var/log").idle == ("dir",)
    assert parsed("-name=x").idle == ()
    assert parsed(FLANNELD_DIR="/var/log").unknown == ()


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help_is_asked_for(word: str) -> None:
    assert parsed("-name=x", word, "-nonsense", FLANNELD_ON="yes").help


def test_usage_shows_flags_with_their_defaults() -> None:
    text = usage(FLAGS)
    assert "  -count int\n    \ta number (default 3)\n  -on\n    \ta switch\n" in text
    assert "-old" not in text
    assert "-calm" not in text


def test_what_is_set_is_shown_without_secrets() -> None:
    found = parsed("-password=hunter2", "-many=a", "-many=b", "-name=http://u:hunter2@h,http://v:hunter2@i")
    assert shown(FLAGS, found) == (
        "{count:3 many:[a b] name:http://***@h,http://***@i off:true on:false password:*** version:false}"
    )
    assert "password: version" in shown(FLAGS, parsed())


@given(st.lists(st.text(max_size=12), max_size=6), st.dictionaries(st.sampled_from(["FLANNELD_ON", "X"]), st.text()))
def test_any_words_are_parsed_or_refused(words: list[str], environ: dict[str, str]) -> None:
    with contextlib.suppress(UsageError):
        found = parse(FLAGS, words, environ)
        assert isinstance(found.number("count"), int)
        assert found.help or found.truth("on") in {True, False}
