"""Who signed a certificate, and who issued it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from kubepki import bundle, issue, rules_x509
from kubepki.errors import CertificateError

NOW = datetime.now(UTC).replace(microsecond=0)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
KEYS: dict[str, Any] = {
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
    "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
}


def name(text: str, kind: _ASN1Type = _ASN1Type.UTF8String) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, kind)])


def certificate(public: str, signer: str, subject: x509.Name, issuer: x509.Name, **how: Any) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(KEYS[public].public_key())
        .serial_number(5)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
    )
    return builder.sign(KEYS[signer], None if signer.startswith("ed") else hashes.SHA256(), **how)


@pytest.mark.parametrize(
    ("kind", "how"), [("ecdsa", {}), ("rsa", {}), ("rsa", {"rsa_padding": PSS}), ("ed25519", {}), ("ed448", {})]
)
def test_the_key_that_signed(kind: str, how: dict[str, Any]) -> None:
    ca = certificate(kind, kind, name("ca"), name("ca"), **how)
    leaf = certificate("ecdsa", kind, name("leaf"), name("ca"), **how)
    assert issue.signed_by(leaf, ca)
    assert issue.issued_by(leaf, ca)
    assert issue.issued_by(ca, ca)
    stranger = certificate("ecdsa", kind, name("leaf"), name("another"), **how)
    assert issue.signed_by(stranger, ca)
    assert not issue.issued_by(stranger, ca)
    for other in KEYS.keys() - {kind}:
        assert not issue.signed_by(leaf, certificate(other, other, name("ca"), name("ca")))
    # The rules are about what Go verifies.
    assert rules_x509.signed_by(leaf, ca) == (kind != "ed448")
    assert rules_x509.issued_by(leaf, ca) == (kind != "ed448")


def test_names_are_compared_by_their_bytes() -> None:
    """As Go does, for which a CA of the same words in another encoding is no issuer."""
    ca = certificate("rsa", "rsa", name("ca"), name("ca"))
    leaf = certificate("ecdsa", "rsa", name("leaf"), name("ca", _ASN1Type.PrintableString))
    assert leaf.issuer == ca.subject
    assert issue.signed_by(leaf, ca)
    assert not issue.issued_by(leaf, ca)
    with pytest.raises(CertificateError, match="unknown authority"):
        bundle.build(leaf, [], [ca], NOW)
    whole = certificate("ecdsa", "rsa", name("leaf"), name("ca"))
    assert bundle.build(whole, [], [ca], NOW).root == ca
