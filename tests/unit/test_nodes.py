from __future__ import annotations

import base64
import ipaddress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubewright import nodes

INVENTORY = {"node01": {"name": "node01", "address": "192.168.80.11"}}


def csr(user: str = "system:node:node01", **changes: Any) -> dict[str, Any]:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, changes.get("o", "system:nodes")),
            x509.NameAttribute(NameOID.COMMON_NAME, changes.get("cn", user)),
        ]
    )
    names: list[x509.GeneralName] = [x509.DNSName(d) for d in changes.get("dns", ["node01"])]
    names += [x509.IPAddress(ipaddress.ip_address(a)) for a in changes.get("addresses", ["192.168.80.11"])]
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return {
        "metadata": {"name": "csr-1"},
        "spec": {
            "signerName": nodes.SIGNER,
            "username": user,
            "groups": ["system:nodes", "system:authenticated"],
            "usages": changes.get("usages", ["digital signature", "key encipherment", "server auth"]),
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
        },
    }


def test_a_request_like_the_inventory_is_approved() -> None:
    assert nodes.objections(csr(), INVENTORY) == []
    assert nodes.approved(csr())["status"]["conditions"][0]["type"] == "Approved"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (csr("system:node:node09"), "no node of the inventory"),
        (csr("kubelet-bootstrap"), "no node of the inventory"),
        (csr(cn="system:node:node02"), "its CN is"),
        (csr(o="system:masters"), "not system:nodes"),
        (csr(addresses=["192.168.80.11", "10.0.0.1"]), "address 10.0.0.1"),
        (csr(dns=["node01", "kubernetes.default"]), "'kubernetes.default'"),
        (csr(dns=[], addresses=[]), "names no address"),
        (csr(usages=["client auth"]), "asks for the usages client auth"),
    ],
)
def test_anything_else_is_refused_with_its_reason(request_: dict[str, Any], expected: str) -> None:
    assert any(expected in reason for reason in nodes.objections(request_, INVENTORY))


def test_garbage_is_refused() -> None:
    request = csr()
    request["spec"]["request"] = base64.b64encode(b"garbage").decode()
    assert any("cannot be read" in reason for reason in nodes.objections(request, INVENTORY))


MASTER = {"node_name": "m", "name": "m", "is_master": True, "is_tainted": True}
OURS = {"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"}
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}


def _patched(node: dict[str, Any], taints: list[dict[str, Any]] | None) -> Any:
    patch = nodes.taint_patch(node, {"spec": {"taints": taints} if taints else {}})
    assert [p["op"] for p in patch] in ([], ["add"], ["test", "add"])
    return patch[-1]["value"] if patch else None


def test_taints_of_others_stay() -> None:
    assert _patched(MASTER, [CORDON]) == [CORDON, OURS]
    assert _patched(MASTER, None) == [OURS]
    assert _patched(MASTER, [{**OURS, "timeAdded": "2026-01-01T00:00:00Z"}, CORDON]) is None
    assert _patched({**MASTER, "is_tainted": False}, [OURS, CORDON]) == [CORDON]
    assert _patched({**MASTER, "is_tainted": False}, [CORDON]) is None


def test_labels_are_all_that_a_manifest_has() -> None:
    assert nodes.marks({**MASTER, "labels": {"disk": 7}})["metadata"]["labels"] == {"disk": "7", OURS["key"]: ""}
    assert "spec" not in nodes.marks(MASTER)
