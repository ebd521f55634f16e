"""Certificates in memory: what a CA signs, and whether it may.

Rules are RFC 5280's; the order of extensions and the choice of hashes are cfssl's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from kubepki import keys, usages
from kubepki.errors import CertificateError
from kubepki.keys import PrivateKey, PublicKey
from kubepki.names import Name

if TYPE_CHECKING:
    from kubepki.spec import Authority, Certificate

# Clocks of machines differ a little: a certificate is valid from shortly before it was made.
BACKDATE = timedelta(minutes=5)
# GeneralizedTime, and "no well-defined end" of RFC 5280, 4.1.2.5.
_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
# X.660: below 0 and 1 there are forty. cryptography panics at numbers of more than 128 bits.
_OID = re.compile(r"([01]\.[1-3]?[0-9]|2\.(0|[1-9][0-9]{0,36}))(\.(0|[1-9][0-9]{0,36}))*")
_BEGIN = b"-----BEGIN CERTIFICATE-----"
# The kinds of names by what they are in a certificate, in the order in which Go writes them.
KINDS: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "dns",
    x509.RFC822Name: "email",
    x509.IPAddress: "ip",
    x509.UniformResourceIdentifier: "uri",
}
_ORDER = tuple(KINDS.values())
# What cryptography raises for input that is not what it should be.
UNREADABLE = (
    ValueError,
    TypeError,
    # An Ed25519 key of another length, for one.
    InternalError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Template(NamedTuple):
    """What a certificate is to say, but for its key and its issuer. Times are aware, and UTC."""

    subject: x509.Name
    key_usages: frozenset[str]
    extended_usages: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    names: tuple[Name, ...] = ()
    is_ca: bool = False
    path_length: int | None = None
    ocsp_url: str = ""
    crl_url: str = ""
    issuer_urls: tuple[str, ...] = ()
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()


class Issuer(NamedTuple):
    """A CA: its certificate and the key of it."""

    certificate: x509.Certificate
    key: PrivateKey


def first_line(error: Exception) -> str:
    """The first line of what an error of cryptography says; its kind when it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def subject(cn: str, organisations: Iterable[str]) -> x509.Name:
    """O before CN, as everybody writes them."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organisations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, cn)])


def identifier(text: str) -> x509.ObjectIdentifier:
    """An object identifier out of numbers with dots. ValueError."""
    if not _OID.fullmatch(text):
        raise ValueError(f"{text!r} is no object identifier; write numbers with dots, such as 1.2.3")
    try:
        return x509.ObjectIdentifier(text)
    except ValueError as error:
        raise ValueError(f"{text!r:.80} is longer than an object identifier may be") from error


def matches(key: PrivateKey, certificate: x509.Certificate) -> bool:
    """Whether the certificate is for this key."""
    return key.public_key() == certificate.public_key()


def signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA's key signed the certificate, whatever their names are."""
    try:
        key, how = ca.public_key(), certificate.signature_algorithm_parameters
        signed, signature = certificate.tbs_certificate_bytes, certificate.signature
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(how, ec.ECDSA):
            key.verify(signature, signed, how)
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(how, padding.PKCS1v15 | padding.PSS):
            if certificate.signature_hash_algorithm is None:
                return False
            key.verify(signature, signed, how, certificate.signature_hash_algorithm)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and how is None:
            key.verify(signature, signed)
        else:
            return False
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the names and the signature say that this CA issued it; one that issued itself is a root."""
    try:
        # Go compares the encoded bytes of names, and so do we; cryptography compares their values.
        same = certificate.issuer.public_bytes() == ca.subject.public_bytes()
    except UNREADABLE:
        return False
    return same and signed_by(certificate, ca)


def end_of(begin: datetime, life: timedelta) -> datetime:
    """When a life ends that begins now; never past what a certificate can say."""
    return min(begin + life, _END_OF_TIME) if life <= _END_OF_TIME - begin else _END_OF_TIME


def key_usage(attributes: Iterable[str]) -> x509.KeyUsage:
    """The extension with these bits set, by the names of its attributes."""
    bits = dict.fromkeys(usages.KEY.values(), False)
    return x509.KeyUsage(**bits | dict.fromkeys(attributes, True))


def general_name(name: Name) -> x509.GeneralName:
    """A subject alternative name as an object of the extension."""
    if name.kind == "ip":
        return x509.IPAddress(name.address)
    if name.kind == "email":
        return x509.RFC822Name(name.value)
    return x509.UniformResourceIdentifier(name.value) if name.kind == "uri" else x509.DNSName(name.value)


def alternative_names(names: Iterable[Name]) -> x509.SubjectAlternativeName:
    """The extension, with the kinds in Go's order."""
    ordered = sorted(names, key=lambda name: _ORDER.index(name.kind))
    return x509.SubjectAlternativeName([general_name(name) for name in ordered])


def leaf_key_usages(wanted: Certificate, key: PrivateKey) -> set[str]:
    """The attributes of the KeyUsage of a certificate in a specification."""
    bits = usages.key(wanted.profile.usages)
    if wanted.profile.adapted and isinstance(key, rsa.RSAPrivateKey):
        bits.add("key_encipherment")
    return bits


def for_certificate(wanted: Certificate, key: PrivateKey, ca: x509.Certificate, now: datetime) -> Template:
    """The template of a certificate in a specification, that never outlives its CA."""
    return Template(
        subject=subject(wanted.cn, wanted.o),
        key_usages=frozenset(leaf_key_usages(wanted, key)),
        extended_usages=tuple(usages.extended(wanted.profile.usages)),
        not_before=max(now - BACKDATE, ca.not_valid_before_utc),
        not_after=min(end_of(now, wanted.expiry), ca.not_valid_after_utc),
        names=wanted.hosts,
    )


def for_authority(wanted: Authority, now: datetime) -> Template:
    """The template of a CA in a specification."""
    return Template(
        subject=subject(wanted.cn, wanted.o),
        key_usages=frozenset({"digital_signature", "key_cert_sign", "crl_sign"}),
        extended_usages=(),
        not_before=now - BACKDATE,
        not_after=end_of(now, wanted.expiry),
        is_ca=True,
    )


def key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What certificates say of their CA's key: its own identifier, or the one that the key gives."""
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(ca.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _access(template: Template) -> list[x509.AccessDescription]:
    found = [(AuthorityInformationAccessOID.OCSP, template.ocsp_url)] if template.ocsp_url else []
    found += [(AuthorityInformationAccessOID.CA_ISSUERS, url) for url in template.issuer_urls]
    return [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in found]


def sign(
    template: Template, public: PublicKey, key: PrivateKey, ca: x509.Certificate | None = None
) -> x509.Certificate:
    """A certificate for `public`, signed with the CA's `key`; without a CA it is its own issuer."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        # The issuer's name is handed on as it is: Go compares the encoded bytes, not the values.
        .issuer_name(ca.subject if ca else template.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(template.not_before)
        .not_valid_after(template.not_after)
    )
    if template.key_usages:
        builder = builder.add_extension(key_usage(template.key_usages), critical=True)
    if template.extended_usages:
        oids = [x509.ObjectIdentifier(usage) for usage in template.extended_usages]
        builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
    builder = builder.add_extension(
        x509.BasicConstraints(template.is_ca, template.path_length), critical=True
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if ca:
        builder = builder.add_extension(key_identifier(ca), critical=False)
    if access := _access(template):
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), critical=False)
    if template.names:
        # RFC 5280, 4.2.1.6: critical when the subject says nothing.
        names = alternative_names(template.names)
        builder = builder.add_extension(names, critical=not template.subject.rdns)
    if template.crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(template.crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    for extension in template.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, keys.digest(key))


def unfit(certificate: x509.Certificate, now: datetime, *, for_a_ca: bool = False) -> str:
    """Why a certificate cannot issue others, or CAs with `for_a_ca`; empty when it can (RFC 5280, 4.2.1.9, 4.2.1.3)."""
    return _no_authority(certificate, for_a_ca=for_a_ca) or _not_now(certificate, now)


def _no_authority(certificate: x509.Certificate, *, for_a_ca: bool) -> str:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "is no CA: it has no basic constraints"
    if not constraints.ca:
        return "is no CA: its basic constraints say so"
    try:
        if not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            return "is a CA whose key usage lacks the signing of certificates"
    except x509.ExtensionNotFound:
        pass  # no restriction
    if for_a_ca and constraints.path_length == 0:
        return "is a CA that may not issue CAs: its path length is 0"
    return ""


def _not_now(certificate: x509.Certificate, now: datetime) -> str:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"expired on {end:%Y-%m-%d}"
    if now < begin:
        return f"is valid from {begin:%Y-%m-%d %H:%M} UTC, and the clock here says {now:%Y-%m-%d %H:%M}"
    return ""


def load(content: bytes, where: str) -> x509.Certificate:
    """The one certificate in a PEM text. CertificateError; `where` is what its messages call the text."""
    found = load_all(content, where)
    if len(found) > 1:
        raise CertificateError(f"{where} holds {len(found)} certificates", "give the one that is meant", 1003)
    return found[0]


def load_all(content: bytes, where: str) -> list[x509.Certificate]:
    """All certificates in a PEM text, at least one."""
    if _BEGIN not in content:
        what = "is empty" if not content.strip() else "holds no certificate in PEM"
        raise CertificateError(f"{where} {what}", "a certificate begins with -----BEGIN CERTIFICATE-----", 1002)
    try:
        found = x509.load_pem_x509_certificates(content)
        for certificate in found:
            _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
    except UNREADABLE as error:
        raise CertificateError(
            f"{where} is damaged: {first_line(error)}",
            "it was cut or changed, or has an encoding that is not supported: restore it",
            1003,
        ) from error
    begun = content.count(_BEGIN)
    if begun != len(found):
        # What has no end is passed over by the parser, as if it were not there.
        raise CertificateError(
            f"{where} is damaged: {begun} certificates begin in it, and {len(found)} are whole",
            "it was cut: restore it",
            1002,
        )
    return found
