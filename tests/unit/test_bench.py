from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest

from kubewright import bench

HOSTS: dict[str, Any] = {
    "all": {
        "hosts": {f"node0{i}": {"ansible_host": f"192.168.80.1{i}"} for i in (1, 2)},
        "children": {"kube_node": {"hosts": {"node01": None, "node02": None}}},
    }
}


def test_further_workers_get_further_addresses() -> None:
    data = bench.inventory_with(HOSTS, 6)["all"]
    assert len(data["children"]["kube_node"]["hosts"]) == 6
    assert data["hosts"]["node06"] == {"ansible_host": "192.168.80.16"}
    assert bench.inventory_with(HOSTS, 2) == HOSTS


def test_the_report_counts_what_must_be_nothing() -> None:
    tasks = [{"stage": "Etcd", "task": f"etcd : {number}", "seconds": number / 10} for number in range(10)]
    run = {"seconds": 40.0, "stages": {"Etcd": 3.0}, "hosts": {"a": {"ok": 12, "changed": 0}}, "tasks": tasks}
    text = bench.report([bench.Round(2, 8.25, run, {**run, "seconds": 11.0}, ("a etcd.service",), 1, 50)])
    assert "| 2 | 1 | 8.2 s | 40.0 s | 11.0 s | 0 | 1 | 1 of 50 | 12 |" in text
    assert "| Etcd | 3.0 | 3.0 |" in text
    assert "| Etcd | etcd : 9 | 0.9 |" in text
    assert "| | all others | 0.1 |" in text


def test_no_ping_is_not_a_good_figure() -> None:
    assert bench.pings("22 packets transmitted, 21 packets received, 4% packet loss") == (22, 21)
    for output in ("", "error: unable to upgrade connection", "0 packets transmitted, 0 packets received"):
        with pytest.raises(RuntimeError, match="no ping was sent"):
            bench.pings(output)


def test_the_stamp_shows_what_was_measured() -> None:
    arguments = argparse.Namespace(inventory=Path("inventories/lab"), rounds=1, workers=[2, 6])
    assert bench.typed(arguments) == "python -m kubewright.bench -i inventories/lab --rounds 1 --workers 2 6"


def test_a_run_that_fails_does_not_wait_for_the_ping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = tmp_path / "python"
    endless.write_text("#!/bin/sh\nexec sleep 30\n")
    endless.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(endless))

    def fail(_: bench.Bench) -> None:
        raise RuntimeError("the run failed")

    monkeypatch.setattr(bench.Bench, "_site", fail)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="the run failed"):
        bench.Bench(tmp_path, tmp_path, tmp_path)._site_while_pinging("pod", "10.0.0.1")
    assert time.monotonic() - begin < 10
