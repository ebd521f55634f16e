"""Rules for any certificate and any CA: files, RFC 5280, and what Go and OpenSSL make of it. Nothing here is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kubepki import issue, names, usages
from kubepki.keys import PublicKey
from kubepki.rulebook import Entry, Finding, Found, KeyFile
from kubepki.spec import Authority, Certificate, Spec

_E = TypeVar("_E", bound=x509.ExtensionType)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
# Ten years with their leap days, and the minutes by which certificates begin before they were made.
_LONG = timedelta(days=3654)
# A chain that is longer is a circle.
_DEEPEST = 10


def extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    """The value of an extension, None when the certificate has none of the kind."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def extended(certificate: x509.Certificate) -> tuple[str, ...] | None:
    """Object identifiers of the extended usages; None when there are none."""
    found = extension(certificate, x509.ExtendedKeyUsage)
    return None if found is None else tuple(usage.dotted_string for usage in found)


def san(certificate: x509.Certificate) -> tuple[list[str], list[names.IPAddress]]:
    """DNS names, as they are written, and addresses."""
    found = extension(certificate, x509.SubjectAlternativeName)
    if found is None:
        return [], []
    addresses = [one for one in found.get_values_for_type(x509.IPAddress) if isinstance(one, names.IPAddress)]
    return found.get_values_for_type(x509.DNSName), addresses


def has_names(certificate: x509.Certificate) -> bool:
    """Whether there is a name or an address that a server could be looked for under."""
    return any(san(certificate))


def signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA's key made the signature, whatever the names say; Go knows no Ed448, and so it makes none here."""
    return isinstance(ca.public_key(), PublicKey) and issue.signed_by(certificate, ca)


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether names and signature say that this CA issued it."""
    return certificate.issuer == ca.subject and signed_by(certificate, ca)


def self_signed(certificate: x509.Certificate) -> bool:
    """Whether it is its own issuer."""
    return issued_by(certificate, certificate)


def key_bytes(key: CertificatePublicKeyTypes) -> bytes:
    """What two equal keys have in common."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def title(certificate: x509.Certificate) -> str:
    """The subject, in words."""
    return certificate.subject.rfc4514_string() or "(no subject)"


def _apply(what: str = "") -> str:
    return f"{what}, then run kubepki apply" if what else "run kubepki apply"


def leaf(wanted: Certificate, entry: Entry, ca: Entry | None, now: datetime) -> Iterator[Finding]:
    """Breaches of one certificate, all rules about roles apart."""
    certificate = entry.certificate
    if certificate is None:
        yield _unreadable(wanted.name, entry)
        return
    yield from _leaf_key(wanted, entry.key, certificate)
    yield from _life(wanted.name, certificate, now, renewal=_apply())
    # Nothing here verifies SHA-1 or MD5, and such a signature proves nothing.
    if ca and ca.certificate and not _weak_hash(certificate):
        yield from _issuer(wanted, certificate, ca, ca.certificate)
    yield from _strength(wanted.name, certificate, renewal=_apply("remove both of its files"))
    yield from _uses(wanted, certificate)
    yield from _names(wanted.name, certificate)


def _unreadable(name: str, entry: Entry) -> Finding:
    if entry.problem:
        return Finding("damaged", name, entry.problem, _apply("restore it, or remove it to have a new one"))
    return Finding("missing", name, f"{entry.path} is missing", _apply())


def _mode(name: str, key: KeyFile, allowed: int) -> Iterator[Finding]:
    if key.state != "missing" and key.mode & 0o077 & ~allowed:
        yield Finding(
            "key-mode",
            name,
            f"{key.path} has mode {key.mode:04o}, others than its owner can read it",
            f"chmod {allowed:04o} {key.path}; whoever could read it may have it: consider a new one",
        )


def _leaf_key(wanted: Certificate, key: KeyFile, certificate: x509.Certificate) -> Iterator[Finding]:
    yield from _mode(wanted.name, key, wanted.mode)
    if key.state == "missing":
        yield Finding("key-missing", wanted.name, f"{key.path} is missing", _apply())
    elif key.state == "damaged":
        yield Finding("key-damaged", wanted.name, key.problem, _apply("restore it, or remove it to have a new one"))
    elif key.state == "encrypted":
        yield Finding(
            "key-encrypted",
            wanted.name,
            f"{key.path} is encrypted",
            f"openssl pkey -in {key.path} writes it without a password",
        )
    elif key.public != certificate.public_key():
        yield Finding("key-mismatch", wanted.name, f"{key.path} is not the key of its certificate", _apply())


def keypair(name: str, key: KeyFile) -> Iterator[Finding]:
    """Breaches of one key pair: whoever signs tokens with it asks for no password, and verifies with the `.pub`."""
    yield from _mode(name, key, 0o600)
    if key.state == "missing":
        yield Finding(
            "key-missing",
            name,
            f"{key.path} is missing",
            "restore it from a backup: all tokens are signed with it; if there never was one, run kubepki apply",
        )
    elif key.state == "damaged":
        yield Finding("key-damaged", name, key.problem, "restore it from a backup: all tokens are signed with it")
    elif key.state == "encrypted":
        yield Finding(
            "key-encrypted",
            name,
            f"{key.path} is encrypted",
            f"openssl pkey -in {key.path} writes it without a password",
        )
    elif key.pub_problem:
        yield Finding("key-mismatch", name, key.pub_problem, _apply())


def _life(name: str, certificate: x509.Certificate, now: datetime, *, renewal: str) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        yield Finding("expired", name, f"expired on {end:%Y-%m-%d %H:%M} UTC", renewal)
    if now < begin:
        yield Finding(
            "not-yet-valid",
            name,
            f"is valid from {begin:%Y-%m-%d %H:%M} UTC on, and the clock here says {now:%Y-%m-%d %H:%M}",
            "set the clock of this machine, or of the one that issued it",
        )
    if end - begin > _LONG:
        yield Finding(
            "long-life",
            name,
            f"lives {(end - begin).days // 365} years",
            "set a shorter expiry (8760h is a year), and renew before it ends",
        )


def _issuer(
    wanted: Certificate, certificate: x509.Certificate, entry: Entry, ca: x509.Certificate
) -> Iterator[Finding]:
    if not signed_by(certificate, ca):
        if entry.previous and issued_by(certificate, entry.previous):
            yield Finding(
                "previous-issuer", wanted.name, f"is still issued by the CA that {wanted.ca} had before", _apply()
            )
            return
        yield Finding("chain", wanted.name, _stranger(wanted, certificate, ca), _apply())
        return
    if certificate.issuer.public_bytes() != ca.subject.public_bytes():
        yield Finding(
            "issuer-encoding" if certificate.issuer == ca.subject else "chain",
            wanted.name,
            f"the CA's key signed it, but the issuer {certificate.issuer.rfc4514_string()} is not the name of the CA, "
            f"{title(ca)}, byte for byte",
            _apply("remove the certificate"),
        )
    yield from _key_identifier(wanted, certificate, ca)
    end, ca_end = certificate.not_valid_after_utc, ca.not_valid_after_utc
    if end > ca_end:
        yield Finding(
            "outlives-ca",
            wanted.name,
            f"ends on {end:%Y-%m-%d}, its CA on {ca_end:%Y-%m-%d} already",
            _apply("remove the certificate: what kubepki issues ends with its CA"),
        )


def _stranger(wanted: Certificate, certificate: x509.Certificate, ca: x509.Certificate) -> str:
    issuer = certificate.issuer.rfc4514_string() or "(no issuer)"
    if certificate.issuer == ca.subject:
        return f"names {issuer} as its issuer, but the key of the CA {wanted.ca} did not sign it"
    return f"is issued by {issuer}, not by the CA {wanted.ca}, {title(ca)}"


def _key_identifier(wanted: Certificate, certificate: x509.Certificate, ca: x509.Certificate) -> Iterator[Finding]:
    identifier = extension(certificate, x509.AuthorityKeyIdentifier)
    if identifier is None or identifier.key_identifier is None:
        yield Finding(
            "authority-key-identifier",
            wanted.name,
            "does not name the key of its issuer (authority key identifier)",
            _apply("remove the certificate"),
        )
    elif identifier.key_identifier != issue.key_identifier(ca).key_identifier:
        yield Finding(
            "authority-key-identifier",
            wanted.name,
            f"names {identifier.key_identifier.hex()} as the key of its issuer, which is not its CA's",
            _apply("remove the certificate"),
        )


def _strength(name: str, certificate: x509.Certificate, *, renewal: str) -> Iterator[Finding]:
    key = certificate.public_key()
    weak = ""
    if isinstance(key, rsa.RSAPublicKey):
        weak = f"RSA of {key.key_size} bits" if key.key_size < 2048 else ""
    elif isinstance(key, ec.EllipticCurvePublicKey):
        weak = f"on the curve {key.curve.name}" if key.curve.name not in _CURVES else ""
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        weak = "neither ECDSA, RSA nor Ed25519"
    if weak:
        yield Finding("weak-key", name, f"its key is {weak}", renewal)
    # Nobody verifies the signature of a root: it is trusted as it is.
    if _weak_hash(certificate) and certificate.issuer != certificate.subject:
        yield Finding("weak-hash", name, f"is signed with {_weak_hash(certificate)}", renewal)


def _weak_hash(certificate: x509.Certificate) -> str:
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return digest.name if digest and digest.name in ("md5", "sha1") else ""


def _uses(wanted: Certificate, certificate: x509.Certificate) -> Iterator[Finding]:
    purposes = extended(certificate)
    if purposes is None:
        yield Finding(
            "no-usages",
            wanted.name,
            "has no extended usages",
            _apply("name a profile with server auth, client auth or both"),
        )
    elif usages.EXTENDED["any"] in purposes:
        yield Finding(
            "usage-any",
            wanted.name,
            "has the extended usage 'any'",
            _apply("name a profile with server auth, client auth or both"),
        )
    constraints = extension(certificate, x509.BasicConstraints)
    key_usage = extension(certificate, x509.KeyUsage)
    if (constraints and constraints.ca) or (key_usage and key_usage.key_cert_sign):
        what = "its basic constraints say CA" if constraints and constraints.ca else "its key usage has cert sign"
        yield Finding("leaf-is-ca", wanted.name, f"is a CA: {what}", _apply("remove the certificate and its key"))
    elif key_usage and not key_usage.digital_signature:
        yield Finding(
            "key-usage", wanted.name, "its key usage lacks signing", _apply("add the usage signing to its profile")
        )


def _names(name: str, certificate: x509.Certificate) -> Iterator[Finding]:
    for dns in san(certificate)[0]:
        problem = _malformed(dns)
        if problem:
            yield Finding("malformed-name", name, problem, _apply("correct its hosts"))


def _malformed(dns: str) -> str:
    try:
        kind = names.parse(dns).kind
    except ValueError as error:
        return f"the name {error}"
    return "" if kind == "dns" else f"{dns!r} stands among the DNS names, where nobody looks for a name of kind {kind}"


def without_names(wanted: Certificate, certificate: x509.Certificate) -> Iterator[Finding]:
    """A server's certificate whose role has no rule of its own about names."""
    if usages.SERVER_AUTH in (extended(certificate) or ()) and not has_names(certificate):
        yield Finding(
            "server-without-names",
            wanted.name,
            f"has neither names nor addresses; its common name {wanted.cn} does not count",
            _apply("give it hosts"),
        )


def authority(wanted: Authority, entry: Entry, issued: Sequence[x509.Certificate], now: datetime) -> Iterator[Finding]:
    """Breaches of one CA; `issued` are the certificates of the set that it should have issued."""
    name = wanted.stem
    ca = entry.certificate
    if ca is None:
        finding = _unreadable(name, entry)
        yield Finding(finding.rule, name, finding.message, "restore it from a backup" if entry.problem else _apply())
        return
    if len(entry.certificates) > 1:
        yield Finding(
            "ca-one-certificate",
            name,
            f"{entry.path} holds {len(entry.certificates)} certificates",
            f"leave the CA's alone in it; what is to be trusted stands in {name}-bundle.pem",
        )
    yield from _authority_key(wanted, entry.key, entry.other_keys, ca)
    yield from _life(name, ca, now, renewal=f"kubepki rotate trust SPEC {wanted.name} begins with a new one")
    yield from _strength(name, ca, renewal=f"kubepki rotate trust SPEC {wanted.name} begins with a new one")
    yield from _may_issue(name, ca)
    yield from _limits(name, ca, issued)
    yield from _bundle(wanted, entry, ca)
    yield from _above(name, entry, ca)


def _authority_key(
    wanted: Authority, key: KeyFile, others: Sequence[KeyFile], ca: x509.Certificate
) -> Iterator[Finding]:
    name = wanted.stem
    for one in (key, *others):
        yield from _mode(name, one, 0o600)
    if key.state == "missing":
        yield Finding("ca-key-missing", name, f"{key.path} is missing", "restore it from a backup")
    elif key.state == "damaged":
        yield Finding("key-damaged", name, key.problem, "restore it from a backup")
    elif key.state == "encrypted":
        yield Finding(
            "ca-key-password", name, key.problem, f"ca {wanted.name}: set password: env:NAME or file:PATH to its own"
        )
    elif key.public != ca.public_key():
        yield Finding("key-mismatch", name, f"{key.path} is not the key of {name}.pem", "restore both from a backup")


def _may_issue(name: str, ca: x509.Certificate) -> Iterator[Finding]:
    constraints = extension(ca, x509.BasicConstraints)
    key_usage = extension(ca, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        yield Finding("not-a-ca", name, "its basic constraints do not say that it is a CA", "bring a CA certificate")
        return
    if key_usage and not key_usage.key_cert_sign:
        yield Finding("not-a-ca", name, "its key usage lacks cert sign", "bring a CA certificate")
        return
    lacking = [] if key_usage else ["no key usage"]
    lacking += [] if extension(ca, x509.SubjectKeyIdentifier) else ["no subject key identifier"]
    if not ca.extensions.get_extension_for_class(x509.BasicConstraints).critical:
        lacking.append("basic constraints that are not critical")
    if lacking:
        yield Finding("ca-form", name, f"has {' and '.join(lacking)}", "rotate to a CA that kubepki made")


def _limits(name: str, ca: x509.Certificate, issued: Sequence[x509.Certificate]) -> Iterator[Finding]:
    if extension(ca, x509.SubjectAlternativeName):
        dns, addresses = san(ca)
        shown = ", ".join([*dns, *map(str, addresses)]) or "others than hosts'"
        yield Finding("ca-names", name, f"has names: {shown}", "rotate to a CA without hosts")
    purposes = extended(ca)
    if purposes is None or usages.EXTENDED["any"] in purposes:
        return
    shown = ", ".join(map(usages.name_of, purposes))
    excluded = {usage for one in issued for usage in extended(one) or ()} - set(purposes)
    if excluded:
        lost = ", ".join(sorted(map(usages.name_of, excluded)))
        yield Finding(
            "ca-usages-exclude",
            name,
            f"is limited to {shown}, and its certificates are for {lost} as well",
            "rotate to a CA without extended usages",
        )
    else:
        yield Finding("ca-usages", name, f"is limited to {shown}", "rotate to a CA without extended usages")


def _bundle(wanted: Authority, entry: Entry, ca: x509.Certificate) -> Iterator[Finding]:
    name = f"{wanted.stem}-bundle.pem"
    if entry.bundle_problem:
        yield Finding("bundle", wanted.stem, entry.bundle_problem, _apply(f"remove {name}"))
        return
    if entry.bundle is None:
        yield Finding("bundle-missing", wanted.stem, f"{name} is missing", _apply())
        return
    if ca not in entry.bundle:
        yield Finding("bundle", wanted.stem, f"{name} lacks the CA itself", _apply())
    if entry.previous and entry.previous not in entry.bundle:
        yield Finding(
            "bundle",
            wanted.stem,
            f"{name} lacks the CA that is being replaced, and its certificates may be in use still",
            f"kubepki rotate issue SPEC {wanted.name} mends it",
        )
    above = _chain(ca, entry.bundle)
    extra = [title(one) for one in entry.bundle if one not in above and one != ca]
    if extra and not entry.rotating:
        yield Finding(
            "bundle-extra",
            wanted.stem,
            f"{name} holds {', '.join(extra)} as well, and {wanted.name} is not being rotated",
            f"remove what nobody needs from {name}",
        )


def _chain(ca: x509.Certificate, among: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """The issuers above a CA, nearest first, as far as they are known."""
    known = list(among)
    chain: list[x509.Certificate] = []
    current = ca
    while not self_signed(current) and len(chain) < _DEEPEST:
        above = next((one for one in known if issued_by(current, one)), None)
        if above is None:
            break
        chain.append(above)
        current = above
    return chain


def _above(name: str, entry: Entry, ca: x509.Certificate) -> Iterator[Finding]:
    chain = _chain(ca, entry.bundle or ())
    if not self_signed(chain[-1] if chain else ca):
        yield Finding(
            "ca-chain",
            name,
            f"is issued by {ca.issuer.rfc4514_string()}, and {name}-bundle.pem does not lead to a root",
            f"append the CAs above it to {name}-bundle.pem",
        )
    for below, one in enumerate(chain):
        constraints = extension(one, x509.BasicConstraints)
        length = constraints.path_length if constraints else None
        # RFC 5280 counts the CAs between, and all of the chain here are between the root and a leaf.
        if length is not None and length < below + 1:
            yield Finding(
                "ca-path-length",
                name,
                f"{title(one)} allows {length} CAs below it, and here are {below + 1}",
                "have it issued by a CA with a longer path, or use that CA itself",
            )


def shared(spec: Spec, found: Found) -> Iterator[Finding]:
    """Keys, subjects and serial numbers that several have."""
    owners: dict[bytes, list[str]] = defaultdict(list)
    serials: dict[tuple[str, int], list[str]] = defaultdict(list)
    for wanted in spec.certificates:
        entry = found.certificates.get(wanted.name)
        if entry and entry.certificate:
            owners[key_bytes(entry.certificate.public_key())].append(wanted.name)
            serials[wanted.ca, entry.certificate.serial_number].append(wanted.name)
    for name, key in found.keypairs.items():
        if key.public:
            owners[key_bytes(key.public)].append(name)
    authorities: dict[bytes, list[str]] = defaultdict(list)
    for name, entry in found.authorities.items():
        if entry.certificate:
            authorities[key_bytes(entry.certificate.public_key())].append(name)
    for public, those in owners.items():
        yield from _shared_key(spec, those, authorities.get(public, []))
    for (_, serial), those in serials.items():
        if len(those) > 1:
            yield Finding(
                "serial-reused",
                those[0],
                f"has the serial number {serial:x}, and so have {', '.join(those[1:])}",
                _apply("remove the files of all but one"),
            )
    yield from _authorities_alike(spec, found)


def _shared_key(spec: Spec, those: Sequence[str], authorities: Sequence[str]) -> Iterator[Finding]:
    for name in those:
        for ca in authorities:
            if name in spec.keypairs:
                yield Finding(
                    "service-account-ca-key",
                    name,
                    f"is the key of the CA {ca}: who can sign tokens could issue certificates",
                    _apply(f"move {name}.key away, and restart API servers and controller managers with the new one"),
                )
            else:
                yield Finding(
                    "leaf-has-ca-key", name, f"has the key of the CA {ca}", _apply("remove the certificate and its key")
                )
    if len(those) > 1 and not authorities:
        yield Finding(
            "key-reused",
            those[0],
            f"has the same key as {', '.join(those[1:])}",
            _apply("remove the files of all but one"),
        )


def _authorities_alike(spec: Spec, found: Found) -> Iterator[Finding]:
    known = [(spec.authorities[name], entry.certificate) for name, entry in found.authorities.items()]
    for number, (first, one) in enumerate(known):
        for second, other in known[number + 1 :]:
            if one and other and "front-proxy" not in (first.role, second.role):
                yield from _alike(first, one, second, other)


def _alike(first: Authority, one: x509.Certificate, second: Authority, other: x509.Certificate) -> Iterator[Finding]:
    remedy = f"kubepki rotate trust SPEC {second.name} begins with a CA of its own"
    if one.public_key() == other.public_key():
        yield Finding("ca-key-reused", second.stem, f"has the key of {first.stem}", remedy)
    elif one.subject == other.subject:
        yield Finding(
            "ca-subject-reused",
            second.stem,
            f"has the subject of {first.stem}, {title(one)}",
            f"give ca {second.name} a cn of its own; {remedy}",
        )
