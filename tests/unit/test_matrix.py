from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime

from kubewright import matrix


def test_answers_are_read_from_what_the_script_prints() -> None:
    output = "ping 10.244.1.2 0 0.123\nping 10.244.2.2 1\nhttp 10.0.0.9 0\nnoise\n"
    results = matrix.read_answers("pod a", output, {"10.244.1.2": "pod b"})
    assert [(r.target, r.ok, r.milliseconds) for r in results] == [
        ("pod b", True, 0.123),
        ("10.244.2.2", False, None),
        ("10.0.0.9", True, None),
    ]


def test_the_script_is_posix_and_tells_lost_from_answered() -> None:
    script = matrix.probe_script(["127.0.0.1", "127.0.0.1.bad"], "")
    reply = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    results = matrix.read_answers("here", reply.stdout, {})
    assert [r.ok for r in results] == [True, False]
    assert results[0].milliseconds is not None


def test_a_lost_pair_stands_out() -> None:
    results = [
        matrix.Result("pod a", "pod b", "1", "ping", ok=True, milliseconds=0.5),
        matrix.Result("pod b", "pod a", "2", "ping", ok=False),
    ]
    text = matrix.table(results)
    assert "LOST" in text
    assert "0.50 ms" in text
    assert json.loads(matrix.report(results, [], ["API server v1.20.2"]))["ok"] is False


def test_duplicate_addresses() -> None:
    assert matrix.duplicates({"a": "172.17.0.2", "b": "172.17.0.2"}) == [
        "172.17.0.2 is the address of pods on a, b",
    ]


def test_versions_are_what_the_cluster_says() -> None:
    info = {
        "kubeletVersion": "v1.20.2",
        "kubeProxyVersion": "v1.20.2",
        "containerRuntimeVersion": "docker://20.10.24",
        "osImage": "Debian GNU/Linux 12",
        "kernelVersion": "6.1",
    }
    node = {"metadata": {"name": "node01"}, "status": {"nodeInfo": info}}
    assert matrix.versions({"gitVersion": "v1.20.2"}, [node]) == [
        "API server v1.20.2",
        "node01: kubelet v1.20.2, kube-proxy v1.20.2, docker://20.10.24, Debian GNU/Linux 12, Linux 6.1",
    ]


def test_pods_of_killed_runs_are_removed_and_those_of_running_ones_not() -> None:
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    items = [
        {"metadata": {"name": "own", "creationTimestamp": "2026-01-01T11:59:30Z"}},
        {"metadata": {"name": "of-somebody-else", "creationTimestamp": "2026-01-01T11:58:00Z"}},
        {"metadata": {"name": "killed", "creationTimestamp": "2026-01-01T09:00:00Z"}},
    ]
    assert matrix.leftovers(items, "own", now) == ["own", "killed"]
    assert matrix.leftovers(items, "", now) == ["killed"]
