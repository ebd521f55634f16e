"""What machines show during the rotation of a CA, as kubepki's `confirm` wants it. Pure, but for reading PEM."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from kubepki import issue
from kubepki.errors import CertificateError
from kubepki.spec import Spec
from kubewright.errors import UserError

STEPS = ("trust", "issue", "drop")
SIGNER = "kubelet-signer"
_KUBELET = "/opt/kubernetes/ssl/kubelet"
_KUBELET_FILES = (f"{_KUBELET}/kubelet-client-current.pem", f"{_KUBELET}/kubelet-server-current.pem")


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """The CAs that `-e ca=` names: one, several with commas, or `all`. UserError for others."""
    names = list(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    if not names:
        raise UserError("which CA is to be rotated?", f"add -e ca=NAME; there are {', '.join(known)}, and all")
    if names == ["all"]:
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*known, "all"], 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}, and all"
        raise UserError(f"there is no CA {', '.join(map(repr, unknown))}", hint)
    return names


@dataclass(frozen=True)
class Shown:
    """What one consumer (UNIT@MACHINE) trusts and presents; `problem`: why that cannot be told."""

    consumer: str
    trusts: tuple[tuple[x509.Certificate, ...], ...] = ()
    presents: tuple[x509.Certificate, ...] = ()
    problem: str = ""


def shown(
    spec: Spec,
    name: str,
    files: Mapping[str, Sequence[Mapping[str, Any]]],
    seen: Mapping[str, Mapping[str, Any]],
) -> list[Shown]:
    """What every consumer of a CA has.

    `files`: machine -> its part of the PKI directory (`certificates.distribution`). `seen`: machine -> what it told
    (`machine.certs.collect`). Evidence is a file with which the running service was started: its digest is in the
    record that is written when the service has become healthy.
    """
    leaves: dict[str, list[str]] = {}
    for leaf in spec.certificates:
        if leaf.ca == name:
            for consumer in leaf.consumers:
                leaves.setdefault(consumer, []).append(f"{leaf.path}.pem")
    bundle = f"{spec.authorities[name].stem}-bundle.pem"
    found = []
    for consumer in dict.fromkeys([*spec.authorities[name].consumers, *leaves]):
        try:
            found.append(_consumer(consumer, name, bundle, leaves.get(consumer, []), files, seen))
        except (UserError, CertificateError) as error:
            found.append(Shown(consumer, problem=error.message))
    return found


def _consumer(
    consumer: str,
    name: str,
    bundle: str,
    leaves: Sequence[str],
    files: Mapping[str, Sequence[Mapping[str, Any]]],
    seen: Mapping[str, Mapping[str, Any]],
) -> Shown:
    unit, _, machine = consumer.partition("@")
    if machine not in seen:
        raise UserError(f"{machine} is not part of this run, or did not answer")
    known = seen[machine]["components"].get(unit)
    if known is None or not known["active"]:
        raise UserError(f"{unit} does not run on {machine}")
    texts = {file["path"]: file for file in seen[machine]["files"]}
    trusts, presents = [], []
    for entry in files[machine]:
        sources = entry.get("sources") or [entry["source"]]
        path = entry["dest"]
        wanted = bundle in sources or any(leaf in sources for leaf in leaves)
        if not wanted or path not in known["ingredients"]:
            continue
        if path not in texts or texts[path]["sha256"] != known["ingredients"][path]:
            raise UserError(f"{unit} on {machine} was not restarted since {path} changed")
        certificates = tuple(issue.load_all(texts[path]["pem"].encode(), path))
        if bundle in sources:
            trusts.append(certificates)
        else:
            presents.append(certificates[0])
    if name == SIGNER and unit == "kubelet":
        presents += [issue.load_all(texts[path]["pem"].encode(), path)[0] for path in _KUBELET_FILES if path in texts]
        presents += [
            x509.load_pem_x509_certificate(one["pem"].encode())
            for one in seen[machine]["served"]
            if one["unit"] == "kubelet" and "pem" in one
        ]
    return Shown(consumer, tuple(trusts), tuple(presents))
