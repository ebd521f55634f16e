"""Progress that does not fall silent: what takes long is said again, with how long it has been under way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

_SILENCE_SECONDS = 10.0


class Heartbeat:
    """Says lines, and while it is `beating` repeats the last one whenever nothing else was said for some seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._line, self._since = "", time.monotonic()

    def __call__(self, line: str) -> None:
        """Say a line."""
        self._line, self._since = line, time.monotonic()
        self._say(line)

    @contextlib.contextmanager
    def beating(self, doing: str) -> Iterator[None]:
        """Repeat the last line until the end of the block; `doing` stands in for it until one was said."""
        self._line, self._since = doing, time.monotonic()
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat(self, ended: threading.Event) -> None:
        beaten = 0.0
        # Nobody may read any more; whoever says the next line learns it, and knows what to do.
        with contextlib.suppress(OSError):
            while not ended.wait(self._until_due(beaten)):
                if self._until_due(beaten) > 0:
                    continue
                beaten = time.monotonic()
                minutes, seconds = divmod(int(beaten - self._since), 60)
                self._say(f"{self._line}, {minutes} min {seconds:02} s")

    def _until_due(self, beaten: float) -> float:
        return max(0.0, max(beaten, self._since) + _SILENCE_SECONDS - time.monotonic())
