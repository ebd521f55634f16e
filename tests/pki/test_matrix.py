"""Everything that kubepki issues from a specification, before OpenSSL, Go, pkilint and TLS."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import verifiers

from kubepki import names, reconcile, spec

KEYS = {
    "ecdsa-256": {"algo": "ecdsa", "size": 256},
    "ecdsa-384": {"algo": "ecdsa", "size": 384},
    "ecdsa-521": {"algo": "ecdsa", "size": 521},
    "rsa-2048": {"algo": "rsa", "size": 2048},
    "rsa-3072": {"algo": "rsa", "size": 3072},
    "rsa-4096": {"algo": "rsa", "size": 4096},
    "ed25519": {"algo": "ed25519"},
}
# What is in the certificate -> under which name a peer then reaches it; None where no verifier knows how to ask.
HOSTS: dict[str, str | None] = {
    "kubernetes": "kubernetes",
    "kubernetes.default.svc.cluster.local": "kubernetes.default.svc.cluster.local",
    "*.apps.example.org": "one.apps.example.org",
    "etcd_1.internal": "etcd_1.internal",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    f"{'a' * 63}.example.org": f"{'a' * 63}.example.org",
    "10.96.0.1": "10.96.0.1",
    "127.0.0.1": "127.0.0.1",
    "::1": "::1",
    "fd00:10:96::1": "fd00:10:96:0:0:0:0:1",
    "operator@example.org": "operator@example.org",
    "spiffe://cluster.local/ns/default/sa/default": None,
    "https://example.org/path?query=1": None,
}
PROFILES: dict[str, dict[str, Any]] = {
    # cfssl's own default, as the documents copy it.
    "kubernetes": {"usages": ["signing", "key encipherment", "server auth", "client auth"], "expiry": "8760h"},
    "mail": {"usages": ["signing", "content commitment", "email protection"], "expiry": "48h"},
}
NAMED = [name for name in HOSTS.values() if name]


def _specification() -> dict[str, Any]:
    order = list(KEYS)
    certificates: list[dict[str, Any]] = []
    for number, (name, key) in enumerate(KEYS.items()):
        following = order[(number + 1) % len(order)]
        certificates += [
            {"name": f"server-{name}", "ca": name, "cn": "kube-apiserver", "profile": "server", "key": key}
            | {"hosts": list(HOSTS)},
            {"name": f"client-{name}", "ca": "ecdsa-256", "cn": "kubernetes-admin", "profile": "client", "key": key}
            | {"o": ["system:masters", "Ünïcode & Söhne"]},
            {"name": f"peer-{name}", "ca": following, "cn": "m1", "profile": "peer", "key": key}
            | {"hosts": ["m1", "192.168.60.1"], "expiry": "1h"},
        ]
    rsa = {"name": "rsa-kubernetes", "ca": "rsa-2048", "cn": "x" * 64, "profile": "kubernetes", "hosts": ["m1"]}
    return {
        "cas": {name: {"cn": f"{name} CA", "key": key, "o": ["kubewright"]} for name, key in KEYS.items()},
        "profiles": PROFILES,
        "certificates": [
            *certificates,
            {**rsa, "key": KEYS["rsa-2048"]},
            {"name": "mail", "ca": "ecdsa-384", "cn": "mail", "profile": "mail", "hosts": ["operator@example.org"]},
            {"name": "nameless-client", "ca": "ed25519", "cn": "system:node:m1", "o": ["system:nodes"]}
            | {"profile": "client"},
        ],
    }


SPECIFICATION = _specification()
LEAVES = {entry["name"]: entry for entry in SPECIFICATION["certificates"]}
PURPOSES = {"server": "server", "client": "client", "peer": "peer", "kubernetes": "peer"}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("matrix") / "pki"
    reconcile.apply(spec.parse(SPECIFICATION), directory, datetime.now(UTC))
    return directory


def pair(directory: Path, name: str) -> tuple[bytes, bytes]:
    return (directory / f"{name}.pem").read_bytes(), (directory / f"{name}-key.pem").read_bytes()


@pytest.mark.parametrize("name", KEYS)
def test_a_ca(issued: Path, name: str) -> None:
    certificate, _ = pair(issued, f"{name}-ca")
    verifiers.verify_everywhere(certificate, [certificate], "ca")


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf(issued: Path, name: str) -> None:
    entry = LEAVES[name]
    certificate, key = pair(issued, name)
    reached = [HOSTS.get(host, host) for host in entry.get("hosts", ())]
    cas = [pair(issued, f"{entry['ca']}-ca")[0]]
    purpose = PURPOSES.get(entry["profile"])
    if purpose is None:
        # Neither a server nor a client: nobody but the linter and those who check the chain have a word for it.
        assert verifiers.openssl(certificate, cas, "ca", [str(host) for host in reached]) == []
        assert verifiers.pkilint(certificate) == []
        return
    verifiers.verify_everywhere(certificate, cas, purpose, [host for host in reached if host], key)


def test_go_reads_every_name_as_what_it_is(issued: Path) -> None:
    certificate, _ = pair(issued, "server-ecdsa-256")
    roots = pair(issued, "ecdsa-256-ca")[0]
    question = {"Certificate": certificate.decode(), "Roots": roots.decode(), "Usage": "server"}
    answer = verifiers.ask_go([question])[0]
    assert answer["error"] == ""
    kinds = {"dns": "dns", "addresses": "ip", "emails": "email", "uris": "uri"}
    for field, kind in kinds.items():
        assert answer[field] == [host for host in HOSTS if names.parse(host).kind == kind]


@pytest.mark.parametrize("name", KEYS)
def test_both_sides_of_tls_have_kubepkis_certificates(issued: Path, name: str) -> None:
    server_ca, client_ca = pair(issued, f"{name}-ca")[0], pair(issued, "ecdsa-256-ca")[0]
    server = verifiers.context(ssl.PROTOCOL_TLS_SERVER, [client_ca], verifiers.Pair(*pair(issued, f"server-{name}")))
    client = verifiers.context(ssl.PROTOCOL_TLS_CLIENT, [server_ca], verifiers.Pair(*pair(issued, f"client-{name}")))
    assert verifiers.handshake(server, client, "kubernetes") == ""
    assert "Hostname mismatch" in verifiers.handshake(server, client, "kubernetes.example.org")
