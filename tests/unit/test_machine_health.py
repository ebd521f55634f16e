"""Waiting for a unit; what systemd says comes from a program of the test's, as no systemd runs where tests do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.machine import health
from kubewright.machine import systemd as programs

_SYSTEMCTL = """#!/bin/sh
# Says the next of the states at each call, the last one for ever.
dir=$(dirname "$0")
n=$(cat "$dir/calls"); echo $((n + 1)) > "$dir/calls"
file="$dir/state$n"; [ -e "$file" ] || file=$(ls "$dir"/state* | sort -V | tail -n 1)
cat "$file"
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "systemctl").write_text(_SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "calls").write_text("0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def says(systemd: Path, *states: tuple[str, int]) -> None:
    for number, (active, job) in enumerate(states):
        text = f"Id=x.service\nActiveState={active}\nSubState={active}\nResult=timeout\nNRestarts=0\n"
        (systemd / f"state{number}").write_text(text + (f"Job={job}\n" if job else ""))


def test_a_unit_whose_old_process_was_killed_is_started_next(systemd: Path) -> None:
    says(systemd, ("deactivating", 7), ("failed", 7), ("activating", 7), ("active", 0))
    assert health.wait("x.service", [], 20) == ""


def test_a_unit_that_has_failed_is_not_waited_for(systemd: Path) -> None:
    says(systemd, ("activating", 7), ("activating", 7), ("failed", 0))
    assert health.wait("x.service", [], 600).startswith("x.service is failed/failed (result timeout")


def test_a_reload_that_does_not_end_is_a_reason(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (systemd / "systemctl").write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(programs._run, "__kwdefaults__", {"timeout": 0.1})
    assert programs.reload("x.service") == "systemctl reload x.service did not end within 0 s"
    with pytest.raises(OSError, match="did not end"):
        programs.daemon_reload()
