from __future__ import annotations

from typing import Any

import pytest
from test_topology import build

from kubewright import quarantine

FORMED = {"components": ["etcd", "kubelet"]}
BARE: dict[str, Any] = {"components": []}


def problems(facts: dict[str, Any], lost: list[str], mode: str = "quarantine") -> str:
    return "\n".join(quarantine.problems(build(), facts, dict.fromkeys(lost, "cannot be reached: timed out"), mode))


def test_a_living_cluster_goes_on_without_a_machine() -> None:
    assert problems({"master01": FORMED, "node01": FORMED}, ["node02"]) == ""
    assert problems({"master01": FORMED, "node01": FORMED, "node02": FORMED}, []) == ""


def test_it_does_not_where_the_operator_says_so() -> None:
    assert (
        problems({"master01": FORMED, "node01": FORMED}, ["node02"], "fail") == "node02: cannot be reached: timed out"
    )


def test_etcd_is_not_formed_without_a_machine() -> None:
    said = problems({"master01": BARE, "node01": BARE}, ["node02"])
    assert said.startswith("node02: cannot be reached: timed out\n")
    assert "no etcd member has been healthy yet" in said


def test_a_quorum_is_kept() -> None:
    said = problems({"master01": FORMED}, ["node01", "node02"])
    assert "etcd: 1 of 3 members can be reached (master01), 2 are a quorum" in said
    assert "kube_master" not in said


def test_a_master_is_needed() -> None:
    assert "kube_master: master01 cannot be reached" in problems({"node01": FORMED, "node02": FORMED}, ["master01"])


def test_machines_outside_of_the_limit_are_not_missed() -> None:
    assert problems({"node01": FORMED}, ["node02"]) == ""
    # A member alone, away: whether etcd is formed is known by nobody who was asked.
    assert problems({}, ["node02"]) == ""


def test_only_who_cannot_be_reached_is_left_out() -> None:
    replies = {
        "a": {"facts": FORMED},
        "b": {"unreachable": True, "msg": "timed\nout"},
        "c": {"failed": True, "msg": "Missing sudo password"},
        "d": None,
    }
    assert quarantine.answers(replies) == (
        {"a": FORMED},
        {"b": "cannot be reached: timed out"},
        {"c": "cannot be asked: Missing sudo password"},
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            'Data could not be sent to remote host "10.0.0.1". Make sure this host can be reached over ssh: ssh: no',
            "ssh: no",
        ),
        ("Invalid/incorrect password:\r\n  denied", "Invalid/incorrect password: denied"),
    ],
)
def test_reasons_are_ssh_s_own(reason: str, expected: str) -> None:
    assert quarantine.said(reason) == expected
