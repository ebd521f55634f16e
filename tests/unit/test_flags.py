from __future__ import annotations

import shlex
import subprocess

from test_topology import build

from kubewright import flags


def test_the_api_server_of_the_documents_version() -> None:
    cluster = build().facts()
    found = flags.flags(cluster, "kube-apiserver", cluster["machines"]["master01"])
    assert found["authorization-mode"] == "Node,RBAC"
    assert found["insecure-port"] == "0"
    assert found["etcd-servers"].count("https://") == 3
    assert "service-account-signing-key-file" in found


def test_versions_decide() -> None:
    old, new = build(kube_version="1.18.0").facts(), build(kube_version="1.23.1").facts()
    options = {"kubelet_certificate_hours": 8760}
    machine = old["machines"]["master01"]
    assert "service-account-issuer" not in flags.flags(old, "kube-apiserver", machine)
    assert "experimental-cluster-signing-duration" in flags.flags(old, "kube-controller-manager", machine, options)
    assert "cluster-signing-duration" in flags.flags(new, "kube-controller-manager", machine, options)
    assert "port" not in flags.flags(new, "kube-scheduler", machine)


def test_the_users_flags_win() -> None:
    cluster = build().facts()
    found = flags.flags(
        cluster, "kube-scheduler", cluster["machines"]["master01"], extra={"--v": 4, "profiling": "true"}
    )
    assert (found["v"], found["profiling"]) == ("4", "true")


def test_an_environment_file_is_one_quoted_variable() -> None:
    text = flags.environment({"a": "1", "b": "x,y"}, "OPTS")
    assert shlex.split(text.replace("\\\n", "")) == ["OPTS=--a=1 --b=x,y"]


def test_an_environment_file_with_other_variables() -> None:
    text = flags.environment({"a": "b"}, "OPTS", {"X": 'say "$1" \\ `', "Y": "true"})
    assert text.startswith('OPTS="--a=b"\n')
    shell = subprocess.run(["sh", "-c", f'{text}printf %s "$X"'], capture_output=True, text=True, check=True)
    assert shell.stdout == 'say "$1" \\ `'


def test_what_a_url_may_hold_is_left_as_it_is() -> None:
    proxy = 'http://user:p%40s%%s"$w@proxy.example:3128'
    text = flags.environment_file({"HTTPS_PROXY": proxy, "NO_PROXY": ""})
    shell = subprocess.run(["sh", "-c", f'{text}printf %s "$HTTPS_PROXY"'], capture_output=True, text=True, check=True)
    assert shell.stdout == proxy


def test_a_trust_bundle_that_is_yet_to_be_made_is_known_already() -> None:
    entry = {"source": "etcd-ca-bundle.pem", "dest": "/x/ca.pem", "mode": "0644", "secret": False}
    [found] = flags.pki_files([entry], "/pki", ["etcd-ca-bundle.pem"], {"etcd-ca-bundle.pem": "etcd-ca.pem"})
    assert (found["sources"], found["pending"]) == (["/pki/etcd-ca.pem"], False)
    [found] = flags.pki_files([entry], "/pki", ["etcd-ca-bundle.pem"])
    assert (found["sources"], found["pending"]) == (["/pki/etcd-ca-bundle.pem"], True)
