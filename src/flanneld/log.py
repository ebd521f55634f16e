"""Log lines in klog's form on standard error: `I1120 23:45:52.212052    2523 manager.py:199] text`, or in JSON.

Tools that collect Go daemons' logs parse the first form. Nothing secret is ever passed to a log call. One record is
one line, whatever is in it, and one write: a disk that is full or a reader that is gone costs lines, never the daemon.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from typing import TYPE_CHECKING, Dict, Tuple

if TYPE_CHECKING:
    from flanneld.options import LogOptions

_LETTERS = {
    logging.WARNING: "W",
    logging.ERROR: "E",
    logging.CRITICAL: "F",
}
_WORDS = {
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_STDERR = 2
_FIRST, _LONGEST = 60.0, 1800.0  # seconds until the same failure is told again
_TEXTS = 16  # of one failure, that are remembered

logger = logging.getLogger("flanneld")


def verbose(level: int) -> int:
    """Return the logging level of lines that -v=`level` and above shows: `logger.log(verbose(2), ...)`.

    `logger.debug` is level 1.
    """
    return max(logging.DEBUG - (level - 1), 1)


def set_up(options: LogOptions) -> None:
    """Send the daemon's lines to standard error, those that `options` ask for."""
    handler = _Handler(options)
    if options.json:
        handler.setFormatter(JsonFormatter(options))
    else:
        handler.setFormatter(KlogFormatter(options))
    logger.handlers[:] = [handler]
    logger.propagate = False
    most = max([options.verbosity, *(level for _, level in options.modules)])
    logger.setLevel(verbose(most) if most > 0 else logging.INFO)


class KlogFormatter(logging.Formatter):
    """Formats one record as klog does: level letter, month and day, time with microseconds, pid, file:line."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; an exception's traceback follows on lines of its own."""
        local = time.localtime(record.created)
        stamp = time.strftime("%m%d %H:%M:%S", local) + f".{int(record.created % 1 * 1e6):06d}"
        letter = _LETTERS.get(record.levelno, "I")
        line = (
            f"{letter}{stamp} {record.process:7d} {record.filename}:{record.lineno}] {_one_line(record.getMessage())}"
        )
        stack = self._stack(record)
        return f"{line}\n{stack}" if stack else line

    def _stack(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return self.formatException(record.exc_info)
        if self._options.backtrace_at == (record.filename, record.lineno):
            import traceback  # noqa: PLC0415 - only who hunts a fault needs it

            return "".join(traceback.format_stack()).rstrip()
        return ""


class JsonFormatter(KlogFormatter):
    """Formats one record as an object: ts (RFC 3339, UTC), level (info, warning, error, fatal), caller, msg, stack."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        import json  # noqa: PLC0415 - only this form needs it

        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: Dict[str, str] = {
            "ts": f"{stamp}.{int(record.created % 1 * 1e6):06d}Z",
            "level": _WORDS.get(record.levelno, "info"),
            "caller": f"{record.filename}:{record.lineno}",
            "msg": record.getMessage(),
        }
        stack = self._stack(record)
        if stack:
            fields["stack"] = stack
        return json.dumps(fields)


class _Handler(logging.Handler):
    """Writes lines to standard error, bypassing every buffer."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options
        self._levels: Dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO and record.levelno < verbose(self._verbosity(record.pathname)):
            return
        rest = memoryview(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        try:
            while rest:
                rest = rest[os.write(_STDERR, rest) :]
        except OSError:
            pass  # nobody reads, or there is no space: there is nowhere left to say so

    def _verbosity(self, path: str) -> int:
        """Return the verbosity of the module of a source file: that of the first pattern that matches, else -v."""
        found = self._levels.get(path)
        if found is None:
            options = self._options
            found = next((level for pattern, level in options.modules if _matches(path, pattern)), options.verbosity)
            self._levels[path] = found
        return found


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a pattern is for a module: `manager`, or `subnet/*` with as many directories as it names."""
    depth = pattern.count("/") + 1
    parts = path[: -len(".py")].split("/") if path.endswith(".py") else path.split("/")
    return fnmatch.fnmatchcase("/".join(parts[-depth:]), pattern)


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\t" else repr(one)[1:-1] for one in text)


class Repeated:
    """Logs a failure that comes again and again: at once, then after 1, 2, 4 ... and at last every 30 minutes.

    An etcd outage of days must not fill a disk, nor may it be silent. Every text has intervals of its own, for two
    members that are away fail in turn and in different words.
    """

    def __init__(self) -> None:
        self._told: Dict[str, Tuple[float, float]] = {}  # when last, and the seconds until it is told again

    def warn(self, text: str) -> None:
        """Log `text` as a warning unless it was logged a short time ago."""
        now = time.monotonic()
        told = self._told.get(text)
        if told is not None and now - told[0] < told[1]:
            return
        logger.warning("%s", text, stacklevel=2)
        self._told.pop(text, None)
        self._told[text] = now, _FIRST if told is None else min(told[1] * 2, _LONGEST)
        if len(self._told) > _TEXTS:
            del self._told[next(iter(self._told))]  # the one that was told the longest time ago

    def clear(self, text: str = "") -> None:
        """Forget the failure; `text` is logged when there was one."""
        if self._told and text:
            logger.info("%s", text, stacklevel=2)
        self._told.clear()
