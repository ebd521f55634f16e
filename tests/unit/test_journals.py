"""Where an operation stands, across runs that were cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.errors import UserError
from kubewright.journals import Journal

STEPS = ("trust", "issue", "drop")


def test_the_next_run_finds_the_step_in_hand(tmp_path: Path) -> None:
    assert Journal(tmp_path, "a", STEPS).step == ""
    Journal(tmp_path, "a", STEPS).write("trust")
    Journal(tmp_path, "a", STEPS).write("issue", published="x")
    journal = Journal(tmp_path, "a", STEPS)
    assert (journal.step, journal["published"]) == ("issue", "x")
    assert journal.is_before("drop")
    assert not journal.is_before("issue")
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
    journal.end()
    journal.end()
    assert Journal(tmp_path, "a", STEPS).step == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": "other"}', '{"step": 1}'])
def test_a_damaged_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        Journal(tmp_path, "a", STEPS)
