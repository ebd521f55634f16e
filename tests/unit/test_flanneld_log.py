from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flanneld import log
from flanneld.log import Repeated, logger, set_up, verbose
from flanneld.options import LogOptions


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_klog_lines(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogOptions())
    logger.info("one %d", 1)
    logger.warning("two")
    logger.error("three")
    logger.critical("four")
    logger.debug("not shown")
    lines = capfd.readouterr().err.splitlines()
    assert [line[0] for line in lines] == list("IWEF")
    assert re.fullmatch(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ test_flanneld_log\.py:\d+\] one 1", lines[0])
    assert int(lines[0].split()[2]) == os.getpid()


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogOptions(json=True))
    logger.warning('a "quoted" text\nof two lines \udcff')
    logger.critical("the end")
    first, last = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("ts"))
    assert re.fullmatch(r"test_flanneld_log\.py:\d+", first.pop("caller"))
    assert first == {"level": "warning", "msg": 'a "quoted" text\nof two lines \udcff'}
    assert last["level"] == "fatal"


def test_a_record_is_one_line_whatever_is_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogOptions())
    logger.info("%s", "lease\nE1120 forged\r\x1b[2J\tä\udcff")
    (line,) = capfd.readouterr().err.split("\n")[:-1]
    assert line.endswith("lease\\nE1120 forged\\r\\x1b[2J\tä\\udcff")


@pytest.mark.parametrize(("verbosity", "shown"), [(0, ""), (1, "1"), (2, "12"), (4, "124"), (30, "1249")])
def test_verbosity(capfd: pytest.CaptureFixture[str], verbosity: int, shown: str) -> None:
    set_up(LogOptions(verbosity))
    logger.debug("1")
    for level in (2, 4, 9):
        logger.log(verbose(level), str(level))
    assert "".join(line[-1] for line in capfd.readouterr().err.splitlines()) == shown


@pytest.mark.parametrize(
    ("modules", "verbosity", "shown"),
    [
        ((("manager", 2),), 0, ["/x/flanneld/subnet/manager.py"]),
        ((("subnet/*", 2),), 0, ["/x/flanneld/subnet/manager.py", "/x/flanneld/subnet/etcd.py"]),
        ((("*tcd", 2),), 0, ["/x/flanneld/subnet/etcd.py"]),
        ((("manager", 0),), 2, ["/x/flanneld/subnet/etcd.py", "/x/flanneld/rules/manager2.py"]),
        ((("manager", 0), ("*", 2)), 0, ["/x/flanneld/subnet/etcd.py", "/x/flanneld/rules/manager2.py"]),
        ((("flanneld", 9),), 0, []),
    ],
)
def test_verbosity_by_module(
    capfd: pytest.CaptureFixture[str], modules: tuple[tuple[str, int], ...], verbosity: int, shown: list[str]
) -> None:
    set_up(LogOptions(verbosity, modules))
    for path in ("/x/flanneld/subnet/manager.py", "/x/flanneld/subnet/etcd.py", "/x/flanneld/rules/manager2.py"):
        for level in (verbose(2), logging.INFO):
            name = "always" if level == logging.INFO else path
            logger.handle(logging.LogRecord("flanneld", level, path, 1, name, (), None))
    lines = [line.split("] ")[1] for line in capfd.readouterr().err.splitlines()]
    assert [line for line in lines if line != "always"] == shown
    assert lines.count("always") == 3


def test_a_stack_where_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    line = sys._getframe().f_lineno + 3
    set_up(LogOptions(backtrace_at=("test_flanneld_log.py", line)))
    for _ in range(1):
        logger.info("here")
        logger.info("there")
    text = capfd.readouterr().err
    assert text.index("] here\n") < text.index("in test_a_stack_where_it_is_asked_for") < text.index("] there\n")
    assert text.count("in test_a_stack_where_it_is_asked_for") == 1


def test_tracebacks_of_faults(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogOptions(json=True))
    try:
        int("a fault")
    except ValueError:
        logger.exception("broken")
    assert "'a fault'" in json.loads(capfd.readouterr().err)["stack"]


@pytest.mark.parametrize("stderr", ["/dev/full", "|", "-"])
def test_nobody_reads_the_log(stderr: str) -> None:
    """A full disk, a pipe without a reader, a closed descriptor: the process goes on and ends with its own status."""
    code = (
        "from flanneld.log import logger, set_up; from flanneld.options import LogOptions; set_up(LogOptions(9))\n"
        "for n in range(1000): logger.info('x' * 200)\n"
        "print('went on', flush=True)\nraise SystemExit(7)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    target = {"/dev/full": os.open("/dev/full", os.O_WRONLY), "|": writer, "-": writer}[stderr]

    def prepare() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if stderr == "-":
            os.close(2)

    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=target,
        preexec_fn=prepare,
        text=True,
        check=False,
        timeout=30,
    )
    os.close(writer)
    assert (done.stdout, done.returncode) == ("went on\n", 7)


def test_repeated_failures_are_told_at_lengthening_intervals(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    set_up(LogOptions())
    repeated = Repeated()
    repeated.clear("not said: there was no failure")
    for second in range(3 * 3600):
        # Two members in turn, and a third that is asked now and then.
        repeated.warn(("down %", "down for another reason")[second % 2])
        if second % 600 == 0:
            repeated.warn("down, too")
        now[0] += 1
    lines = capfd.readouterr().err.splitlines()
    assert all(" test_flanneld_log.py:" in line for line in lines)  # the caller, not the helper
    told = [line.split("] ")[1] for line in lines]
    # After 0, 1, 3, 7, 15, 31, 61, 91, 121 and 151 minutes.
    assert {text: told.count(text) for text in told} == {"down %": 10, "down for another reason": 10, "down, too": 9}
    repeated.clear("up again")
    repeated.clear("up again")
    repeated.warn("down %")
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["up again", "down %"]


def test_failures_in_ever_other_words_fill_no_memory() -> None:
    repeated = Repeated()
    for number in range(1000):
        repeated.warn(f"number {number}")
    assert len(repeated._told) < 20
