"""Runs a user's command line, with an end to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from typing import Mapping, NamedTuple

from flanneld.environment import for_commands

TIMEOUT = 30.0
"""Seconds a command may take."""

_LARGEST = 1 << 16
_SHOWN = 200


class Result(NamedTuple):
    """What a command printed, and why it failed, empty when it did not."""

    output: str
    failure: str


def run(command: str, variables: Mapping[str, str], text: str = "", timeout: float = TIMEOUT) -> Result:
    """Run `command` by `sh -c` with `text` as its input; the variables are only in its environment.

    Input and output are files: a program that the command leaves in the background does not keep it from ending. A
    command that takes too long is killed with everything it has started.
    """
    try:
        return _run(command, variables, text.encode("utf-8", "replace"), timeout)
    except (OSError, ValueError) as error:  # also when there is no room for the files
        return Result("", f"cannot be run: {error}")


def _run(command: str, variables: Mapping[str, str], text: bytes, timeout: float) -> Result:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(text)
        given.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=given,
            stdout=output,
            stderr=errors,
            env={**for_commands(os.environ), **variables},
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Result("", f"did not end within {timeout:g} s and was killed")
        output.seek(0)
        printed = output.read(_LARGEST).decode(errors="replace")
        if status == 0:
            return Result(printed, "")
        errors.seek(0)
        said = " ".join(errors.read(_LARGEST).decode(errors="replace").split())[:_SHOWN]
        reason = f"failed with status {status}" if status > 0 else f"was ended by signal {-status}"
        return Result(printed, f"{reason}: {said}" if said else reason)
