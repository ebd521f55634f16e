"""Which kubelet serving certificates may be signed: only those that say what the inventory says.

Kubernetes never approves the signer `kubernetes.io/kubelet-serving` by itself, because only an operator can know which
name and addresses belong to a machine.
"""

from __future__ import annotations

import base64
import copy
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

SIGNER = "kubernetes.io/kubelet-serving"
MASTER_TAINT: Mapping[str, str] = {"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"}
_USAGES = {"digital signature", "key encipherment", "server auth"}


def is_open(csr: Mapping[str, Any]) -> bool:
    """Whether a serving CSR still waits for a decision."""
    return csr["spec"].get("signerName") == SIGNER and not csr.get("status", {}).get("conditions")


def objections(csr: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why this CSR must not be approved; empty when it may be.

    `csr`: CertificateSigningRequest as the API returns it. `nodes`: node name -> {address, name}.
    """
    spec = csr["spec"]
    user = str(spec.get("username", ""))
    name = user.removeprefix("system:node:")
    if name == user or name not in nodes:
        return [f"requested by {user!r}, which is no node of the inventory"]
    found = []
    if "system:nodes" not in (spec.get("groups") or []):
        found.append("the requester is not in the group system:nodes")
    unwanted = set(spec.get("usages") or []) - _USAGES
    if unwanted:
        found.append(f"asks for the usages {', '.join(sorted(unwanted))}")
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(spec["request"]))
    except ValueError as error:
        return [*found, f"its request cannot be read: {error}"]
    if not request.is_signature_valid:
        found.append("its signature is wrong")
    common = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    organisations = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if common != [user]:
        found.append(f"its CN is {common}, the requester is {user!r}")
    if organisations != ["system:nodes"]:
        found.append(f"its O is {organisations}, not system:nodes")
    return found + _name_objections(request, name, nodes[name])


def _name_objections(request: x509.CertificateSigningRequest, name: str, node: Mapping[str, Any]) -> list[str]:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ["it names no address"]
    allowed_dns = {name, str(node["name"])}
    found = [
        f"DNS name {dns!r} is not {name!r}" for dns in names.get_values_for_type(x509.DNSName) if dns not in allowed_dns
    ]
    own = ipaddress.ip_address(str(node["address"]))
    addresses = names.get_values_for_type(x509.IPAddress)
    found += [f"address {address} is not the inventory's {own}" for address in addresses if address != own]
    others = [n for n in names if not isinstance(n, (x509.DNSName, x509.IPAddress))]
    return found + [f"unexpected name {other.value!r}" for other in others]


def approved(csr: Mapping[str, Any]) -> dict[str, Any]:
    """The CSR with the approval condition added, for a PUT to its `approval` subresource."""
    result: dict[str, Any] = copy.deepcopy(dict(csr))
    result.setdefault("status", {}).setdefault("conditions", []).append(
        {
            "type": "Approved",
            "status": "True",
            "reason": "KubewrightInventory",
            "message": "name and addresses are those of the inventory",
        }
    )
    return result


def missing(nodes: Sequence[str], listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Node names of the inventory that have not registered."""
    have = {item["metadata"]["name"] for item in listed}
    return [name for name in nodes if name not in have]


def marks(node: Mapping[str, Any]) -> dict[str, Any]:
    """Manifest of the labels that the inventory wants on a node."""
    labels = {str(k): str(v) for k, v in (node.get("labels") or {}).items()}
    if node["is_master"]:
        labels[MASTER_TAINT["key"]] = ""
    if not node["is_tainted"]:
        labels["node-role.kubernetes.io/node"] = ""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node["node_name"], "labels": labels}}


def taint_patch(node: Mapping[str, Any], registered: Mapping[str, Any]) -> list[dict[str, Any]]:
    """JSON patch (RFC 6902) that gives a registered node our taint or takes it away; empty when nothing is to be done.

    The list has one owner for the API server, so it is patched as a whole: taints of others (a cordon, node
    conditions) stay, and the patch does not apply when they have changed meanwhile.
    """
    have = registered["spec"].get("taints") or []
    own = [t for t in have if (t["key"], t["effect"]) == (MASTER_TAINT["key"], MASTER_TAINT["effect"])]
    if bool(own) == bool(node["is_tainted"]):
        return []
    want = [t for t in have if t not in own] if own else [*have, dict(MASTER_TAINT)]
    unchanged = [{"op": "test", "path": "/spec/taints", "value": have}] if have else []
    return [*unchanged, {"op": "add", "path": "/spec/taints", "value": want}]
