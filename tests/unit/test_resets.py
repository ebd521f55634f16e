from __future__ import annotations

from typing import Any

import pytest

from kubewright import resets
from kubewright.errors import UserError
from kubewright.machine.leavings import ORDER

GROUPS = {"etcd": ["m1", "n1", "n2"], "kube_master": ["m1"], "kube_node": ["n1", "n2"]}


def test_without_a_name_it_is_about_everything() -> None:
    assert resets.selection(["all"], [], [], []) == []
    assert resets.parts([])["rest"] == ["all"]
    assert [name for names in resets.PARTS.values() for name in names] == list(ORDER)


def test_names_are_those_of_stages_components_and_of_what_machines_have() -> None:
    assert resets.selection(["master"], [], ["kubelet", "timer"], ["timer"]) == [
        "kubelet",
        "timer",
        "kube-scheduler",
        "kube-controller-manager",
        "kube-apiserver",
    ]
    assert resets.parts(["timer", "etcd", "pki"]) == {
        "nodes": [],
        "masters": [],
        "etcd": ["etcd"],
        "rest": ["pki", "timer"],
    }
    assert resets.selection(["etcd"], [], [], []) == list(resets.PARTS["etcd"])
    assert resets.selection(["lb"], [], [], []) == ["kube-lb-vip", "kube-lb-check", "kube-lb"]


def test_stages_are_made_of_components() -> None:
    assert {name for names in resets.STAGES.values() for name in names} <= set(ORDER)


def test_what_is_skipped_stays_also_out_of_everything() -> None:
    chosen = resets.selection(["all"], ["etcd", "sysprep"], [], ["timer"])
    assert set(chosen) == {*ORDER, "timer"} - {*resets.PARTS["etcd"], "sysprep"}


@pytest.mark.parametrize(("name", "hint"), [("kubelt", "did you mean kubelet"), ("xyz", "there are kube-proxy, ")])
@pytest.mark.parametrize("how", ["tag", "skipped", "variable"])
def test_a_name_that_is_none_removes_nothing(name: str, hint: str, how: str) -> None:
    tags, skipped, wanted = (
        ([name], [], []) if how == "tag" else (["all"], [name], []) if how == "skipped" else ([], [], [name])
    )
    with pytest.raises(UserError, match=f"'{name}' is no component: nothing has been removed") as caught:
        resets.selection(tags, skipped, wanted, [])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("limited", "members", "chosen", "says"),
    [
        (["m1", "n1", "n2"], ["m1", "n1", "n2"], [], []),
        (["n1"], ["n1"], [], ["remove.yml -e machine=n1"]),
        (["n1", "n2"], ["n1", "n2"], [], ["1 of 3 etcd members would be left, and 2 are a quorum"]),
        (["n1"], ["n1"], ["kubelet"], []),
        # Not a member yet, or not any more.
        (["n1"], [], [], []),
        (["m1"], [], [], ["no master would be left for n1, n2"]),
        (["m1"], [], ["kube-proxy"], []),
        (["m1", "n1"], ["m1", "n1"], [], ["2 are a quorum", "no master would be left for n2"]),
    ],
)
def test_who_stays_is_not_broken(limited: list[str], members: list[str], chosen: list[str], says: list[str]) -> None:
    found = resets.refusals(GROUPS, limited, members, chosen)
    assert len(found) == len(says)
    for problem, words in zip(found, says, strict=True):
        assert words in problem


@pytest.mark.parametrize(
    ("limited", "chosen", "mode", "refused"),
    [
        (["lb1", "lb2"], [], "auto", True),
        (["lb1", "lb2", "n1"], ["kube-lb-vip"], "vip", True),
        (["lb1"], [], "auto", False),
        (["lb1", "lb2"], ["sysprep"], "auto", False),
        # The API is reached by another way already.
        (["lb1", "lb2"], [], "local_proxy", False),
        (["lb1", "lb2", "m1", "n1", "n2"], [], "auto", False),
    ],
)
def test_the_last_load_balancers_stay_as_long_as_somebody_uses_them(
    limited: list[str], chosen: list[str], mode: str, refused: bool
) -> None:
    found = resets.refusals({**GROUPS, "lb": ["lb1", "lb2"]}, limited, [], chosen, mode)
    assert ["no load balancer would be left for" in problem for problem in found] == ([True] if refused else [])


def test_what_is_confirmed_says_whether_data_goes() -> None:
    assert resets.doing([], ["m1"], data=True) == "removes everything of the cluster, with all its data, from m1"
    assert resets.doing(["etcd"], ["m1", "n1"], data=False) == "removes etcd (data is kept) from m1, n1"
    assert resets.doing(["kubelet"], ["n1"], data=False) == "removes kubelet from n1"


def test_the_summary_names_every_machine() -> None:
    results = {
        "m1": [{"steps": ["a", "b"], "left": ["x"]}, {"steps": ["b"]}, {}, {}],
        "n1": [{"steps": []}] * 4,
        "n2": [{"failed": True}],
        "n3": [{"unreachable": True}],
    }
    title, lines = resets.closing(results, ["n3"], whole=True, check=False)
    assert title == "Some machines are not done"
    assert lines == [
        "m1: 2 things removed or put back",
        "m1: left: x",
        "n1: nothing is left",
        "n2: not finished; the same command again goes on",
        "n3: not reached, nothing done; the same command again does it",
    ]
    done: dict[str, list[dict[str, Any]]] = {"n1": [{"steps": ["a"]}] * 4}
    assert resets.closing(done, [], whole=True, check=False)[0] == "The machines are bare"
    assert resets.closing(done, [], whole=False, check=False)[0] == "The components are removed"
    assert resets.closing(done, [], whole=True, check=True)[0] == "This would be removed"


def test_a_machine_with_data_of_a_member_is_not_bare() -> None:
    left = "/data/member: data of an etcd member, and no record says that it is ours"
    results = {
        "n1": [{"steps": []}] * 3 + [{"steps": [], "left": [left], "member": True}],
        "n2": [{"member": True}, {}, {}, {}],
    }
    assert resets.closing(results, [], whole=True, check=False) == (
        "The components are removed",
        ["n1: nothing was done", f"n1: left: {left}", "n2: nothing is left"],
    )
    del results["n1"]
    assert resets.closing(results, [], whole=True, check=False)[0] == "The machines are bare"


@pytest.mark.parametrize("results", [[], [{"steps": ["a"]}], [{}, {}, {}, {"unreachable": True}]])
def test_a_machine_is_done_only_with_all_parts(results: list[dict[str, Any]]) -> None:
    assert resets.closing({"n1": results}, [], whole=True, check=False) == (
        "Some machines are not done",
        ["n1: not finished; the same command again goes on"],
    )
