"""Draining a node; the API is a table here, the scenario `scale` has a real one."""

from __future__ import annotations

from typing import Any

import pytest

from kubewright.machine import api, drain

_BUDGET = {
    "message": "Cannot evict pod as it would violate the pod's disruption budget.",
    "details": {
        "causes": [
            {
                "reason": "DisruptionBudget",
                "message": "The disruption budget web needs 2 healthy pods and has 2 currently",
            }
        ]
    },
}


def pod(name: str, kind: str = "ReplicaSet", **changes: Any) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": name, "uid": f"uid-{name}"}
    if kind:
        metadata["ownerReferences"] = [{"kind": kind, "controller": True}]  # type: ignore[assignment]
    metadata |= changes.pop("metadata", {})
    return {"metadata": metadata, "spec": changes.pop("spec", {}), "status": {"phase": "Running"}, **changes}


class Api:
    """Nodes and pods; `grants` says how often an eviction of a pod is refused before it is granted."""

    def __init__(self, pods: list[dict[str, Any]], refusals: int = 0, silent: int = 0) -> None:
        self.node: dict[str, Any] = {"metadata": {"annotations": {}}, "spec": {}}
        self.items, self.refusals, self.silent = pods, refusals, silent
        self.evictions = [{"name": "pods/eviction", "group": "policy", "version": "v1beta1", "kind": "Eviction"}]
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[Any] = []

    def __call__(self) -> Any:
        return self

    def request(self, method: str, path: str, body: Any = None, kind: str = "") -> tuple[int, Any]:
        if self.silent:
            self.silent -= 1
            raise api.NoAnswerError("silence")
        self.asked.append((method, path))
        if method == "GET" and path == "/api/v1":
            return 200, {"resources": [{"name": "pods"}, *self.evictions]}
        if method == "GET":
            return (200, {"items": self.items}) if "pods" in path else (200, self.node)
        if method == "PATCH":
            assert kind == "application/merge-patch+json"
            self.node["spec"] |= body["spec"]
            self.node["metadata"]["annotations"] |= body["metadata"]["annotations"]
            return 200, self.node
        self.bodies.append(body)
        if method == "POST" and self.refusals:
            self.refusals -= 1
            return 429, _BUDGET
        name = path.split("/")[6]
        self.items = [item for item in self.items if item["metadata"]["name"] != name]
        return (200 if method == "DELETE" else 201), {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (drain, api):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)


def test_some_pods_stay() -> None:
    assert drain.stays(pod("a", "DaemonSet"))
    assert drain.stays(pod("a", metadata={"annotations": {"kubernetes.io/config.mirror": "x"}}))
    assert drain.stays(pod("a", status={"phase": "Succeeded"}))
    assert not drain.stays(pod("a", "StatefulSet"))


def test_pods_that_would_lose_something_are_told_all_together() -> None:
    pods = [pod("web"), pod("alone", ""), pod("cache", spec={"volumes": [{"name": "tmp", "emptyDir": {}}]})]
    with pytest.raises(drain.DrainError) as error:
        drain.leaving(pods, drain.Rules())
    assert "default/alone belongs to no controller" in str(error.value)
    assert "default/cache has data in emptyDir volumes (tmp)" in str(error.value)
    assert "kubelet_drain_emptydir_data" in str(error.value)
    assert drain.leaving(pods, drain.Rules(emptydir=True, unmanaged=True)) == pods


def test_nothing_is_cordoned_when_a_pod_may_not_go() -> None:
    api_ = Api([pod("alone", "")])
    with pytest.raises(drain.DrainError):
        drain.Drain(api_, "node01").drain(api_.node, 1, drain.Rules())
    assert [method for method, _ in api_.asked] == ["GET"]


def test_a_budget_is_asked_again_until_it_grants() -> None:
    api_ = Api([pod("web"), pod("log", "DaemonSet")], refusals=3, silent=2)
    assert drain.Drain(api_, "node01").drain(api_.node, 5, drain.Rules()) == ["default/web"]
    assert api_.node["spec"]["unschedulable"]
    assert drain.MARK in api_.node["metadata"]["annotations"]
    assert api_.bodies[-1]["apiVersion"] == "policy/v1beta1"
    assert api_.bodies[-1]["deleteOptions"]["preconditions"] == {"uid": "uid-web"}


def test_after_the_timeout_the_node_takes_pods_again_and_the_budget_is_named() -> None:
    api_ = Api([pod("web")], refusals=10_000)
    with pytest.raises(drain.DrainError) as error:
        drain.Drain(api_, "node01").drain(api_.node, 0.05, drain.Rules())
    assert "default/web: The disruption budget web needs 2 healthy pods" in str(error.value)
    assert str(error.value).endswith("node01 takes pods again")
    assert not api_.node["spec"]["unschedulable"]


@pytest.mark.parametrize("web", [pod("web"), pod("web", "")])
def test_nodes_that_were_drained_before_take_pods_again_as_well(web: dict[str, Any]) -> None:
    api_ = Api([web], refusals=10_000)
    # One node of the table is all nodes.
    api_.node = {"metadata": {"annotations": {drain.MARK: "drain"}}, "spec": {"unschedulable": True}}
    with pytest.raises(drain.DrainError, match="node01 takes pods again"):
        drain.Drain(api_, "node02").drain(api_.node, 0.05, drain.Rules(), ["node01"])
    assert ("PATCH", "/api/v1/nodes/node01") in api_.asked


def test_a_node_that_a_person_cordoned_stays_cordoned() -> None:
    api_ = Api([pod("web")], refusals=10_000)
    api_.node["spec"]["unschedulable"] = True
    one = drain.Drain(api_, "node01")
    with pytest.raises(drain.DrainError, match="stays cordoned"):
        one.drain(api_.node, 0.05, drain.Rules())
    assert api_.node["spec"]["unschedulable"]
    assert not one.uncordon(api_.node)


def test_a_drain_that_was_interrupted_is_withdrawn_by_the_next() -> None:
    api_ = Api([pod("web")], refusals=10_000)
    api_.node["spec"]["unschedulable"] = True
    api_.node["metadata"]["annotations"][drain.MARK] = "drain"
    with pytest.raises(drain.DrainError, match="takes pods again"):
        drain.Drain(api_, "node01").drain(api_.node, 0.05, drain.Rules())
    assert not api_.node["spec"]["unschedulable"]


def test_force_deletes_what_is_left_after_the_timeout() -> None:
    api_ = Api([pod("web")], refusals=10_000)
    gone = drain.Drain(api_, "node01").drain(api_.node, 0.05, drain.Rules(force=True))
    assert gone == ["default/web"]
    assert api_.asked[-1] == ("DELETE", "/api/v1/namespaces/default/pods/web")
    assert api_.bodies[-1]["gracePeriodSeconds"] == 0


def test_a_pod_that_is_ending_is_waited_for_and_not_evicted_again() -> None:
    api_ = Api([pod("web", "", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})])
    with pytest.raises(drain.DrainError, match="has been ending since 2026"):
        drain.Drain(api_, "node01").drain(api_.node, 0.05, drain.Rules())
    assert all(method != "POST" for method, _ in api_.asked)


def test_evictions_are_asked_for_as_the_api_server_has_them() -> None:
    api_ = Api([pod("web")])
    api_.evictions[0]["version"] = "v1"
    drain.Drain(api_, "node01").drain(api_.node, 5, drain.Rules())
    assert api_.bodies[-1]["apiVersion"] == "policy/v1"
    api_ = Api([pod("web")])
    api_.evictions = []
    with pytest.raises(drain.DrainError, match="too old for a drain"):
        drain.Drain(api_, "node01").drain(api_.node, 5, drain.Rules())
    assert not api_.node["spec"]["unschedulable"]


class Answers:
    """An API server that gives these answers one after the other; None is silence."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)

    def request(self, *_: Any) -> tuple[int, Any]:
        status = self.answers.pop(0)
        if status is None:
            raise api.NoAnswerError("silence")
        return status, {}


@pytest.mark.parametrize(
    ("method", "answers", "status"),
    [
        ("GET", (500, None, 503, 200), 200),
        ("PATCH", (500, 409), 409),
        # It may be what there is to say: of a pod with two budgets.
        ("POST", (500,), 500),
        ("POST", (None, 201), 201),
    ],
)
def test_who_is_patient_asks_again(method: str, answers: tuple[int | None, ...], status: int) -> None:
    server: Any = Answers(*answers)
    assert api.Patient(lambda: server).request(method, "/x") == (status, {})
    assert server.answers == []


def test_patience_ends_with_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_SILENCE_SECONDS", 0.0)
    failing: Any = Answers(500)
    assert api.Patient(lambda: failing).request("GET", "/x")[0] == 500
    silent: Any = Answers(None)
    with pytest.raises(api.NoAnswerError):
        api.Patient(lambda: silent).request("GET", "/x")
