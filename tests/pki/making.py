"""Certificates beyond what a specification says: chains, odd templates, what others have made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import issue, keys, names, usages
from kubepki.issue import Issuer, Template
from kubepki.keys import Key

SIGNING = frozenset({"digital_signature"})
_CA_BITS = frozenset({"digital_signature", "key_cert_sign", "crl_sign"})


@dataclass(frozen=True)
class Made:
    """A certificate of kubepki's with its key, as objects and as PEM."""

    certificate: x509.Certificate
    key: keys.PrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return keys.pem(self.key)

    @property
    def issuer(self) -> Issuer:
        return Issuer(self.certificate, self.key)


def template(cn: str = "leaf", usage: str = "peer", hosts: tuple[str, ...] = ("leaf",), **fields: Any) -> Template:
    """A leaf's that is valid for a day; `usage`: `server`, `client` or `peer`."""
    extended = {"server": ("server auth",), "client": ("client auth",), "peer": ("server auth", "client auth")}[usage]
    now = datetime.now(UTC)
    made = Template(
        subject=issue.subject(cn, ()),
        key_usages=SIGNING,
        extended_usages=tuple(usages.extended(extended)),
        not_before=now - timedelta(minutes=5),
        not_after=now + timedelta(days=1),
        names=tuple(names.parse(host) for host in hosts),
    )
    return made._replace(**fields)


def leaf(ca: Made | None, key: Key | None = None, **fields: Any) -> Made:
    """A leaf below `ca`; `fields` are those of `template`."""
    own = keys.generate(key or Key())
    wanted = template(**fields)
    return Made(issue.sign(wanted, own.public_key(), ca.key if ca else own, ca.certificate if ca else None), own)


def authority(cn: str, parent: Made | None = None, key: Key | None = None, **fields: Any) -> Made:
    """A CA, below `parent` or self-signed."""
    return leaf(
        parent,
        key,
        **{"cn": cn, "hosts": (), "key_usages": _CA_BITS, "extended_usages": (), "is_ca": True} | fields,
    )
