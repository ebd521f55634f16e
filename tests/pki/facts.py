"""What a certificate says, in plain data that two of them can be compared by."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kubepki import keys


def of(pem: str) -> dict[str, Any]:
    """Everything but the serial number, the key itself, and the encoding of texts."""
    found = x509.load_pem_x509_certificate(pem.encode())
    own = x509.SubjectKeyIdentifier.from_public_key(found.public_key())  # type: ignore[arg-type]
    return {
        "version": found.version.name,
        "serial is positive, with up to 159 bits": 0 < found.serial_number < 2**159,
        "subject": name(found.subject),
        "issuer": name(found.issuer),
        "begins": found.not_valid_before_utc,
        "life": found.not_valid_after_utc - found.not_valid_before_utc,
        "key": str(keys.kind(found.public_key())),  # type: ignore[arg-type]
        "algorithm": found.signature_algorithm_oid.dotted_string,
        "extensions": [(one.oid.dotted_string, one.critical) for one in found.extensions],
        **{
            type(one.value).__name__: extension(one.value)
            for one in found.extensions
            if not isinstance(one.value, x509.SubjectKeyIdentifier)
        },
        "own identifier": own in [one.value for one in found.extensions],
    }


def name(subject: x509.Name) -> list[list[tuple[str, str | bytes]]]:
    return [sorted((one.oid.dotted_string, one.value) for one in rdn) for rdn in subject.rdns]


def extension(value: x509.ExtensionType) -> Any:
    if isinstance(value, x509.SubjectAlternativeName):
        return [(type(one).__name__, str(one.value)) for one in value]
    if isinstance(value, x509.UnrecognizedExtension):
        return value.value
    return repr(value)


def of_csr(pem: str) -> dict[str, Any]:
    found = x509.load_pem_x509_csr(pem.encode())
    return {
        "subject": name(found.subject),
        "key": str(keys.kind(found.public_key())),  # type: ignore[arg-type]
        "algorithm": found.signature_algorithm_oid.dotted_string,
        "valid": found.is_signature_valid,
        "extensions": [(one.oid.dotted_string, one.critical, extension(one.value)) for one in found.extensions],
    }


def same_key(certificate: str, key: str) -> bool:
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return keys.load(key.encode(), "key").public_key().public_bytes(*form) == public.public_bytes(*form)


def differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Fields that differ; the begin may by a minute, because two clocks were read."""
    found = {}
    for key in left.keys() | right.keys():
        one, other = left.get(key), right.get(key)
        if isinstance(one, datetime) and isinstance(other, datetime) and abs((one - other).total_seconds()) <= 60:
            continue
        if one != other:
            found[key] = (one, other)
    return found
