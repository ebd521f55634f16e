from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# For what unpacks Debian packages.
sys.path.insert(1, str(Path(__file__).parent.parent / "unit"))

import tools


@pytest.fixture(scope="session")
def cfssl_directory() -> Path:
    """Where Debian's `cfssl` and `cfssljson` are."""
    return tools.cfssl_directory()


@pytest.fixture(scope="session")
def go_verify() -> Path:
    """The program of goverify/main.go; `verifiers` has functions that ask it."""
    return tools.go_verify()
