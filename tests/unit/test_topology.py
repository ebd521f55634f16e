from __future__ import annotations

from typing import Any

import pytest

from kubewright import topology

VARIABLES: dict[str, Any] = {
    "cluster_name": "lab",
    "kube_version": "1.20.2",
    "pod_cidr": "10.244.0.0/16",
    "flannel_subnet_length": 24,
    "service_cidr": "10.0.0.0/24",
    "dns_domain": "cluster.local",
    "network_mode": "cni",
    "api_port": 6443,
    "api_vip": "",
    "kube_node_name_from": "name",
    "kube_masters_are_nodes": False,
}
HOSTS = {
    "master01": {"ansible_host": "192.168.80.10"},
    "node01": {"ansible_host": "192.168.80.11", "kube_node_labels": {"disk": "ssd"}},
    "node02": {"ansible_host": "192.168.80.12"},
}
GROUPS = {"etcd": ["master01", "node01", "node02"], "kube_master": ["master01"], "kube_node": ["node01", "node02"]}


def build(groups: Any = None, **changes: Any) -> topology.Cluster:
    cluster, problems = topology.build({**VARIABLES, **changes}, HOSTS, {**GROUPS, **(groups or {})})
    assert not problems
    assert cluster
    return cluster


def problems_of(variables: dict[str, Any] | None = None, hosts: Any = None, groups: Any = None) -> list[str]:
    cluster, problems = topology.build({**VARIABLES, **(variables or {})}, hosts or HOSTS, {**GROUPS, **(groups or {})})
    assert cluster is None
    return problems


def test_the_documents_cluster() -> None:
    facts = build().facts()
    assert facts["etcd_initial_cluster"] == (
        "master01=https://192.168.80.10:2380,node01=https://192.168.80.11:2380,node02=https://192.168.80.12:2380"
    )
    assert facts["api_url"] == "https://192.168.80.10:6443"
    assert facts["api_service_address"] == "10.0.0.1"
    assert facts["dns_service_address"] == "10.0.0.2"
    assert facts["machines"]["node01"]["labels"] == {"disk": "ssd"}
    assert not facts["machines"]["master01"]["is_node"]


def test_the_vip_is_where_the_api_is_when_there_is_one() -> None:
    assert build(api_vip="192.168.80.100").facts()["api_url"] == "https://192.168.80.100:6443"


def test_masters_as_nodes_are_tainted_unless_they_are_nodes_anyway() -> None:
    master = build(kube_masters_are_nodes=True).machine("master01")
    assert (master.is_node, master.is_tainted) == (True, True)
    cluster, _ = topology.build(VARIABLES, HOSTS, {**GROUPS, "kube_node": ["master01"]})
    assert cluster
    assert not cluster.machine("master01").is_tainted


def test_nodes_named_by_address() -> None:
    assert build(kube_node_name_from="address").machine("node02").node_name == "192.168.80.12"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"pod_cidr": "10.0.0.0/16"}, "overlap"),
        ({"pod_cidr": "192.168.0.0/16"}, "contains the addresses of master01"),
        ({"service_cidr": "192.168.80.0/24"}, "contains the addresses of master01"),
        ({"pod_cidr": "10.244.0.0/99"}, "not an IPv4 network"),
        ({"pod_cidr": "10.244.0.0/28", "flannel_subnet_length": 29}, "between 30 and 30"),
        ({"service_cidr": "10.0.0.0/30"}, "too small"),
        ({"kube_version": "1.20"}, "not a Kubernetes version"),
        ({"kube_version": "1.5.2"}, "the nearest are"),
        ({"kube_version": "1.24.1", "network_mode": "docker"}, "no longer has"),
        ({"kube_version": "1.24.1"}, "no other runtime"),
    ],
)
def test_bad_variables_are_named_with_their_value(variables: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems_of(variables))


def test_a_pod_network_without_room_for_every_machine() -> None:
    hosts = {f"n{i}": {"ansible_host": f"192.168.80.{i}"} for i in range(1, 6)}
    found = problems_of(
        {"pod_cidr": "10.244.0.0/22"}, hosts, {"etcd": ["n1"], "kube_master": ["n1"], "kube_node": list(hosts)}
    )
    assert any("room for 3 machines" in problem and "has 5" in problem for problem in found)


def test_all_problems_come_together() -> None:
    hosts = {**HOSTS, "node02": {"ansible_host": "192.168.80.11"}}
    found = problems_of({"pod_cidr": "10.0.0.0/16"}, hosts, {"etcd": ["master01", "node01"], "kube_master": []})
    text = "\n".join(found)
    for expected in ("'kube_master'", "is also that of node01", "overlap"):
        assert expected in text


def test_an_address_that_is_none() -> None:
    found = problems_of(hosts={**HOSTS, "node01": {"ansible_host": "node01.example"}})
    assert any("node01: 'node01.example' is not an IPv4 address" in problem for problem in found)
