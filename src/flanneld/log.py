"""Log lines in klog's form on standard error: `I1120 23:45:52.212052    2523 manager.py:199] text`.

Tools that collect Go daemons' logs parse this form. Nothing secret is ever passed to a log call.
"""

from __future__ import annotations

import logging
import sys
import time

_LETTERS = {
    logging.DEBUG: "I",
    logging.INFO: "I",
    logging.WARNING: "W",
    logging.ERROR: "E",
    logging.CRITICAL: "F",
}


class KlogFormatter(logging.Formatter):
    """Formats one record as klog does: level letter, month and day, time with microseconds, pid, file:line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; an exception's traceback follows on lines of its own."""
        local = time.localtime(record.created)
        stamp = time.strftime("%m%d %H:%M:%S", local) + f".{int(record.created % 1 * 1e6):06d}"
        letter = _LETTERS.get(record.levelno, "I")
        line = f"{letter}{stamp} {record.process:7d} {record.filename}:{record.lineno}] {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


logger = logging.getLogger("flanneld")


def set_up(verbosity: int) -> None:
    """Send the daemon's lines to standard error; `verbosity` >= 1 (flag -v) adds the debugging ones."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KlogFormatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.INFO)


class Repeated:
    """Logs a failure that comes again and again: at once when its text changes, else once a minute.

    An etcd outage of hours must not fill a disk, nor may it be silent.
    """

    def __init__(self, every: float = 60.0) -> None:
        self._every = every
        self._text = ""
        self._at = 0.0

    def warn(self, text: str) -> None:
        """Log `text` as a warning unless the same text was logged less than `every` seconds ago."""
        now = time.monotonic()
        if text != self._text or now - self._at >= self._every:
            logger.warning(text)
            self._text, self._at = text, now

    def clear(self, text: str = "") -> None:
        """Forget the failure; `text` is logged when there was one."""
        if self._text and text:
            logger.info(text)
        self._text, self._at = "", 0.0
