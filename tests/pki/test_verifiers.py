"""Those who judge can say no: each fault is found by each verifier that knows of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import making
import pytest
import verifiers
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from making import Made

from kubepki import issue, keys
from kubepki.keys import Key

_PAST = datetime.now(UTC) - timedelta(hours=2)


@pytest.fixture(scope="module")
def root() -> Made:
    return making.authority("root")


def _bare(ca: Made, name: str) -> Made:
    """With a name of any kind, and without the identifier of the CA's key."""
    key = keys.generate(Key())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(ca.certificate.subject, issue.subject("leaf", ()), key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return Made(certificate, key)


_FAULTS: dict[str, tuple[Callable[[Made], Made], str, dict[str, str]]] = {
    # What is wrong: (how it is made, under which name it is asked, verifier -> words of its refusal).
    "another CA": (
        lambda _: making.leaf(making.authority("root")),
        "leaf",
        {"openssl": "unable to get local issuer|signature failure", "go": "unknown authority", "tls": "verify failed"},
    ),
    "expired": (
        lambda root: making.leaf(root, not_before=_PAST - timedelta(hours=1), not_after=_PAST),
        "leaf",
        {"openssl": "has expired", "go": "has expired", "tls": "has expired"},
    ),
    "not yet": (
        lambda root: making.leaf(root, not_before=datetime.now(UTC) + timedelta(hours=1)),
        "leaf",
        {"openssl": "not yet valid", "go": "not yet valid", "tls": "not yet valid"},
    ),
    "a client's": (
        lambda root: making.leaf(root, usage="client"),
        "leaf",
        {"openssl": "purpose", "go": "incompatible key usage", "tls": "purpose"},
    ),
    "another name": (
        making.leaf,
        "other",
        {"openssl": "hostname mismatch", "go": "is valid for leaf, not other", "tls": "Hostname mismatch"},
    ),
    "another address": (
        lambda root: making.leaf(root, hosts=("10.0.0.1", "leaf")),
        "10.0.0.2",
        {"openssl": "IP address mismatch", "go": "is valid for 10.0.0.1, not 10.0.0.2", "tls": "IP address mismatch"},
    ),
    "of a leaf's": (
        lambda root: making.leaf(making.leaf(root, cn="root")),
        "leaf",
        {"openssl": "error", "go": "unknown authority", "tls": "verify failed"},
    ),
    "no identifier of the CA's key": (
        lambda root: _bare(root, "leaf"),
        "leaf",
        {"openssl": "Missing Authority Key Identifier", "tls": "Missing Authority Key Identifier", "pkilint": "key_id"},
    ),
    "an empty name": (lambda root: _bare(root, ""), "", {"pkilint": "domain_name_syntax"}),
    "blanks in a name": (lambda root: _bare(root, "a b"), "", {"pkilint": "domain_name_syntax"}),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_is_found(root: Made, fault: str) -> None:
    make, name, words = _FAULTS[fault]
    made = make(root)
    found = verifiers.complaints(made.pem, [root.pem], "server", [name] if name else [], made.key_pem)
    for verifier, said in words.items():
        heard = [line for line in found if line.startswith(verifier)]
        assert any(one in line for line in heard for one in said.split("|")), (fault, verifier, found)


def test_a_good_one_has_no_fault(root: Made) -> None:
    made = making.leaf(root)
    assert verifiers.complaints(made.pem, [root.pem], "peer", ["leaf"], made.key_pem) == []


def test_requests_and_revocation_lists_before_go(root: Made) -> None:
    key = keys.generate(Key("rsa", 2048))
    names = x509.SubjectAlternativeName([x509.DNSName("leaf"), x509.UniformResourceIdentifier("spiffe://a/b")])
    request = (
        x509.CertificateSigningRequestBuilder(root.certificate.subject)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    answer = verifiers.go_request(request)
    assert (answer["error"], answer["dns"], answer["uris"]) == ("", ["leaf"], ["spiffe://a/b"])
    now = datetime.now(UTC)
    revoked = x509.RevokedCertificateBuilder().serial_number(4711).revocation_date(now).build()
    revocation = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.certificate.subject)
        .last_update(now)
        .next_update(now + timedelta(days=1))
        .add_revoked_certificate(revoked)
        .sign(root.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    assert verifiers.go_revocation_list(revocation, root.pem)["serials"] == ["4711"]
    assert verifiers.go_revocation_list(revocation, root.pem)["error"] == ""
    other = making.authority("root")
    assert "verification failure" in verifiers.go_revocation_list(revocation, other.pem)["error"]
    tampered = bytearray(x509.load_pem_x509_csr(request).public_bytes(Encoding.DER))
    tampered[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(tampered)).public_bytes(Encoding.PEM)
    assert "verification error" in verifiers.go_request(broken)["error"]
