"""What a certificate or a CSR says, as JSON in cfssl's form (`certinfo`), and what that leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kubepki import keys, usages
from kubepki.keys import PublicKey

_NAMES = {
    "common_name": NameOID.COMMON_NAME,
    "serial_number": NameOID.SERIAL_NUMBER,
    "country": NameOID.COUNTRY_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "province": NameOID.STATE_OR_PROVINCE_NAME,
    "street_address": NameOID.STREET_ADDRESS,
    "postal_code": NameOID.POSTAL_CODE,
}
# Of cfssl's two names of one bit that which its own files have.
_KEY_USAGES = {bit: usage for usage, bit in reversed(usages.KEY.items())}
# Go's names of signature algorithms.
_ALGORITHMS = {
    "1.2.840.113549.1.1.5": "SHA1WithRSA",
    "1.2.840.113549.1.1.11": "SHA256WithRSA",
    "1.2.840.113549.1.1.12": "SHA384WithRSA",
    "1.2.840.113549.1.1.13": "SHA512WithRSA",
    "1.2.840.10045.4.1": "ECDSAWithSHA1",
    "1.2.840.10045.4.3.2": "ECDSAWithSHA256",
    "1.2.840.10045.4.3.3": "ECDSAWithSHA384",
    "1.2.840.10045.4.3.4": "ECDSAWithSHA512",
    "1.3.101.112": "Ed25519",
}


def certificate(found: x509.Certificate) -> dict[str, Any]:
    """cfssl's fields, then `key`, `usages` (cfssl's names), and `ca` with `path_length` for a CA."""
    info: dict[str, Any] = {
        "subject": _name(found.subject),
        "issuer": _name(found.issuer),
        "serial_number": str(found.serial_number),
        "sans": _sans(found.extensions),
        "not_before": _time(found.not_valid_before_utc),
        "not_after": _time(found.not_valid_after_utc),
        "sigalg": algorithm(found.signature_algorithm_oid),
        "authority_key_id": _authority(found.extensions),
        "subject_key_id": _identifier(found.extensions),
    }
    info |= _beyond(found.extensions, found.public_key())
    info["pem"] = found.public_bytes(Encoding.PEM).decode()
    return info if info["sans"] else {key: value for key, value in info.items() if key != "sans"}


def csr(found: x509.CertificateSigningRequest) -> dict[str, Any]:
    """The fields of a certificate that a CSR has."""
    info: dict[str, Any] = {
        "subject": _name(found.subject),
        "sans": _sans(found.extensions),
        "sigalg": algorithm(found.signature_algorithm_oid),
    }
    return info | _beyond(found.extensions, found.public_key()) | {"pem": found.public_bytes(Encoding.PEM).decode()}


def algorithm(oid: x509.ObjectIdentifier) -> str:
    """Go's name of a signature algorithm; its number when Go has none."""
    return _ALGORITHMS.get(oid.dotted_string, oid.dotted_string)


def slashes(name: x509.Name) -> str:
    """A name as cfssl's bundles have it: `/Country=CN/CommonName=x`."""
    labels = {
        NameOID.COUNTRY_NAME: "Country",
        NameOID.STATE_OR_PROVINCE_NAME: "Province",
        NameOID.LOCALITY_NAME: "Locality",
        NameOID.ORGANIZATION_NAME: "Organization",
        NameOID.ORGANIZATIONAL_UNIT_NAME: "OrganizationalUnit",
        NameOID.COMMON_NAME: "CommonName",
        NameOID.SERIAL_NUMBER: "SerialNumber",
    }
    values = [(label, _text(one.value)) for oid, label in labels.items() for one in name.get_attributes_for_oid(oid)]
    return "".join(f"/{label}={value}" for label, value in values)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _name(name: x509.Name) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, oid in _NAMES.items():
        values = [_text(one.value) for one in name.get_attributes_for_oid(oid)]
        if values:
            found[key] = ",".join(values)
    values = [_text(one.value) for one in name]
    return {**found, "names": values} if values else found


def _sans(extensions: x509.Extensions) -> list[str]:
    """All names: DNS, addresses, and the e-mail addresses and URIs that cfssl loses."""
    try:
        found = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
    kinds: Iterable[type[x509.GeneralName]] = (
        x509.DNSName,
        x509.IPAddress,
        x509.RFC822Name,
        x509.UniformResourceIdentifier,
    )
    return [str(name.value) for kind in kinds for name in found if isinstance(name, kind)]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _colons(identifier: bytes | None) -> str:
    return (identifier or b"").hex(":").upper()


def _authority(extensions: x509.Extensions) -> str:
    try:
        return _colons(extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier)
    except x509.ExtensionNotFound:
        return ""


def _identifier(extensions: x509.Extensions) -> str:
    try:
        return _colons(extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)
    except x509.ExtensionNotFound:
        return ""


def _beyond(extensions: x509.Extensions, public: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(public, PublicKey):
        kind = keys.kind(public)
        found["key"] = {"algo": kind.algo, "size": kind.size}
    names: list[str] = []
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage):
            names += [_KEY_USAGES[bit] for bit in usages.bits(value)]
        elif isinstance(value, x509.ExtendedKeyUsage):
            names += [usages.name_of(usage.dotted_string) for usage in value]
        elif isinstance(value, x509.BasicConstraints):
            found["ca"] = value.ca
            if value.path_length is not None:
                found["path_length"] = value.path_length
    if names:
        found["usages"] = names
    return found
