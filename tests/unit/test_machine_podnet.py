from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubewright.machine import podnet

WANTED = {"Network": "10.244.0.0/16"}


def state(**changes: Any) -> dict[str, Any]:
    peer = {"machine": {"4": "192.0.2.2"}, "ignored": "", "ways": [{"subnet": "10.244.2.0/24"}]}
    return {"running": True, "config": WANTED, "trouble": "", "differences": [], "peers": [peer], **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"running": False, "reason": "no socket"}, "flanneld does not answer: no socket"),
        ({"config": {}}, "flanneld still has the configuration of before"),
        ({"trouble": "the rules cannot be set"}, "flanneld is not ready: the rules cannot be set"),
        ({"differences": ["a route is missing"]}, "the kernel differs: a route is missing"),
        ({"peers": []}, "flanneld has no lease of 192.0.2.2"),
        (
            {"peers": [{"machine": {"4": "192.0.2.2"}, "ignored": "its backend is host-gw, not vxlan", "ways": []}]},
            "flanneld does not use the lease of 192.0.2.2: its backend is host-gw, not vxlan",
        ),
        (
            {"peers": [{"machine": {"4": "192.0.2.2"}, "ignored": "", "ways": []}]},
            "there is no route to the pods of 192.0.2.2",
        ),
    ],
)
def test_what_a_node_still_lacks(changes: dict[str, Any], reason: str) -> None:
    assert podnet.missing(state(**changes), WANTED, ["192.0.2.2"]) == reason


def test_leases_that_are_not_used_are_no_peers() -> None:
    ignored = {"machine": {"4": "192.0.2.9"}, "ignored": "its backend is not named, not vxlan", "ways": []}
    assert podnet.peers(state(peers=[*state()["peers"], ignored])) == ["192.0.2.2"]


def test_the_own_address_is_that_of_the_bridge() -> None:
    assert podnet.own({"lease": {"subnets": ["10.244.7.0/24", "fd00::/64"]}}) == "10.244.7.1"
    assert podnet.own({"lease": {"subnets": ["10.244.7.64/26"]}}) == "10.244.7.65"
    assert podnet.own({}) == ""


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"all": 0, "eth0": 0, "default": 0}, []),
        ({"all": 2, "eth0": 1, "default": 1, "flannel.1": 1}, []),
        ({"all": 0, "eth0": 1, "default": 2}, ["net.ipv4.conf.eth0.rp_filter"]),
        (
            {"all": 1, "eth0": 2, "default": 2, "flannel.1": 0},
            ["net.ipv4.conf.flannel/1.rp_filter"],
        ),
    ],
)
def test_where_the_kernel_drops_what_comes_another_way(
    tmp_path: Path, values: dict[str, int], names: list[str]
) -> None:
    for device, value in values.items():
        (tmp_path / device).mkdir()
        (tmp_path / device / "rp_filter").write_text(f"{value}\n")
    assert podnet.strict("eth0", str(tmp_path)) == names


def test_nothing_is_restarted_where_pods_do_not_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    restarted: list[str] = []
    answers = {"ok": False}
    monkeypatch.setattr(podnet, "status", lambda: state(lease={"subnets": ["10.244.1.0/24"]}))
    monkeypatch.setattr(podnet.systemd, "restart", restarted.append)
    monkeypatch.setattr(podnet.probe, "ping", lambda *_: answers)

    def follow() -> dict[str, Any]:
        return podnet.follow({"Network": "10.244.0.0/15"}, True, [], ["10.244.2.2"], False, 0.3)

    done = follow()
    assert "was not restarted, because before that already the pod 10.244.2.2 does not answer" in done["failure"]
    assert (done["restarted"], restarted) == ([], [])
    answers["ok"] = True
    assert follow()["restarted"] == restarted == ["flanneld.service"]
