"""A short fuzz of all that comes from etcd; fuzz_flanneld_etcd.py runs longer ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent / "fuzz_flanneld_etcd.py"


@pytest.mark.parametrize("target", ["key", "value", "watch3", "watch2", "list", "http"])
def test_only_documented_exceptions(target: str) -> None:
    command = [sys.executable, str(_SCRIPT), target, "--runs=5000", "--seconds=3", "--seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed, done.stderr
    assert int(executed[1]) > 500, "hardly anything was tried"
