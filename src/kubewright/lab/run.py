"""Runs programs of the host: the door through which the lab's effects go."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from kubewright.errors import UserError


def run(command: Sequence[str], *, timeout: float = 60, stdin: str | None = None) -> str:
    """Run a command to its end and return its output; a `UserError` with its last words when it fails."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"`{' '.join(command)}` did not end within {timeout:.0f} s") from None
    except FileNotFoundError:
        raise UserError(f"the program {command[0]} is missing") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise UserError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}: {' / '.join(words) or 'silently'}"
        )
    return done.stdout


def succeeds(command: Sequence[str], *, timeout: float = 60) -> bool:
    """Run a command for its exit code only; running out of time is a failure."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
    return done.returncode == 0
