from __future__ import annotations

from kubewright import explain


def test_a_failure_says_reason_cause_log_and_where_to_look() -> None:
    text = explain.failure(
        "node01",
        {
            "unit": "etcd.service",
            "reason": "etcd.service is failed/failed",
            "journal": ["listen tcp 192.168.80.11:2380: bind: address already in use"],
        },
    )
    assert "etcd.service on node01 did not become healthy" in text
    assert "likely cause: another process holds the port" in text
    assert "address already in use" in text
    assert "journalctl -u etcd.service" in text


def test_unknown_trouble_invents_no_cause() -> None:
    assert explain.likely_cause(["something new"]) == ""
