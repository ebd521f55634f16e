"""Flags of the commands that are not cfssl's: a wrong one is a message and exit code 1, as any other mistake."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from kubepki.errors import KubepkiError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises KubepkiError instead of ending the process with code 2, and takes no half flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a wrong command line."""
        raise KubepkiError(message, f"{self.prog} -h says more")


def add_specification(parser: argparse.ArgumentParser) -> None:
    """`SPEC` and `-C DIRECTORY`, that all commands about a whole set have."""
    parser.add_argument("spec", metavar="SPEC", type=Path, help="the specification, a YAML file")
    parser.add_argument(
        "-C",
        "--directory",
        type=Path,
        metavar="DIRECTORY",
        help="where keys and certificates are; by default pki/ beside the specification, or where the specification "
        "lies when that has CAs (*-ca.pem) and no pki/",
    )


def directory(given: argparse.Namespace) -> Path:
    """The PKI directory that the flags of `add_specification` mean."""
    spec: Path = given.spec
    chosen: Path | None = given.directory
    if chosen:
        return chosen
    beside = spec.parent / "pki"
    # The playbooks lay their specification into the directory itself.
    return spec.parent if not beside.is_dir() and any(spec.parent.glob("*-ca.pem")) else beside
