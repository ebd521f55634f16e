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


def test_the_line_that_tells_is_shown_however_far_above() -> None:
    journal = ["Error: unknown flag: --no-such-flag", "Usage:", *(f"  --flag-{number}" for number in range(200))]
    text = explain.failure("m", {"unit": "u.service", "reason": "it ends again and again", "journal": journal})
    assert "does not know a flag" in text
    assert "because of: Error: unknown flag: --no-such-flag" in text
    assert len(text.splitlines()) < 22


def test_unknown_trouble_invents_no_cause() -> None:
    assert explain.likely_cause(["something new"]) == ("", "")


def test_the_nearer_cause_wins() -> None:
    # What a kubelet logs on a machine with swap.
    lines = [
        "dial tcp 127.0.0.1:6443: connect: connection refused",
        "--cgroups-per-qos enabled, but --cgroup-root was not specified. defaulting to /",
        "failed to run Kubelet: running with swap on is not supported, please disable swap!",
    ]
    assert explain.likely_cause(lines)[0].startswith("swap is on")


def test_a_rollback_is_told() -> None:
    evidence = {"component": "kubelet", "unit": "kubelet.service", "reason": "it ends", "journal": ["exit 7"]}
    back = {"to": {"kubelet": "1.20.2"}, "failure": "", "refused": ""}
    said = explain.failure("node01", {**evidence, "rollback": back})
    assert "kubelet on node01 was rolled back and is healthy again: it runs kubelet 1.20.2" in said
    said = explain.failure("node01", {**evidence, "rollback": {**back, "failure": "no answer"}})
    assert "was put back to kubelet 1.20.2, and is not healthy with that either: no answer" in said
    said = explain.failure("lb01", {**evidence, "rollback": {**back, "to": {}}})
    assert "was rolled back and is healthy again: it runs with the files of before" in said
    said = explain.failure("node01", {**evidence, "rollback": {"to": {}, "failure": "", "refused": "it is too old"}})
    assert "kubelet on node01 was not rolled back: it is too old" in said
    assert "rolled" not in explain.failure("node01", {**evidence, "rollback": None})


def test_a_member_that_was_taken_out_of_etcd_is_no_trouble_of_the_network() -> None:
    lines = ["the member has been permanently removed from the cluster", "context deadline exceeded"]
    assert "remove.yml" in explain.likely_cause(lines)[0]
