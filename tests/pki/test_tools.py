"""The programs that judge others work themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def test_cfssl_issues_a_ca(cfssl_directory: Path) -> None:
    request = json.dumps({"CN": "ca", "key": {"algo": "ecdsa", "size": 256}})
    made = subprocess.run(
        [cfssl_directory / "cfssl", "gencert", "-initca", "-"],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    assert sorted(json.loads(made.stdout)) == ["cert", "csr", "key"]
    assert (cfssl_directory / "cfssljson").is_file()


def test_the_go_program_refuses_questions_that_it_does_not_know(go_verify: Path) -> None:
    asked = subprocess.run(
        [go_verify], input='[{"Certficate": ""}]', capture_output=True, text=True, check=False, timeout=60
    )
    assert asked.returncode == 2
    assert 'unknown field "Certficate"' in asked.stderr
