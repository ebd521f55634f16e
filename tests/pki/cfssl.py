"""cfssl and kubepki, called alike."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent.parent / "src"
_CODE = re.compile(r'\{"code":(\d+)')


@dataclass(frozen=True)
class Reply:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> int | None:
        """The code in the message; cfssl leaves it out of some."""
        found = _CODE.search(self.err)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Program:
    """One of the two; `bare` is the command in front of the subcommand, `writer` that of cfssljson."""

    name: str
    bare: tuple[str, ...]
    writer: tuple[str, ...]

    def __call__(
        self, *words: str, at: Path, stdin: str = "", environment: Mapping[str, str] | None = None, writer: bool = False
    ) -> Reply:
        command = [*(self.writer if writer else self.bare), *words]
        variables = {**os.environ, "PYTHONPATH": str(SOURCE), **(environment or {})}
        done = subprocess.run(
            command, cwd=at, input=stdin, env=variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Reply(done.returncode, done.stdout, done.stderr)


def kubepki() -> Program:
    command = (sys.executable, "-m", "kubepki")
    return Program("kubepki", command, (*command, "cfssljson"))


def cfssl(directory: Path) -> Program:
    return Program("cfssl", (str(directory / "cfssl"),), (str(directory / "cfssljson"),))


def write(directory: Path, name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text)
    return name


def authority(program: Program, directory: Path, request: Mapping[str, Any], name: str = "ca") -> None:
    """A CA in NAME.pem and NAME-key.pem."""
    made = program("gencert", "-initca", write(directory, f"{name}.json", request), at=directory)
    assert made.code == 0, made.err
    assert program("-bare", name, at=directory, stdin=made.out, writer=True).code == 0


def gencert(
    program: Program, directory: Path, request: object, config: object = None, flags: Sequence[str] = ()
) -> Reply:
    """A leaf by the CA in the directory."""
    words = ["-ca", "ca.pem", "-ca-key", "ca-key.pem"]
    if config is not None:
        words += ["-config", write(directory, "config.json", config)]
    return program("gencert", *words, *flags, write(directory, "request.json", request), at=directory)
