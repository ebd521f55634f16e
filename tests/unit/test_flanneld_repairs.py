from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flanneld import record
from flanneld.dataplane import Desired, Ownership, PutRoute, Route
from flanneld.record import Record
from flanneld.repairs import Repairs

STEPS = [PutRoute(Route("10.5.52.0/24", "flannel.1", "10.5.52.0", onlink=True))]
PLAIN = Ownership({}, "eth0", {4: 24}, plain=True)


def wanted(*subnets: str, ownership: Ownership = PLAIN) -> Desired:
    routes = {one: Route(one, "eth0", "192.168.60.2") for one in subnets}
    return Desired(ownership, routes={**routes, "10.5.1.0/24": Route("10.5.1.0/24", "flannel.1", "10.5.1.0")})


def test_repairs_without_end_are_told_a_few_times_and_then_in_numbers(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    caplog.set_level(logging.INFO, "flanneld")
    now = [1000.0]
    repairs = Repairs(lambda: now[0])
    for _ in range(5 * 60):
        now[0] += 1.0
        repairs.repaired(STEPS)
    assert len(caplog.records) < 10 + 6
    assert "60 more repairs within the last minute; the last one: set route" in caplog.records[-1].getMessage()
    assert "does not last: something else undoes it" in repairs.endless()
    now[0] += 60.0
    assert repairs.endless() == ""


def test_a_few_repairs_are_no_fight() -> None:
    repairs = Repairs(lambda: 0.0)
    for _ in range(29):
        repairs.repaired(STEPS)
    assert repairs.endless() == ""


def test_the_record_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    first = Record(file)
    assert first.past.made is None, "nobody has kept one"
    first.keep(wanted("10.5.52.0/24"), exact=True)
    second = Record(file)
    assert second.past.made == {("10.5.52.0/24", "192.168.60.2")}
    second.keep(wanted("10.5.53.0/24"), exact=False)
    assert second.past.made == {("10.5.52.0/24", "192.168.60.2"), ("10.5.53.0/24", "192.168.60.2")}
    assert record.read(file) == second.past.made
    second.keep(wanted(), exact=True)
    assert record.read(file) == frozenset(), "empty, but known"


def test_no_routes_at_all_are_a_record_too(tmp_path: Path) -> None:
    Record(tmp_path / "subnet.env").keep(wanted(), exact=True)
    assert record.read(tmp_path / "subnet.env") == frozenset()


def test_without_plain_routes_no_record_is_written(tmp_path: Path) -> None:
    Record(tmp_path / "subnet.env").keep(wanted(ownership=PLAIN._replace(plain=False)), exact=True)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_not_text_is_none(tmp_path: Path) -> None:
    record.path(tmp_path / "subnet.env").write_bytes(b"\xff\xfe")
    assert record.read(tmp_path / "subnet.env") is None


def test_networks_of_before_are_known_until_all_is_set(tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    file.write_text("FLANNEL_NETWORK=10.9.0.0/16\n")
    made = Record(file)
    assert [str(one) for one in made.past.former] == ["10.9.0.0/16"]
    made.keep(wanted(), exact=False)
    assert made.past.former
    made.keep(wanted(), exact=True)
    assert made.past.former == ()
