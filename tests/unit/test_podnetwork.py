from __future__ import annotations

from typing import Any

import pytest
from test_topology import build

from kubewright import podnetwork


def problems(**values: Any) -> list[str]:
    return podnetwork.problems({"node01": values, "node02": values}, build())


@pytest.mark.parametrize(
    "backend",
    [
        {"Type": "vxlan"},
        {"type": "VXLAN", "vni": 42, "PORT": 4789},
        {"Type": "vxlan", "MTU": 9000},
        {"Type": "host-gw"},
    ],
)
def test_what_flanneld_takes(backend: dict[str, Any]) -> None:
    assert problems(flannel_backend=backend, flannel_etcd_prefix="/kubewright/network-2") == []


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ({"Type": "host-gwy"}, "there is no backend 'host-gwy' (did you mean 'host-gw'?)"),
        ({}, "Backend has the Type"),
        ({"Type": "vxlan", "DirectRouting": "yes"}, 'DirectRouting is "yes"'),
        ({"Type": "vxlan", "MTU": 100}, "Backend.MTU is 100"),
        ({"Type": "vxlan", "VNI": 1 << 24}, "VNI is 16777216 (use a number from 1 to 16777215)"),
        ({"Type": "vxlan", "Port": "4789"}, 'Port is "4789"'),
    ],
)
def test_what_flanneld_refuses_is_said_once_for_all_machines(backend: dict[str, Any], reason: str) -> None:
    [found] = problems(flannel_backend=backend)
    assert found.startswith("flannel_backend: ")
    assert reason in found
    # Also while the cluster cannot be computed, for example because pod_cidr is wrong too.
    [found] = podnetwork.problems({"node01": {"flannel_backend": backend}}, None)
    assert reason in found


def test_a_pod_network_that_flanneld_refuses() -> None:
    [found] = podnetwork.problems({"node01": {}}, build(pod_cidr="0.0.0.0/16"))
    assert 'Network is "0.0.0.0/16"' in found


@pytest.mark.parametrize("prefix", ["coreos.com/network", "/coreos.com/network/", "/", "", "//a", "/a b", "/a%b"])
def test_prefixes_that_flanneld_would_read_as_others(prefix: str) -> None:
    [found] = problems(flannel_etcd_prefix=prefix)
    assert found.startswith(f"flannel_etcd_prefix: {prefix!r} is not a key prefix")


def test_wrong_types_are_not_its_business() -> None:
    assert problems(flannel_backend="vxlan", flannel_etcd_prefix=7) == []


@pytest.mark.parametrize(
    ("backend", "address"),
    [(None, "10.244.7.0"), ({"type": "UDP"}, "10.244.7.0"), ({"Type": "host-gw"}, "10.244.7.1")],
)
def test_the_address_that_answers_for_a_machine(backend: dict[str, Any] | None, address: str) -> None:
    assert podnetwork.flannel_address("10.244.7.9", 24, backend) == address


def test_what_running_flannelds_take_over() -> None:
    before = '{"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}'
    assert podnetwork.refusals(before, before.replace("10.244.0.0/16", "10.240.0.0/12")) == []
    assert podnetwork.refusals(before, before.replace(": 24", ": 25")) != []
    assert podnetwork.refusals(before, before.replace("vxlan", "udp")) == ["the backend is udp instead of vxlan"]
    assert "is not JSON" in podnetwork.refusals("x", before)[0]
