"""What machines show during the rotation of a CA, as kubepki's `confirm` wants it. Pure, but for reading PEM."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from kubepki import issue, rotation
from kubepki.errors import CertificateError
from kubepki.spec import Spec
from kubewright.errors import UserError

STEPS = ("trust", "issue", "drop")
SIGNER = "kubelet-signer"
_KUBELET = "/opt/kubernetes/ssl/kubelet"
# What it has from the controller manager.
KUBELET_FILES = (f"{_KUBELET}/kubelet-client-current.pem", f"{_KUBELET}/kubelet-server-current.pem")


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


def in_hand(phase: str, known: str, *, is_new: bool) -> str:
    """The step of STEPS in hand; empty when no rotation is under way.

    `phase`: what the PKI directory says; it wins over `known`, the step of the journal, where they contradict each
    other, as after a restored backup. `is_new`: the CA that issues may be the one that the journal's rotation made.
    """
    if phase == rotation.SETTLED:
        return "drop" if known == "drop" and is_new else "trust" if known else ""
    steps = STEPS[:2] if phase == rotation.TRUST_BOTH else STEPS[1:]
    return known if known in steps else steps[0]


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
        presents += _of_kubelet(machine, texts, seen[machine]["served"])
    return Shown(consumer, tuple(trusts), tuple(presents))


def _of_kubelet(
    machine: str, texts: Mapping[str, Mapping[str, Any]], served: Sequence[Mapping[str, Any]]
) -> list[x509.Certificate]:
    """All that a kubelet presents: both of its files, and what it serves."""
    lacking = [path for path in KUBELET_FILES if path not in texts]
    if lacking:
        raise UserError(f"the kubelet of {machine} has no {' and no '.join(lacking)}")
    found = [issue.load_all(texts[path]["pem"].encode(), path)[0] for path in KUBELET_FILES]
    for one in served:
        if one["unit"] != "kubelet":
            continue
        if "pem" not in one:
            raise UserError(f"the kubelet of {machine} shows no certificate at {one['where']}: {one['error']}")
        found.append(x509.load_pem_x509_certificate(one["pem"].encode()))
    return found
