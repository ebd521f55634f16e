"""Certificate revocation lists (RFC 5280, 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import issue, keys
from kubepki.errors import CertificateError, RequestError
from kubepki.issue import Issuer

LIFE = timedelta(days=7)
# RFC 5280, 4.1.2.2: 20 octets, the first bit of which is the sign.
_LONGEST_SERIAL = 2**159


def serials(content: bytes, where: str) -> list[int]:
    """The decimal numbers of a file, one per line, each once. RequestError."""
    found = []
    for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
        text = line.strip()
        if not text:
            continue
        if not re.fullmatch(r"[0-9]{1,49}", text) or not 0 < int(text) < _LONGEST_SERIAL:
            raise RequestError(
                f"{where}, line {number}: {text!r:.60} is no serial number",
                "write them in decimal, one per line, as kubepki certinfo shows them",
            )
        found.append(int(text))
    return list(dict.fromkeys(found))


def life(text: str) -> timedelta:
    """A number of seconds. RequestError."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) == 0:
        raise RequestError(f"{text!r} is no number of seconds until the next list", "604800 is a week")
    return timedelta(seconds=int(text))


def make(revoked: Sequence[int], ca: Issuer, now: datetime, life: timedelta) -> bytes:
    """A list in DER, valid from `now` for `life`. CertificateError when the CA may not sign one."""
    try:
        signs = ca.certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        signs = True
    if not signs:
        name = ca.certificate.subject.rfc4514_string()
        raise CertificateError(f"{name} may not sign revocation lists", 'its key usage lacks "crl sign"')
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now)
        .next_update(issue.end_of(now, life))
        .add_extension(issue.key_identifier(ca.certificate), critical=False)
        # RFC 5280, 5.2.3: each list has a greater number than the one before it.
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(ca.key, keys.digest(ca.key)).public_bytes(Encoding.DER)
