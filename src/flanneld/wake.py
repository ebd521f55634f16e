"""How other threads and signal handlers get the main thread's attention."""

from __future__ import annotations

import contextlib
import os
import select
import time


class Wake:
    """A pipe that interrupts a select, and whether the daemon shall stop.

    Only a flag and a write: a lock may be held by the very thread that a signal handler interrupts.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self.stopping = False

    def up(self) -> None:
        """Interrupt the select, now or the next one."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._writer, b".")

    def stop(self) -> None:
        """Have everything end."""
        self.stopping = True
        self.up()

    def drain(self) -> None:
        """Forget the wake-ups seen."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the daemon shall stop."""
        deadline = time.monotonic() + seconds
        while not self.stopping:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.reader], [], [], left)[0]:
                return
            self.drain()
