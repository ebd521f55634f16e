from __future__ import annotations

from typing import Any

import pytest

from kubewright import endpoint, topology

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


# The documents' picture: two masters, and two machines in front of them.
HA_HOSTS = {
    **HOSTS,
    "master02": {"ansible_host": "192.168.80.13"},
    "lb01": {"ansible_host": "192.168.80.31"},
    "lb02": {"ansible_host": "192.168.80.32"},
}
HA_GROUPS = {**GROUPS, "kube_master": ["master01", "master02"]}


def build_ha(lb: bool = True, **changes: Any) -> topology.Cluster:
    """Two masters, with the group `lb` and a virtual address or without."""
    groups = {**HA_GROUPS, "lb": ["lb01", "lb02"]} if lb else HA_GROUPS
    hosts = HA_HOSTS if lb else {name: host for name, host in HA_HOSTS.items() if not name.startswith("lb")}
    vip = {"api_vip": "192.168.80.100"} if lb else {}
    cluster, problems = topology.build({**VARIABLES, **vip, **changes}, hosts, groups)
    assert not problems
    assert cluster
    return cluster


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


def test_who_has_a_proxy() -> None:
    assert build().facts()["proxies"] == []
    assert build_ha().facts()["proxies"] == ["lb01", "lb02"]
    assert build_ha(lb=False).facts()["proxies"] == ["node01", "node02"]


def test_machines_in_front_have_the_virtual_address_and_nothing_else() -> None:
    cluster = build_ha()
    facts = cluster.facts()
    assert facts["api_endpoint_mode"] == "vip"
    assert facts["api_url"] == "https://192.168.80.100:6443"
    assert facts["api_servers"] == ["192.168.80.10:6443", "192.168.80.13:6443"]
    assert facts["lb_addresses"] == ["192.168.80.31", "192.168.80.32"]
    assert "192.168.80.31 lb01" in facts["hosts_entries"]
    lb = cluster.machine("lb01")
    assert lb.is_lb
    assert not any((lb.is_node, lb.is_master, lb.is_etcd, lb.has_proxy))
    assert not any(m.has_proxy for m in cluster.machines)


def test_several_masters_without_machines_in_front_are_reached_through_the_loopback() -> None:
    cluster = build_ha(lb=False)
    facts = cluster.facts()
    assert facts["api_endpoint_mode"] == "local_proxy"
    assert facts["api_url"] == "https://127.0.0.1:6443"
    assert facts["api_outside_urls"] == ["https://192.168.80.10:6443", "https://192.168.80.13:6443"]
    # A master, node or not, asks its own API server, which has the port.
    assert [m.name for m in cluster.proxies()] == ["node01", "node02"]
    assert not build_ha(lb=False, kube_masters_are_nodes=True).machine("master02").has_proxy


def test_an_endpoint_of_the_users_own() -> None:
    facts = build_ha(lb=False, api_endpoint="api.example.org:8443").facts()
    assert facts["api_url"] == "https://api.example.org:8443"
    assert facts["api_outside_urls"] == ["https://api.example.org:8443"]
    assert not build_ha(lb=False, api_endpoint="api.example.org:8443").proxies()


@pytest.mark.parametrize(
    ("variables", "groups", "said"),
    [
        ({}, {"lb": ["lb01"]}, "api_vip: not set"),
        ({"api_vip": "192.168.80.x"}, {"lb": ["lb01"]}, "api_vip: '192.168.80.x' is not an IPv4 address"),
        ({"api_vip": "192.168.80.11"}, {"lb": ["lb01"]}, "api_vip 192.168.80.11 is the address of node01"),
        ({"api_vip": "10.0.0.9"}, {"lb": ["lb01"]}, "api_vip 10.0.0.9 lies in service_cidr 10.0.0.0/24"),
        ({"api_vip": "10.244.9.9"}, {"lb": ["lb01"]}, "api_vip 10.244.9.9 lies in pod_cidr 10.244.0.0/16"),
        ({"api_vip": "192.168.80.100", "api_vip_router_id": 256}, {"lb": ["lb01"]}, "256 is not between 1 and 255"),
        (
            {"api_vip": "192.168.80.100"},
            {"lb": ["master02"]},
            "lb: master02 are masters, whose API server has the port",
        ),
        ({"api_endpoint_mode": "vip", "api_vip": "192.168.80.100"}, {}, "lb: the group is empty"),
        ({"api_vip": "192.168.80.100"}, {}, "set api_endpoint: 192.168.80.100:6443"),
        ({"api_endpoint_mode": "local_proxy"}, {"lb": ["lb01"]}, "lb: lb01 would have nothing to do"),
        ({"api_endpoint_mode": "external"}, {}, "api_endpoint: '' is not HOST:PORT"),
        ({"api_endpoint": "https://a:1"}, {}, "api_endpoint: 'https://a:1' is not HOST:PORT"),
        ({"api_endpoint_mode": "single"}, {}, "single, with 2 masters"),
    ],
)
def test_ways_to_the_api_that_do_not_fit(variables: dict[str, Any], groups: dict[str, list[str]], said: str) -> None:
    found = problems_of(variables, HA_HOSTS, {**HA_GROUPS, **groups})
    assert len([problem for problem in found if said in problem]) == 1, found


def test_the_administrator_keeps_a_master_that_answers() -> None:
    cluster = build_ha(lb=False).facts()
    assert endpoint.outside_url(cluster, ["master02"]) == "https://192.168.80.13:6443"
    present = "      server: https://192.168.80.13:6443\n"
    assert endpoint.outside_url(cluster, ["master01", "master02"], present) == "https://192.168.80.13:6443"
    assert endpoint.outside_url(cluster, ["master01"], present) == "https://192.168.80.10:6443"
    assert endpoint.outside_url(build_ha().facts(), ["master02"], present) == "https://192.168.80.100:6443"


def test_the_other_api_servers_of_a_master() -> None:
    [other] = endpoint.other_servers(build_ha().facts(), "master02", "/ca.pem")
    assert (other["url"], other["ca"]) == ("https://192.168.80.10:6443/readyz", "/ca.pem")
    assert endpoint.other_servers(build().facts(), "master01", "/ca.pem") == []


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


def test_the_password_of_ca_keys_is_not_written_down() -> None:
    for source in ("secret", "file:ca.password", "env:"):
        [problem] = problems_of({"pki_ca_password": source})
        assert problem.startswith("pki_ca_password is neither")
        assert "secret" not in problem
    assert build(pki_ca_password="env:CA_PASSWORD").pki_ca_password == "env:CA_PASSWORD"
