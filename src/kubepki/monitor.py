"""`kubepki check`: judges the certificates below some paths, with the exit codes of a monitoring plugin."""

from __future__ import annotations

import argparse
import math
import os
import stat
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from kubepki import check, report, store, survey
from kubepki.check import EXIT_CODES, Limits
from kubepki.errors import KubepkiError, StoreError

_EPILOGUE = """\
exit codes: 0 ok, 1 warning, 2 critical (ended, damaged, or another key's), 3 unknown (nothing found, not readable,
a wrong option). docs/pki-check.md says what is found, and how to use it with Prometheus.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; 1 or 2 would be a state of certificates."""

    def error(self, message: str) -> NoReturn:
        """End with the code for `unknown`."""
        sys.stderr.write(f"kubepki: check: {message}\n  kubepki check -h shows the options\n")
        raise SystemExit(EXIT_CODES["unknown"])


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 <= days <= 36500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 0 to 36500")
    return days


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kubepki check",
        description="Find every certificate in files, directories and kubeconfigs; say what ends and what is wrong.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a directory with all that is below it")
    parser.add_argument("--warn", type=_days, default=30.0, metavar="DAYS", help="warn below these days (default: 30)")
    parser.add_argument("--critical", type=_days, default=7.0, metavar="DAYS", help="critical below (default: 7)")
    parser.add_argument(
        "--format", choices=("table", "json", "prometheus"), default="table", help="what to write (default: table)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="replace this file instead of writing to stdout")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="GLOB", help="leave out paths or names like this; repeatable"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command: 0, 1, 2 or 3."""
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        return _check(options)
    except BrokenPipeError:
        raise
    except KubepkiError as error:
        sys.stderr.write(f"kubepki: check: {error}\n")
    except OSError as error:
        sys.stderr.write(f"kubepki: check: {error.filename or 'output'}: {error.strerror}\n")
    return EXIT_CODES["unknown"]


def _check(options: argparse.Namespace) -> int:
    if options.critical > options.warn:
        raise KubepkiError(
            f"--critical {options.critical:g} is more than --warn {options.warn:g}",
            "what is critical was a warning before",
        )
    if options.output:
        _refuse_devices(options.output)
    found = survey.find(options.paths, options.ignore)
    judgement = check.judge(found, datetime.now(UTC), Limits(options.warn, options.critical))
    text = _text(judgement, options)
    if options.output:
        # Whole or not at all, and readable by those who collect it.
        store.write(options.output, text.encode(errors="backslashreplace"), 0o644)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
    return judgement.exit_code


def _text(judgement: check.Judgement, options: argparse.Namespace) -> str:
    if options.format == "json":
        return report.as_json(judgement)
    if options.format == "prometheus":
        return report.prometheus(judgement)
    colours = not options.output and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return report.table(judgement, colours=colours)


def _refuse_devices(path: Path) -> None:
    """Replacing /dev/stdout or a directory is nobody's wish."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no file"
        raise StoreError(f"--output {path} is {what}", "name a file; it is replaced as a whole")
