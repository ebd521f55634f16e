from __future__ import annotations

from typing import Any

from test_topology import build, build_ha

from kubepki import spec
from kubewright import certificates, topology


def table(**changes: Any) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in certificates.spec(build(**changes))["certificates"]}


def api_names(cluster: topology.Cluster) -> list[str]:
    hosts: list[str] = next(c for c in certificates.spec(cluster)["certificates"] if c["name"] == "apiserver")["hosts"]
    return hosts


def files(machine: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return {f["dest"]: f for f in certificates.distribution(build(**changes), machine)}


def test_kubepki_accepts_the_table() -> None:
    assert len(spec.parse(certificates.spec(build())).certificates) == 16


def test_the_api_server_answers_to_all_its_names() -> None:
    names = api_names(build_ha(api_extra_sans=["api.example.org"]))
    for name in (
        "10.0.0.1",
        "127.0.0.1",
        "192.168.80.10",
        "192.168.80.13",
        "192.168.80.100",
        "api.example.org",
        "kubernetes.default.svc.cluster.local",
    ):
        assert name in names
    assert "api.example.net" in api_names(build_ha(lb=False, api_endpoint="api.example.net:6443"))


def test_a_load_balancer_gets_the_public_ca_and_no_key() -> None:
    [entry] = certificates.distribution(build_ha(), "lb01")
    assert (entry["source"], entry["dest"]) == ("kubernetes-ca-bundle.pem", "/opt/kubernetes/ssl/ca.pem")
    found = spec.parse(certificates.spec(build_ha()))
    assert {"kube-lb-check@lb01", "kube-lb-check@lb02"} <= set(found.authorities["kubernetes"].consumers)


def test_etcd_members_have_certificates_of_their_own() -> None:
    found = table()
    assert found["etcd-server-node01"]["hosts"] == ["node01", "192.168.80.11", "localhost", "127.0.0.1"]
    assert found["etcd-server-node01"]["profile"] == "peer"
    assert found["etcd-peer-node02"]["hosts"] == ["node02", "192.168.80.12"]


def test_each_machine_is_waited_for_by_itself() -> None:
    found = spec.parse(certificates.spec(build(kube_masters_are_nodes=False)))
    assert set(found.authorities["etcd"].consumers) >= {"etcd@node01", "etcd@node02", "kube-apiserver@master01"}
    named = {one.name: one.consumers for one in found.certificates}
    assert named["etcd-peer-node01"] == ("etcd@node01",)
    assert named["kube-proxy"] == ("kube-proxy@node01", "kube-proxy@node02")
    assert named["apiserver"] == ("kube-apiserver@master01",)
    assert "kubelet@node02" in found.authorities["kubelet-signer"].consumers
    assert all("@" in consumer for one in found.authorities.values() for consumer in one.consumers)


def test_no_machine_gets_a_ca_key_but_that_of_the_kubelet_signer() -> None:
    for machine in ("master01", "node01", "node02"):
        for dest, entry in files(machine).items():
            sources = entry.get("sources") or [entry["source"]]
            if any(source.endswith("-ca-key.pem") for source in sources):
                assert (machine, dest) == ("master01", "/opt/kubernetes/ssl/kubelet-signer-ca-key.pem")


def test_a_node_gets_its_own_only() -> None:
    found = files("node01")
    assert found["/opt/etcd/ssl/server.pem"]["source"] == "etcd-server-node01.pem"
    assert not any("apiserver" in dest or "admin" in dest or "service-account" in dest for dest in found)
    assert "/opt/flannel/ssl/flanneld-key.pem" in found


def test_keys_are_private_everywhere() -> None:
    for machine in ("master01", "node01"):
        for dest, entry in files(machine, kube_masters_are_nodes=True).items():
            private = dest.endswith(("-key.pem", ".key"))
            assert (entry["mode"], entry["secret"]) == (("0600", True) if private else ("0644", False))


def test_every_destination_is_there_once() -> None:
    entries = certificates.distribution(build(kube_masters_are_nodes=True), "master01")
    assert len({entry["dest"] for entry in entries}) == len(entries)


def test_what_machines_trust_are_bundles() -> None:
    trust = {"ca.pem", "client-ca.pem", "etcd-ca.pem", "front-proxy-ca.pem"}
    for machine in ("master01", "node01"):
        for dest, entry in files(machine, kube_masters_are_nodes=True).items():
            sources = entry.get("sources") or [entry["source"]]
            is_bundle = all(source.endswith("-ca-bundle.pem") for source in sources)
            assert is_bundle == (dest.rpartition("/")[2] in trust), dest


def test_the_rules_know_what_each_is_for() -> None:
    found = spec.parse(certificates.spec(build()))
    assert all(one.role for one in found.certificates)
    assert {name: one.role for name, one in found.authorities.items()} == {name: name for name in spec.CA_ROLES}
    assert [str(network) for network in found.cluster.service_networks] == ["10.0.0.0/24"]
    # Who presents a certificate of a CA talks to others that do, and trusts it.
    for one in found.certificates:
        assert set(one.consumers) <= set(found.authorities[one.ca].consumers)


def test_keys_of_cas_are_encrypted_where_no_machine_reads_them() -> None:
    found = spec.parse(certificates.spec(build(pki_ca_password="file:/root/ca.password"))).authorities
    assert {name: one.password for name, one in found.items()} == {
        "kubernetes": "file:/root/ca.password",
        "kubelet-signer": "",
        "etcd": "file:/root/ca.password",
        "front-proxy": "file:/root/ca.password",
    }
