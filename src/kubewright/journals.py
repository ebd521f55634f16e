"""Where an operation in several steps stands, beside the inventory: the same command again goes on with its step.

A step is in hand from the moment that it is written down until what it hands out has been proven; so one that was cut
short is done once more, and every step must bear that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubewright.errors import UserError
from kubewright.files import write_file


class Journal:
    """The file NAME.json in `directory`. `steps`: the names of the steps, in order."""

    def __init__(self, directory: Path, name: str, steps: Sequence[str]) -> None:
        self._path = directory / f"{name}.json"
        self._steps = tuple(steps)
        self._known: dict[str, Any] = {}
        try:
            self._known = json.loads(self._path.read_text())
            known = self._known["step"] in self._steps
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise UserError(
                f"{self._path} is damaged", f"restore it from a backup; the steps are {', '.join(self._steps)}"
            )

    @property
    def step(self) -> str:
        """The step in hand; empty when the operation is not under way."""
        return str(self._known.get("step", ""))

    def __getitem__(self, key: str) -> Any:
        return self._known.get(key)

    def is_before(self, step: str) -> bool:
        """Whether the step in hand comes before this one."""
        return self._steps.index(self.step) < self._steps.index(step)

    def write(self, step: str, **more: Any) -> None:
        """Take a step in hand; `more` is kept as well, from step to step."""
        begun = self._known.get("begun") or datetime.now(UTC).isoformat()
        self._known = {**self._known, "begun": begun, "step": step, **more}
        write_file(self._path, json.dumps(self._known, indent=1) + "\n", 0o600)

    def end(self) -> None:
        """The operation is finished."""
        self._path.unlink(missing_ok=True)
        self._known = {}
