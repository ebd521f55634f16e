from __future__ import annotations

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
