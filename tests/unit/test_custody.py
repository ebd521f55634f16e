from __future__ import annotations

from typing import Any

from test_topology import build

from kubewright import certificates, custody
from kubewright.machine import facts

ALL = {custody.ENCRYPTION_KEY, *custody.TOKEN}
OURS = {"kubernetes-ca.pem": ["1"], "etcd-ca.pem": ["2"]}
GIVEN = {"/opt/kubernetes/ssl/ca.pem": ["1"], "/opt/etcd/ssl/ca.pem": ["2"]}


def problems(cas: dict[str, list[str]], secrets: set[str], **machines: dict[str, Any]) -> list[str]:
    known = {name: {"cas": {}, "components": [], **facts} for name, facts in machines.items()}
    return custody.problems(known, cas, "/i/pki", secrets, "/i/secrets", {"bootstrap", "master"})


def test_bare_machines_need_nothing() -> None:
    assert problems({}, set(), a={}, b={}) == []


def test_the_controller_that_made_the_cluster() -> None:
    assert problems(OURS, ALL, a={"cas": GIVEN, "components": ["kube-apiserver"]}, b={}) == []


def test_a_fresh_clone_makes_no_second_cas() -> None:
    found = problems({}, ALL, a={"cas": GIVEN}, b={"cas": {"/opt/kubernetes/ssl/ca.pem": ["1"]}}, c={})
    assert [problem.split(";")[0] for problem in found] == [
        f"{who}: trust a CA (/opt/{which}/ssl/ca.pem) that this controller does not have: /i/pki has no {which}-ca.pem"
        for who, which in (("a, b", "kubernetes"), ("a", "etcd"))
    ]


def test_another_cluster_of_the_same_machines() -> None:
    [found] = problems({**OURS, "etcd-ca.pem": ["9"]}, ALL, a={"cas": GIVEN})
    assert "/i/pki has another etcd-ca.pem" in found


def test_the_cas_of_masters_are_guarded_as_well() -> None:
    for name in ("kubelet-signer", "front-proxy"):
        path = f"/opt/kubernetes/ssl/{name}-ca.pem"
        [found] = problems(OURS, ALL, m={"cas": {**GIVEN, path: ["4"]}})
        assert f"/i/pki has no {name}-ca.pem" in found
        [found] = problems({**OURS, f"{name}-ca.pem": ["5"]}, ALL, m={"cas": {path: ["4"]}})
        assert f"/i/pki has another {name}-ca.pem" in found
        assert problems({**OURS, f"{name}-ca.pem": ["4"]}, ALL, m={"cas": {**GIVEN, path: ["4"]}}) == []


def test_a_cluster_whose_machines_have_no_such_file_is_not_refused() -> None:
    cas = {**OURS, "kubelet-signer-ca.pem": ["3"], "front-proxy-ca.pem": ["4"]}
    assert problems(cas, ALL, m={"cas": GIVEN}) == problems(OURS, ALL, m={"cas": GIVEN}) == []


def test_what_is_guarded_is_what_machines_are_given() -> None:
    given = {f["dest"]: f["source"] for f in certificates.distribution(build(), "master01") if "source" in f}
    for name, path in custody.CAS.items():
        if not path.startswith("/opt/etcd/"):
            assert given[path].replace("-bundle", "") == name


def test_a_rotation_has_two_cas() -> None:
    for machine, controller in ((["1"], ["1", "3"]), (["1", "3"], ["1", "3"]), (["1", "3"], ["3"])):
        cas = {**OURS, "kubernetes-ca.pem": controller}
        assert problems(cas, ALL, a={"cas": {"/opt/kubernetes/ssl/ca.pem": machine}}) == []
    assert problems(OURS, ALL, a={"cas": {"/opt/kubernetes/ssl/ca.pem": []}}) != []


def test_certificates_are_compared_whatever_the_lines() -> None:
    text = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
    both = facts.certificates("words\n" + text.format("YWFh\nYmJi") + text.format("Y2Nj"))
    assert both == facts.certificates(text.format("YWFhYmJi")) + facts.certificates(text.format("Y2\r\nNj"))
    assert (len(set(both)), facts.certificates("none")) == (2, [])


def test_the_key_of_secrets_is_never_made_anew() -> None:
    [found] = problems(OURS, ALL - {"encryption_key"}, a={"cas": GIVEN, "components": ["kube-apiserver"]}, b={})
    assert found.startswith("a: run an API server, and /i/secrets lacks encryption_key;")
    assert problems(OURS, set(), a={"cas": GIVEN, "components": ["etcd"]}) == []


def test_a_token_that_was_never_made_is_made_by_the_stage_master() -> None:
    # A run that was killed after the API server started has no token yet.
    assert problems(OURS, {"encryption_key"}, a={"cas": GIVEN, "components": ["kube-apiserver"]}) == []
    assert custody.problems({}, OURS, "/i/pki", {"encryption_key"}, "/i/secrets", {"bootstrap"}) == [
        "--tags bootstrap: /i/secrets has no bootstrap token; run --tags master first"
    ]


def test_the_password_of_the_virtual_address_is_never_made_anew() -> None:
    [found] = problems(OURS, ALL, a={"cas": GIVEN}, lb01={"components": ["kube-lb-vip"]})
    assert found.startswith("lb01: share a virtual address by a password, and /i/secrets lacks vrrp_password")
    assert problems(OURS, {*ALL, custody.VRRP}, lb01={"components": ["kube-lb-vip"]}) == []
