"""The cluster forgets a machine; etcd and the API are tables here, the scenario `scale` has real ones."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kubewright.machine import etcd, forget


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Nobody:
    """An API without nodes."""

    def request(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        assert (method, path) == ("GET", "/api/v1/nodes/node02")
        return 404, {}


def test_a_lease_goes_unless_another_machine_has_inherited_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = {"key": encoded("/n/subnets/10.244.1.0-24"), "value": encoded(json.dumps({"PublicIP": "192.0.2.12"}))}
    asked = []

    def ask(_: dict[str, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((path, body["key"]))
        return {"kvs": [lease]}

    monkeypatch.setattr(etcd, "ask", ask)
    machine = {"node_name": "node02", "address": "192.0.2.12"}
    api: Any = Nobody()
    assert forget.forget(api, [{}], machine, "/n", ["192.0.2.11", "192.0.2.12"], False) == []
    assert forget.forget(api, [{}], machine, "/n", ["192.0.2.11"], True) == ["lease 10.244.1.0-24"]
    assert all(path != "/v3/kv/deleterange" for path, _ in asked)
    assert forget.forget(api, [{}], machine, "/n", ["192.0.2.11"], False) == ["lease 10.244.1.0-24"]
    assert asked[-1] == ("/v3/kv/deleterange", lease["key"])
