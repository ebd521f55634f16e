"""Certificates in words, for people who compare two of them."""

from __future__ import annotations

from cryptography import x509

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def certificate(found: x509.Certificate) -> list[str]:
    """Lines with subject, issuer, names, usages, life and serial number; times are UTC."""
    lines = [
        f"subject {found.subject.rfc4514_string()}",
        f"issuer {found.issuer.rfc4514_string()}",
    ]
    for extension in found.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            lines += [f"SAN {name.value}" for name in value]
        elif isinstance(value, x509.ExtendedKeyUsage):
            lines += [f"usage {usage._name}" for usage in value]  # noqa: SLF001 - the only name that it has
        elif isinstance(value, x509.BasicConstraints) and value.ca:
            lines.append("is a CA")
    lines.append(f"valid {found.not_valid_before_utc:%Y-%m-%d %H:%M} to {found.not_valid_after_utc:%Y-%m-%d %H:%M}")
    lines.append(f"serial {found.serial_number:x}")
    return lines


def pem(content: bytes) -> str | None:
    """All certificates of a PEM file in words, a blank line between them; None for anything else."""
    if not content.startswith(_BEGIN):
        return None
    try:
        found = x509.load_pem_x509_certificates(content)
        return "\n".join("".join(f"{line}\n" for line in certificate(one)) for one in found)
    except ValueError:
        return None
