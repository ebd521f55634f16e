from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kubewright.errors import UserError
from kubewright.reference import pages, roles
from kubewright.reference.__main__ import main, stale

DEFAULTS = """\
---
# How loud.
horn_volume: 11
# Who hears it,
# and where.
horn_audience: [street, "house"]

# What it plays.
horn_tune:
  key: C

  # Bars.
  length: 4
# Where.
horn_path: "{{ inventory_dir }}/horn"
"""
OPTIONS: dict[str, Any] = {
    "horn_volume": {"type": "int", "description": "How loud.", "default": 11, "choices": [1, 11]},
    "horn_audience": {
        "type": "list",
        "elements": "str",
        "description": "Who hears it, and where.",
        "default": ["street", "house"],
    },
    "horn_tune": {"type": "dict", "description": "What it plays.", "default": {"key": "C", "length": 4}},
    "horn_path": {"type": "str", "description": "Where."},
}


def role(defaults: str = DEFAULTS, description: str = "A horn", **changes: dict[str, Any]) -> roles.Role:
    options = {name: {**option, **changes.get(name, {})} for name, option in OPTIONS.items()}
    return roles.Role("horn", "A horn", description, roles.defaults(defaults), options)


def test_an_entry_has_its_comment_its_lines_and_its_value() -> None:
    volume, audience, tune, path = roles.defaults(DEFAULTS)
    assert (volume.comment, volume.value, volume.source) == ("How loud.", 11, ("horn_volume: 11",))
    assert audience.comment == "Who hears it, and where."
    assert audience.paragraph == volume.paragraph
    assert tune.paragraph != audience.paragraph
    assert tune.source == ("horn_tune:", "  key: C", "", "  # Bars.", "  length: 4")
    assert tune.value == {"key": "C", "length": 4}
    assert path.is_computed
    assert not volume.is_computed


def test_sources_that_agree_have_nothing_to_say() -> None:
    assert roles.disagreements(role()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"horn_volume": {"default": 10}}, "the default is 11, the spec says 10"),
        ({"horn_volume": {"description": "How high."}}, "the comment says 'How loud.', the description 'How high.'"),
        ({"horn_volume": {"type": "str"}}, "the default 11 is not of the type str"),
        ({"horn_volume": {"choices": [1, 2]}}, "the default 11 is none of the choices [1, 2]"),
        ({"horn_audience": {"type": "dict"}}, "is not of the type dict"),
        ({"horn_path": {"default": "/horn"}}, "its default is computed, the spec must have none"),
    ],
)
def test_every_disagreement_is_named(changes: dict[str, Any], problem: str) -> None:
    found = roles.disagreements(role(**changes))
    assert len(found) == 1
    assert found[0].startswith(f"roles/horn: {next(iter(changes))}: ")
    assert problem in found[0]


def test_a_truth_value_is_no_number() -> None:
    loud = role(DEFAULTS.replace("11", "true"), horn_volume={"default": 1, "choices": []})
    assert [problem.partition(": ")[2] for problem in roles.disagreements(loud)] == [
        "horn_volume: the default is True, the spec says 1",
        "horn_volume: the default True is not of the type int",
    ]


def test_entries_of_one_source_only_are_named() -> None:
    found = roles.disagreements(role(DEFAULTS.replace("horn_volume", "horn_loudness")))
    assert found == [
        "roles/horn: horn_volume: in argument_specs.yml only",
        "roles/horn: horn_loudness: in defaults/main.yml only",
    ]


def test_a_comment_is_directly_above_its_entry() -> None:
    found = roles.disagreements(role(DEFAULTS.replace("# Where.\n", "")))
    assert found == ["roles/horn: horn_path: has no comment directly above it in defaults/main.yml"]


def test_the_two_titles_are_one() -> None:
    assert "'A drum'" in roles.disagreements(role(description="A drum"))[0]


def test_tables_show_defaults_in_one_line() -> None:
    text = pages.role_table(role(DEFAULTS.replace("How loud.", "How | loud.")))
    assert '| `horn_audience` | `[street, "house"]` | Who hears it, and where. |' in text
    assert "| `horn_tune` | `{key: C, length: 4}` | What it plays. |" in text
    assert "How \\| loud." in text
    assert "| `horn_volume` | int | `11` | `1`, `11` | How loud. |" in pages.reference([role()])
    assert "| `horn_audience` | list of str |" in pages.reference([role()])


def test_the_example_names_choices_that_the_comment_does_not() -> None:
    assert "## How loud.\n## One of 1, 11.\n# horn_volume: 11\n" in pages.example(role())
    named = role(DEFAULTS.replace("How loud.", "How loud: 1 or 11."))
    assert "## How loud: 1 or 11.\n# horn_volume: 11\n" in pages.example(named)


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"above\n{pages.BEGIN}\nold\n{pages.END}\nbelow\n"
    new = pages.splice(page, "new", "page")
    assert new == f"above\n{pages.BEGIN}\n\nnew\n\n{pages.END}\nbelow\n"
    assert pages.splice(new, "new", "page") == new


@pytest.mark.parametrize("page", ["", f"{pages.BEGIN}", f"{pages.END} {pages.BEGIN}", f"{pages.BEGIN}{pages.END}" * 2])
def test_a_page_without_one_pair_of_marks_is_an_error(page: str) -> None:
    with pytest.raises(UserError, match=r"page\.md"):
        pages.splice(page, "new", "page.md")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "roles/horn"
    for name in ("defaults", "meta"):
        (directory / name).mkdir(parents=True)
    (directory / "defaults/main.yml").write_text(DEFAULTS)
    (directory / "meta/main.yml").write_text("galaxy_info: {description: A horn}\n")
    specs = {"argument_specs": {"main": {"short_description": "A horn", "options": OPTIONS}}}
    (directory / "meta/argument_specs.yml").write_text(yaml.safe_dump(specs))
    (tmp_path / "docs").mkdir()
    for page in (directory / "README.md", tmp_path / "docs/variables.md"):
        page.write_text(f"# Horn\n{pages.BEGIN}\n{pages.END}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_names_what_is_stale_and_writes_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "roles/horn/README.md: stale",
        "inventories/example/group_vars/all/horn.yml: stale",
        "docs/variables.md: stale",
        "run python -m kubewright.reference",
    ]
    assert not (repository / pages.EXAMPLE).exists()
    assert main([]) == 0
    assert stale(repository) == {}
    assert main(["--check"]) == 0


def test_a_file_of_a_role_that_is_gone_goes_too(repository: Path) -> None:
    assert main([]) == 0
    old = repository / pages.EXAMPLE / "whistle.yml"
    old.write_text((repository / pages.EXAMPLE / "horn.yml").read_text())
    own = repository / pages.EXAMPLE / "connection.yml"
    own.write_text("---\nansible_user: root\n")
    assert main(["--check"]) == 1
    assert old.exists()
    assert main([]) == 0
    assert not old.exists()
    assert own.exists()


def test_nothing_is_written_while_the_sources_disagree(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repository / "roles/horn/defaults/main.yml"
    path.write_text(DEFAULTS.replace("11", "1"))
    assert main([]) == 1
    assert "horn_volume: the default is 1, the spec says 11" in capsys.readouterr().err
    assert not (repository / pages.EXAMPLE).exists()


@pytest.mark.parametrize("content", [None, "a: [", "", "argument_specs: 1"])
def test_a_source_that_cannot_be_used_is_a_message(
    repository: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = repository / "roles/horn/meta/argument_specs.yml"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert main([]) == 1
    assert "argument_specs.yml" in capsys.readouterr().err


def test_outside_of_the_repository_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert "has no roles" in capsys.readouterr().err
