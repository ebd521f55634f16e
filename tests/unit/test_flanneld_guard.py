"""The thread that looks after the traffic rules, and what becomes of threads that fail."""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flanneld.errors import RulesError
from flanneld.guard import RulesGuard
from flanneld.log import KlogFormatter
from flanneld.options import LogOptions
from flanneld.rules.engine import Rules
from flanneld.rules.kernel_state import State
from flanneld.rules.spec import RuleSpec
from flanneld.threads import guard_threads

SPEC = RuleSpec({4: (ipaddress.ip_network("10.5.0.0/16"), ipaddress.ip_network("10.5.66.0/24"))}, True, True)

OPTIONS = LogOptions()


class Scripted(Rules):
    """Rules whose next looks do what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.next: Callable[[], list[str]] = list
        self.looks = 0

    def remove(self, spec: RuleSpec | None = None) -> list[str]:
        del spec
        return []

    def fingerprint(self) -> State:
        return None

    def _prepare(self, spec: RuleSpec) -> None:
        del spec

    def _repair(self, spec: RuleSpec, *, last: bool) -> list[str]:
        del spec, last
        self.looks += 1
        return self.next()

    def _other(self) -> Rules | None:
        return None


def fail(error: BaseException) -> Callable[[], list[str]]:
    def action() -> list[str]:
        raise error

    return action


def until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


@pytest.fixture
def silent_hook() -> Iterator[None]:
    before = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = before


@pytest.mark.usefixtures("silent_hook")
@pytest.mark.parametrize("error", [ValueError("odd"), OSError(12, "no memory"), RulesError("iptables said no")])
def test_the_guard_outlives_every_failure(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    rules, changes = Scripted(), threading.Event()
    guard = RulesGuard(rules, SPEC, 0.01, changes.set, bridged=False)
    assert guard.trouble
    with caplog.at_level(logging.INFO, "flanneld"):
        guard.start()
        until(lambda: not guard.trouble)
        rules.next = fail(error)
        changes.clear()
        until(lambda: bool(guard.trouble))
        assert str(error) in guard.trouble
        assert changes.wait(5)
        seen = rules.looks
        until(lambda: rules.looks > seen + 5)
        assert [one.levelname for one in caplog.records] == ["WARNING"], "said once"
        assert "\n" not in caplog.records[0].getMessage()
        rules.next = list
        until(lambda: not guard.trouble)
    assert caplog.records[-1].getMessage() == "the traffic rules are in place again"
    rules.next = fail(SystemExit())
    guard.join(5)


@pytest.mark.usefixtures("silent_hook")
def test_bridged_traffic_that_is_kept_from_the_rules_is_said_once_and_no_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flanneld.guard.check_bridge_netfilter", lambda _: "")
    monkeypatch.setattr("flanneld.guard.remark_bridge_netfilter", lambda _: "it is 0")
    rules = Scripted()
    guard = RulesGuard(rules, SPEC, 0.01, lambda: None, bridged=True)
    with caplog.at_level(logging.INFO, "flanneld"):
        guard.start()
        until(lambda: rules.looks > 5)
    assert guard.trouble == ""
    assert [one.getMessage() for one in caplog.records] == ["it is 0"]
    rules.next = fail(SystemExit())
    guard.join(5)


@pytest.mark.usefixtures("silent_hook")
def test_a_guard_that_has_ended_is_a_trouble() -> None:
    rules = Scripted()
    guard = RulesGuard(rules, SPEC, 0.01, lambda: None, bridged=False)
    guard.start()
    until(lambda: not guard.trouble)
    rules.next = fail(KeyboardInterrupt())
    guard.join(5)
    assert guard.trouble == "the traffic rules are not looked after any more"


@pytest.mark.usefixtures("silent_hook")
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_a_thread_that_fails_is_told(level: int, caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[str] = []
    guard_threads(reasons.append)
    with caplog.at_level(level, "flanneld"):
        for error in (SystemExit(1), ValueError("two\nlines")):
            thread = threading.Thread(target=fail(error), name="watch")
            thread.start()
            thread.join(5)
    assert reasons == ["a part of the daemon has failed: watch: ValueError: two\nlines"]
    first, *rest = caplog.records
    assert first.levelname == "ERROR"
    assert first.exc_info is None
    assert re.fullmatch(
        r"the thread watch has failed at test_flanneld_guard\.py:\d+: ValueError: two\nlines", first.getMessage()
    )
    assert ["Traceback" in KlogFormatter(OPTIONS).format(one) for one in rest] == [True] * (level == logging.DEBUG)
