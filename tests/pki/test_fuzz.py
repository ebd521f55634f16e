"""A short fuzz of everything that reads; `python tests/pki/fuzz all --seconds 600` is a long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_FUZZ = Path(__file__).parent / "fuzz"
# Found in the source: what the targets need may not be imported without instrumentation.
_TARGETS = re.findall(r'^    "([a-z-]+)": Target\(', (_FUZZ / "targets.py").read_text(), re.MULTILINE)
_RUNS = 15000
_WITH_A_BUG = """
import runpy, sys
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0])
import targets
run = lambda data: {}[data] if len(data) > 2 else None
targets.TARGETS["name"] = targets.Target(run, lambda: [b"aa"])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_FUZZ), *words], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )


def test_all_targets_are_here() -> None:
    assert f"{{all,{','.join(_TARGETS)}}}" in re.sub(r"\s+", "", _run("-h").stdout)


@pytest.mark.parametrize("target", _TARGETS)
def test_only_documented_exceptions(tmp_path: Path, target: str) -> None:
    done = _run(target, f"--runs={_RUNS}", "--seconds=3", "--seed=1", f"--directory={tmp_path}")
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed, done.stderr
    assert int(executed[1]) > 500, "hardly anything was tried"


def test_an_exception_that_nobody_documents_is_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_BUG, str(_FUZZ), "name", "--runs=200000", "--seed=1", f"--directory={tmp_path}"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "KeyError" in done.stderr + done.stdout
    kept = [path.read_bytes() for path in tmp_path.glob("name-crash-*")]
    assert [len(data) > 2 for data in kept] == [True]
