"""Chains: from a certificate over intermediates to a root that is trusted (`bundle`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from kubepki import certinfo, constraints, issue, keys
from kubepki.errors import CertificateError
from kubepki.keys import PrivateKey, PublicKey
from kubepki.names import Name

# cfssl's `VerifyFailed` with x509's `UnknownAuthority` and `Expired`.
_UNKNOWN_AUTHORITY = 1220
_SELF_SIGNED = 1100
_EXPIRED = 1211
# Longer chains than this are loops, or worse.
_LONGEST = 10


@dataclass(frozen=True)
class Chain:
    """Certificates from the leaf upwards, without the root, and the root; None when nobody asked for one."""

    certificates: tuple[x509.Certificate, ...]
    root: x509.Certificate | None


def build(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime
) -> Chain:
    """The shortest chain to a root; of several, the one that lives longest. CertificateError when there is none."""
    if now >= leaf.not_valid_after_utc:
        raise CertificateError(
            f"{leaf.subject.rfc4514_string()} expired on {leaf.not_valid_after_utc:%Y-%m-%d}",
            "have it renewed",
            _EXPIRED,
        )
    if now < leaf.not_valid_before_utc:
        begin = leaf.not_valid_before_utc
        raise CertificateError(
            f"{leaf.subject.rfc4514_string()} is before its time: it begins {begin:%Y-%m-%d %H:%M} UTC",
            "is the clock right?",
            _EXPIRED,
        )
    known = {root.fingerprint(SHA256()) for root in roots}
    if leaf.fingerprint(SHA256()) in known:
        return Chain((leaf,), leaf)
    if issue.issued_by(leaf, leaf):
        name = leaf.subject.rfc4514_string()
        raise CertificateError(
            f"Certificate is self signed: {name}", "as a root it belongs into -ca-bundle", _SELF_SIGNED
        )
    # Breadth first: the first length that reaches a root is the shortest.
    paths: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    unfit = ""
    seen = {leaf}
    for _ in range(_LONGEST):
        found: list[Chain] = []
        longer: list[tuple[x509.Certificate, ...]] = []
        for path in paths:
            for ca in (*roots, *intermediates):
                if ca in seen or not issue.issued_by(path[-1], ca):
                    continue
                reason = issue.unfit(ca, now) or _too_long(ca, len(path) - 1) or _not_named(ca, leaf)
                if reason:
                    unfit = f"{ca.subject.rfc4514_string()} {reason}"
                elif ca.fingerprint(SHA256()) in known:
                    found.append(Chain(path, ca))
                else:
                    seen.add(ca)
                    longer.append((*path, ca))
        if found:
            return max(found, key=expires)
        paths = longer
    raise CertificateError(
        f"x509: certificate signed by unknown authority: {leaf.subject.rfc4514_string()} is from "
        f"{leaf.issuer.rfc4514_string()}, which leads to no root" + (f" ({unfit})" if unfit else ""),
        "name the roots with -ca-bundle, and what lies between with -int-bundle",
        _UNKNOWN_AUTHORITY,
    )


def as_given(given: Sequence[x509.Certificate]) -> Chain:
    """The certificates of a file as they are, when each issued the one before it. CertificateError."""
    for lower, upper in itertools.pairwise(given):
        if not issue.issued_by(lower, upper):
            raise CertificateError(
                f"{upper.subject.rfc4514_string()} did not issue {lower.subject.rfc4514_string()}, the one before it",
                "put the certificates into the order of the chain, the leaf first",
                _UNKNOWN_AUTHORITY,
            )
    return Chain(tuple(given), None)


def expires(chain: Chain) -> datetime:
    """When the first of the chain ends."""
    everyone = [*chain.certificates, *([chain.root] if chain.root else [])]
    return min(certificate.not_valid_after_utc for certificate in everyone)


def as_json(chain: Chain, key: PrivateKey | None) -> dict[str, Any]:
    """The fields of cfssl's answer, in its order."""
    leaf = chain.certificates[0]
    public = leaf.public_key()
    kind = keys.kind(public) if isinstance(public, PublicKey) else None
    common = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    ocsp = _ocsp(leaf)
    label = {"rsa": "RSA", "ecdsa": "ECDSA", "ed25519": "Ed25519"}
    return {
        "bundle": "\n".join(_pem(one) for one in chain.certificates),
        "crl_support": _has(leaf, x509.CRLDistributionPoints),
        "crt": _pem(leaf),
        "expires": f"{expires(chain):%Y-%m-%dT%H:%M:%SZ}",
        "hostnames": sorted({*common, *_hosts(leaf)}),
        "issuer": certinfo.slashes(leaf.issuer),
        "key": keys.traditional_pem(key).decode().rstrip() if key else "",
        "key_size": kind.size if kind else 0,
        "key_type": f"{kind.size}-bit {label[kind.algo]}" if kind else "",
        "leaf_expires": f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "ocsp": ocsp or None,
        "ocsp_support": bool(ocsp),
        "root": _pem(chain.root) if chain.root else "",
        "signature": certinfo.algorithm(leaf.signature_algorithm_oid),
        "status": {"rebundled": False, "expiring_SKIs": None, "untrusted_root_stores": [], "messages": [], "code": 0},
        "subject": certinfo.slashes(leaf.subject),
    }


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode().rstrip()


def _too_long(ca: x509.Certificate, below: int) -> str:
    """`below`: how many CAs lie between it and the leaf."""
    length = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return f"allows {length} CAs below it, and here are {below}" if length is not None and below > length else ""


def _not_named(ca: x509.Certificate, leaf: x509.Certificate) -> str:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    names = [Name("dns", one.value) for one in found if isinstance(one, x509.DNSName)]
    names += [Name("ip", str(one.value)) for one in found if isinstance(one, x509.IPAddress)]
    refused = constraints.refused(ca, names)
    return f"may not issue for {', '.join(map(str, refused))}: its name constraints say so" if refused else ""


def _has(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> bool:
    return any(isinstance(extension.value, kind) for extension in certificate.extensions)


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]


def _ocsp(certificate: x509.Certificate) -> list[str]:
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return []
    return [str(one.access_location.value) for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
