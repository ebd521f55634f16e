"""The action that waits for kubelets: for whom it waits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_nodes import csr

ROOT = Path(__file__).resolve().parents[2]
NODES = [
    {"node_name": name, "name": name, "address": f"192.168.80.1{number}", "is_master": False, "is_tainted": False}
    for number, name in enumerate(("node01", "node02"), 1)
]


def run(monkeypatch: pytest.MonkeyPatch, requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The action's result where node02's kubelet is mute, with these requests for certificates."""
    found = importlib.util.spec_from_file_location("nodes_action", ROOT / "action_plugins" / "kubewright_nodes.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0)

    def answer(path: str) -> dict[str, Any]:
        if path == "/api/v1/nodes":
            items = [{"metadata": {"name": node["name"]}, "spec": {}} for node in NODES]
            return {"status": 200, "body": {"items": items}}
        if path.endswith("certificatesigningrequests"):
            return {"status": 200, "body": {"items": requests}}
        if path.endswith("/approval"):
            requests.clear()
            return {"status": 200, "body": {}}
        return {"status": 503 if "node02" in path else 200, "body": {}}

    def module_reply(module_name: str, module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        if module_name == "kubewright_objects":
            return {"changed": False, "diff": []}
        return {"replies": [answer(request["path"]) for request in module_args["requests"]]}

    task = SimpleNamespace(
        args={"nodes": NODES, "required": ["node01", "node02"], "timeout": 0, **more}, check_mode=False, async_val=0
    )
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
    plugin = module.ActionModule(task, connection, SimpleNamespace(), None, None, None)
    monkeypatch.setattr(plugin, "_execute_module", module_reply)
    cluster = {"features": {"csr_api_v1": True}, "api_access": {}}
    variables = {"ansible_facts": {"cluster": cluster}}
    result: dict[str, Any] = plugin.run(None, variables)
    return result


def test_a_mute_kubelet_is_late_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(run(monkeypatch, [])["late"]) == ["node02"]


def test_who_is_not_required_is_not_waited_for_but_has_its_certificate_approved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = csr("system:node:node02", cn="system:node:node02", dns=["node02"], addresses=["192.168.80.12"])
    done = run(monkeypatch, [request], required=["node01"])
    assert (done.get("failed"), done["approved"], "late" in done) == (None, ["system:node:node02"], False)


def test_who_alone_is_required_and_mute_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "within 0 s: node02" in run(monkeypatch, [], required=["node02"])["msg"]
