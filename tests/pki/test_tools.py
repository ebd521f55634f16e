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
