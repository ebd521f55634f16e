"""A request for a certificate, as cfssl's JSON describes it (`csr.CertificateRequest`)."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from kubepki import issue, keys, names
from kubepki.errors import PrivateKeyError, RequestError
from kubepki.keys import Key, PrivateKey
from kubepki.names import Name
from kubepki.reading import Reader, Section, Warn, shown

_TOP = (
    "CN",
    "names",
    "hosts",
    "key",
    "ca",
    "serialnumber",
    "delegation_enabled",
    "extensions",
    "crl_url",
)
_SUBJECT = ("C", "ST", "L", "O", "OU", "E", "SerialNumber", "OID")
_OIDS = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
}
_DELEGATION = x509.ObjectIdentifier("1.3.6.1.4.1.44363.44")
_LONGEST_PATH = 100
_ASN1_NULL = b"\x05\x00"
# What is no text in UTF-8 (RFC 5280, appendix A.1): a PrintableString, an IA5String.
_PRINTABLE = (
    NameOID.COUNTRY_NAME,
    NameOID.SERIAL_NUMBER,
    NameOID.DN_QUALIFIER,
    NameOID.JURISDICTION_COUNTRY_NAME,
)
_ASCII = (NameOID.EMAIL_ADDRESS, NameOID.DOMAIN_COMPONENT)
_PRINTABLE_TEXT = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")
# RFC 5280, appendix A.1: the upper bounds of the attributes.
_LENGTHS = {"CN": 64, "O": 64, "OU": 64, "ST": 128, "L": 128, "serialnumber": 64}


class CaSettings(NamedTuple):
    """The section `ca`: what a CA is to be. None where the file says nothing."""

    expiry: timedelta | None = None
    backdate: timedelta | None = None
    path_length: int | None = None


class Request(NamedTuple):
    """A read request. `subject` may be empty; `extensions` are those that the file spells out."""

    subject: x509.Name
    hosts: tuple[Name, ...]
    key: Key
    ca: CaSettings | None = None
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()
    crl_url: str = ""


def parse(content: bytes, where: str, warn: Warn, *, compat: bool = False) -> Request:
    """Read the JSON of a request. RequestError with every problem; PrivateKeyError for a key that must not be made."""
    reader = Reader(where, RequestError, warn, compat=compat)
    top = Section(reader, "", reader.decode(content), _TOP)
    found = Request(
        subject=_subject(reader, top),
        hosts=hosts(reader, "hosts", top.texts("hosts"), compat=compat),
        ca=_ca(reader, top),
        extensions=_extensions(reader, top),
        crl_url=top.text("crl_url"),
        # Last: what is wrong with it is an error of its own.
        key=_key(reader, top),
    )
    reader.finish()
    return found


def hosts(reader: Reader, field: str, texts: tuple[str, ...], *, compat: bool) -> tuple[Name, ...]:
    """Subject alternative names, each once."""
    found = []
    for text in texts:
        if compat and not text.strip():
            reader.warn(f"{field}: an empty name was left out")
            continue
        if compat and text.endswith(".") and text.strip("."):
            reader.warn(f"{field}: the dot at the end of {text!r} was left out")
            text = text[:-1]  # noqa: PLW2901 - the same name
        try:
            found.append(names.parse(text))
        except ValueError as error:
            reader.problem(f"{field}: {error}")
    return tuple(dict.fromkeys(found))


def _key(reader: Reader, top: Section) -> Key:
    section = top.section("key", ("algo", "size"))
    # As in cfssl: what is not said is that of ecdsa 256.
    algo = section.text("algo") or "ecdsa"
    size = section.number("size") or 256
    wrong = ""
    if algo == "rsa":
        wrong = "RSA key is too weak" if size < 2048 else "RSA key size too large" if size > 8192 else ""
    elif algo == "ecdsa":
        wrong = "" if size in (256, 384, 521) else "invalid curve"
    elif algo == "ed25519":
        size = 256
    else:
        wrong = "invalid algorithm"
    if wrong:
        reader.finish()
        raise PrivateKeyError(
            f"{wrong}: {reader.where} asks for {algo} with {size} bits",
            "there are ecdsa with 256, 384 or 521, rsa with 2048 to 8192, and ed25519",
            2400,
        )
    return Key(algo, size)


def _subject(reader: Reader, top: Section) -> x509.Name:
    values: dict[str, list[str]] = {name: [] for name in _OIDS}
    emails: list[str] = []
    others: list[tuple[x509.ObjectIdentifier, str]] = []
    for section in top.sections("names", _SUBJECT):
        for name in _OIDS:
            if text := section.text(name):
                values[name].append(_bounded(reader, section.at(name), name, text))
        if text := section.text("E"):
            emails.append(text)
        if section.text("SerialNumber"):
            reader.lenient(f"{section.at('SerialNumber')} is read by nothing; write serialnumber at the top")
        others += _oids(reader, section)
    for country in values["C"]:
        if len(country) != 2:
            reader.problem(f"names: C {country!r} must be the two letters of a country (X.520)")
    name = _bounded(reader, "CN", "CN", top.text("CN"))
    number = _bounded(reader, "serialnumber", "serialnumber", top.text("serialnumber"))
    # Several values of one kind are one part of the name, as cfssl makes it.
    parts = [[(_OIDS[kind], value) for value in values[kind]] for kind in _OIDS]
    parts.append([(NameOID.COMMON_NAME, name)] if name else [])
    parts.append([(NameOID.SERIAL_NUMBER, number)] if number else [])
    parts += [[(NameOID.EMAIL_ADDRESS, email)] for email in emails]
    parts += [[one] for one in sorted(others, key=lambda one: one[0].dotted_string)]
    return x509.Name([]) if reader.problems else _name(reader, parts)


def _oids(reader: Reader, section: Section) -> list[tuple[x509.ObjectIdentifier, str]]:
    oids = section.raw("OID")
    if not isinstance(oids, dict):
        if oids is not None:
            reader.problem(f'{section.at("OID")} is {shown(oids)}; write {{"1.2.3": "value"}}')
        return []
    found = []
    for oid, value in oids.items():
        if not isinstance(value, str):
            reader.problem(f"{section.at('OID')}: {oid!r}: {shown(value)}; write a text")
            continue
        try:
            found.append((issue.identifier(oid), value))
        except ValueError as error:
            reader.problem(f"{section.at('OID')}: {error}")
    return found


def _name(reader: Reader, parts: list[list[tuple[x509.ObjectIdentifier, str]]]) -> x509.Name:
    for oid, value in (one for part in parts for one in part):
        if (oid in _PRINTABLE and not _PRINTABLE_TEXT.fullmatch(value)) or (oid in _ASCII and not value.isascii()):
            allowed = "ASCII" if oid in _ASCII else "letters, digits, blanks and '()+,-./:=?"
            reader.problem(f"names: X.520 allows {allowed} here: {value!r:.60}")
            return x509.Name([])
    try:
        return x509.Name(
            [
                x509.RelativeDistinguishedName([x509.NameAttribute(oid, value) for oid, value in dict.fromkeys(part)])
                for part in parts
                if part
            ]
        )
    except ValueError as error:
        reader.problem(f"names: {error}")
        return x509.Name([])


def _bounded(reader: Reader, field: str, kind: str, text: str) -> str:
    allowed = _LENGTHS.get(kind, 128)
    if len(text) > allowed:
        reader.problem(f"{field} has {len(text)} characters, X.509 allows {allowed}: {text!r:.60}")
    return text


def _ca(reader: Reader, top: Section) -> CaSettings | None:
    if "ca" not in top:
        return None
    section = top.section("ca", ("expiry", "backdate", "pathlen", "pathlenzero"))
    length: int | None = section.number("pathlen")
    if not 0 <= (length or 0) <= _LONGEST_PATH:
        reader.problem(f"{section.at('pathlen')} is {length}; write 0 to {_LONGEST_PATH}")
    if not length:
        # 0 is also what is not said: only `pathlenzero` means it.
        length = 0 if section.switch("pathlenzero") else None
    elif section.switch("pathlenzero"):
        reader.lenient(f"{section.at('pathlenzero')} contradicts pathlen {length}; remove one of them")
    return CaSettings(section.duration("expiry"), section.duration("backdate"), length)


def _extensions(reader: Reader, top: Section) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    found: list[x509.Extension[x509.ExtensionType]] = []
    for section in top.sections("extensions", ("Id", "Critical", "Value")):
        numbers = section.entries("Id")
        try:
            value = base64.b64decode(section.text("Value"), validate=True)
        except ValueError:
            reader.problem(f"{section.at('Value')} is not base64")
            continue
        try:
            identifier = issue.identifier(".".join(map(shown, numbers)))
        except ValueError:
            reader.problem(f"{section.at('Id')} is {shown(numbers)}; write [1, 2, 3]")
            continue
        found.append(
            x509.Extension(identifier, section.switch("Critical"), x509.UnrecognizedExtension(identifier, value))
        )
    if top.switch("delegation_enabled"):
        found.append(x509.Extension(_DELEGATION, False, x509.UnrecognizedExtension(_DELEGATION, _ASN1_NULL)))
    return tuple(found)


def sign(
    subject: x509.Name,
    hosts: tuple[Name, ...],
    key: PrivateKey,
    ca: CaSettings | None = None,
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = (),
) -> x509.CertificateSigningRequest:
    """A CSR with the extensions that cfssl puts into one: names, and basic constraints for a CA. RequestError."""
    builder = x509.CertificateSigningRequestBuilder(subject_name=subject)
    if hosts:
        builder = builder.add_extension(issue.alternative_names(hosts), critical=False)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=ca.path_length), critical=True)
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = keys.digest(key)
    try:
        for extension in extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        made = builder.sign(key, digest)
        # Values that the file spells out may be no ASN.1.
        _ = made.extensions
        return made
    except issue.UNREADABLE as error:
        # Such as one extension twice.
        raise RequestError(f"such a request cannot be made: {error}", "look at names and extensions") from error


def load(content: bytes, where: str) -> x509.CertificateSigningRequest:
    """The CSR in a PEM text, its signature verified. RequestError."""
    if (
        b"-----BEGIN CERTIFICATE REQUEST-----" not in content
        and b"-----BEGIN NEW CERTIFICATE REQUEST-----" not in content
    ):
        what = "is empty" if not content.strip() else "holds no CSR in PEM"
        raise RequestError(f"{where} {what}", "a CSR begins with -----BEGIN CERTIFICATE REQUEST-----", 9002)
    try:
        found = x509.load_pem_x509_csr(content)
        valid = found.is_signature_valid
        _ = found.subject, found.extensions, found.public_key()
    except issue.UNREADABLE as error:
        reason = issue.first_line(error)
        raise RequestError(f"{where} is damaged: {reason}", "it was cut or changed: make it anew", 9003) from error
    if not valid:
        raise RequestError(
            f"the signature of {where} is not by the key in it",
            "it was changed after it was signed: make it anew",
            9003,
        )
    return found


def with_common_name(subject: x509.Name, name: str) -> x509.Name:
    """A subject with this CN in the place of its own. RequestError."""
    is_name = [any(one.oid == NameOID.COMMON_NAME for one in rdn) for rdn in subject.rdns]
    kept = [rdn for rdn, is_cn in zip(subject.rdns, is_name, strict=True) if not is_cn]
    # Without one of its own it comes where it would be: after what cfssl writes before it.
    before = {*_OIDS.values()}
    ahead = sum(all(one.oid in before for one in rdn) for rdn in kept)
    place = is_name.index(True) if True in is_name else ahead
    try:
        own = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise RequestError(f"-cn {name!r:.80}: {error}") from error
    return x509.Name([*kept[:place], own, *kept[place:]])


def names_of(certificate: x509.Certificate, where: str) -> tuple[Name, ...]:
    """The alternative names of a certificate. RequestError for one that no request should repeat."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    try:
        return tuple(dict.fromkeys(names.parse(str(name.value)) for name in found))
    except ValueError as error:
        raise RequestError(f"{where}: the name {error}", "write a request without it, and give that") from error
