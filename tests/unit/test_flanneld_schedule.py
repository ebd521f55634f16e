from __future__ import annotations

from flanneld.schedule import SETTLE, Schedule


def test_reports_are_gathered_and_a_demand_is_not_kept_waiting() -> None:
    schedule = Schedule(60)
    assert schedule.at == float("inf")
    schedule.report(100)
    schedule.report(100.01)
    assert schedule.at == 100 + SETTLE
    schedule.demand(100.02)
    assert schedule.at == 100.02


def test_a_look_that_takes_long_is_seldom() -> None:
    schedule = Schedule(60)
    schedule.done(100, 100.1, failing=False)
    assert schedule.at == 160.1
    schedule.done(100, 101, failing=False)
    assert schedule.at == 301
    schedule.done(100, 100.2, failing=False)
    schedule.report(100.3)
    assert 102 < schedule.at < 103


def test_failures_are_repeated_at_lengthening_intervals() -> None:
    schedule, at, pauses = Schedule(), 100.0, []
    for _ in range(6):
        schedule.done(at, at, failing=True)
        pauses.append(schedule.at - at)
        schedule.report(at)
        assert schedule.at >= at + 1
        at += pauses[-1]
    assert pauses == [1, 2, 4, 8, 10, 10]
    schedule.done(at, at, failing=False)
    assert schedule.at == float("inf")
    schedule.done(at, at, failing=True)
    assert schedule.at == at + 1
