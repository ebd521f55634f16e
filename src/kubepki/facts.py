"""What a certificate says, read without trusting it: whatever cannot be read is a word in `problems`, never an error.

All texts are plain: what a terminal would act upon, and what is no text at all, is written as an escape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from kubepki import issue, keys, usages
from kubepki.issue import UNREADABLE
from kubepki.names import Name

_SIGNATURES = {
    oid.dotted_string: name.replace("_WITH_", " with ")
    for name, oid in vars(SignatureAlgorithmOID).items()
    if isinstance(oid, x509.ObjectIdentifier)
}
# Of cfssl's two names of one bit that which says more.
_KEY_USAGES = {bit: usage for usage, bit in usages.KEY.items()}
_WEAK_HASHES = ("md2", "md4", "md5", "sha1")


def plain(text: str) -> str:
    """The text without anything that is not printed: control characters, marks of direction, halves of characters."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)


def first_line(error: Exception) -> str:
    """`issue.first_line` in plain text."""
    return plain(issue.first_line(error))


@dataclass(frozen=True)
class PublicKey:
    """A public key: `kind` in words such as `ecdsa 256`; `encoded` as DER of SubjectPublicKeyInfo, or empty."""

    kind: str
    encoded: bytes = field(repr=False)
    weakness: str = ""


@dataclass(frozen=True)
class Extensions:
    """What the extensions of a certificate or of a request say; usages by cfssl's names, identifiers in hex."""

    names: tuple[Name, ...] = ()
    key_usages: tuple[str, ...] = ()
    usages: tuple[str, ...] = ()
    is_ca: bool = False
    path_length: int | None = None
    subject_key: str = ""
    authority_key: str = ""
    critical: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Facts:
    """A certificate; times are UTC. `fingerprint`: SHA-256 in hex. `problems`: what in it cannot be read."""

    subject: str
    issuer: str
    serial: int
    not_before: datetime
    not_after: datetime
    key: PublicKey
    signature: str
    weak_signature: bool
    version: int
    extensions: Extensions
    fingerprint: str
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[Name, ...]:
        """The subject alternative names."""
        return self.extensions.names

    @property
    def title(self) -> str:
        """What to call it: its subject, or its first name when the subject is empty."""
        return self.subject or (str(self.names[0]) if self.names else "(no subject)")


def of(found: x509.Certificate) -> Facts:
    """The facts of a certificate."""
    problems: list[str] = []
    extensions = of_extensions(found)
    if extensions.problem:
        problems.append(extensions.problem)
    key = of_public_key(found)
    if not key.encoded:
        problems.append(f"its key cannot be read: {key.kind}")
    return Facts(
        subject=_name(lambda: found.subject, problems, "subject"),
        issuer=_name(lambda: found.issuer, problems, "issuer"),
        serial=found.serial_number,
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
        key=key,
        signature=_SIGNATURES.get(
            found.signature_algorithm_oid.dotted_string, found.signature_algorithm_oid.dotted_string
        ),
        weak_signature=_hash_name(found) in _WEAK_HASHES,
        version=found.version.value + 1,
        extensions=extensions,
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
        problems=tuple(problems),
    )


def name(found: x509.Name) -> str:
    """A name in the form of RFC 4514, its last part first."""
    return plain(found.rfc4514_string({NameOID.EMAIL_ADDRESS: "emailAddress"}))


def _name(read: Callable[[], x509.Name], problems: list[str], what: str) -> str:
    try:
        return name(read())
    except UNREADABLE as error:
        problems.append(f"its {what} cannot be read: {first_line(error)}")
        return f"(unreadable {what})"


def _hash_name(found: x509.Certificate) -> str:
    try:
        algorithm = found.signature_hash_algorithm
    except UNREADABLE:
        # MD2 and the like, which cryptography does not know by name.
        return _SIGNATURES.get(found.signature_algorithm_oid.dotted_string, "md2").rpartition(" ")[2].lower()
    return algorithm.name if algorithm else ""


def of_public_key(found: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey:
    """The public key of a certificate or a request; one that cannot be read has its reason for a kind."""
    try:
        key = found.public_key()
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE as error:
        return PublicKey(first_line(error), b"")
    return public_key(key, encoded)


def public_key(key: Any, encoded: bytes) -> PublicKey:
    """A public key in words, and what is weak about it: RSA below 2048 bits (NIST SP 800-57: 112 bits of strength)."""
    if isinstance(key, dsa.DSAPublicKey):
        return PublicKey(f"dsa {key.key_size}", encoded, "DSA is not supported by TLS 1.3, nor by Go")
    if not isinstance(key, keys.PublicKey):
        return PublicKey(type(key).__name__.removesuffix("PublicKey").lower(), encoded)
    kind = keys.kind(key)
    words = str(kind)
    if isinstance(key, ec.EllipticCurvePublicKey) and not key.curve.name.startswith("secp"):
        words += f" ({key.curve.name})"
    least = {"rsa": 2048, "ecdsa": 224}.get(kind.algo, 0)
    weakness = f"its key has {kind.size} bits, {kind.algo} needs {least}" if kind.size < least else ""
    return PublicKey(words, encoded, weakness)


def of_extensions(found: x509.Certificate | x509.CertificateSigningRequest) -> Extensions:
    """What the extensions say; one that is malformed makes all of them unreadable, as it does for verifiers."""
    try:
        said: dict[str, Any] = {}
        critical: list[str] = []
        for extension in found.extensions:
            part = _extension(extension.value)
            said |= part
            if extension.critical and not part:
                critical.append(extension.oid.dotted_string)
        return Extensions(**said, critical=tuple(critical))
    except UNREADABLE as error:
        return Extensions(problem=f"its extensions cannot be read: {first_line(error)}")


def _extension(value: x509.ExtensionType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(value, x509.SubjectAlternativeName):
        found = {"names": tuple(_general_name(one) for one in value)}
    elif isinstance(value, x509.ExtendedKeyUsage):
        found = {"usages": tuple(usages.name_of(one.dotted_string) for one in value)}
    elif isinstance(value, x509.KeyUsage):
        found = {"key_usages": tuple(_KEY_USAGES[bit] for bit in usages.bits(value))}
    elif isinstance(value, x509.BasicConstraints):
        found = {"is_ca": value.ca, "path_length": value.path_length}
    elif isinstance(value, x509.SubjectKeyIdentifier):
        found = {"subject_key": value.digest.hex()}
    elif isinstance(value, x509.AuthorityKeyIdentifier):
        found = {"authority_key": (value.key_identifier or b"").hex()}
    return found


def _general_name(one: x509.GeneralName) -> Name:
    if kind := issue.KINDS.get(type(one)):
        return Name(kind, plain(str(one.value)))
    if isinstance(one, x509.DirectoryName):
        return Name("directory", name(one.value))
    return Name("other", f"other name {getattr(getattr(one, 'type_id', one.value), 'dotted_string', '')}".rstrip())
