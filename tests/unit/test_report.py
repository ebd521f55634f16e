from __future__ import annotations

from kubewright import report


def test_the_page_has_everything_a_user_looks_for() -> None:
    probe = {"source": "pod a", "target": "pod b", "address": "1", "kind": "ping", "ok": True, "milliseconds": 0.2}
    text = report.summary(
        {
            "seconds": 48.8,
            "stages": {"Etcd cluster": 3.1},
            "hosts": {"master01": {"ok": 12, "changed": 5, "failures": 0}},
        },
        {"ok": True, "problems": [], "versions": ["API server v1.20.2"], "results": [probe]},
        "inventories/lab",
    )
    for expected in ("master01: 12 tasks", "API server v1.20.2", "Etcd cluster", "1 probes, 0 lost", "0.20 ms"):
        assert expected in text
    assert "inventories/lab/secrets/admin.kubeconfig" in text
    assert "exec master01 -- kubectl --kubeconfig /opt/kubernetes/cfg/admin.kubeconfig" in text
