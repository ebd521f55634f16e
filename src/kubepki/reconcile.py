"""What differs between a specification and the PKI directory, and making it so: all certificates in one pass.

One predicate per kind returns the reasons for which something would be issued; no reason means keep. A CA is never
replaced: what hangs on it is beyond this module, so a damaged or half-missing CA is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import issue, keys, store, usages
from kubepki.errors import StoreError
from kubepki.keys import PrivateKey
from kubepki.spec import Authority, Certificate, Key, Spec


@dataclass(frozen=True)
class Item:
    """One decision: `keep` or `issue` with its reasons. Serial and end of life are those of the outcome."""

    name: str
    action: str
    reasons: tuple[str, ...] = ()
    serial: str = ""
    not_after: str = ""


@dataclass(frozen=True)
class Plan:
    """Decisions for a directory at a point in time."""

    spec: Spec
    directory: Path
    now: datetime
    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()
    _authorities: Mapping[str, tuple[x509.Certificate, PrivateKey]] = field(default_factory=dict)

    @property
    def issued(self) -> tuple[str, ...]:
        """Names of what is to be issued."""
        return tuple(item.name for item in self.items if item.action == "issue")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, in the directory, that issuing writes."""
        found = []
        for name in self.issued:
            endings = (".key", ".pub") if name in self.spec.keypairs else (".pem", "-key.pem")
            found += [f"{name}{ending}" for ending in endings]
        return tuple(found)


def _expiring(certificate: x509.Certificate, now: datetime) -> str:
    """A reason when less than a third of the life is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"expired on {end:%Y-%m-%d}"
    if end - now < (end - begin) / 3:
        return f"expires on {end:%Y-%m-%d}, within the last third of its life"
    return ""


def _kept(name: str, certificate: x509.Certificate) -> Item:
    return Item(name, "keep", (), f"{certificate.serial_number:x}", certificate.not_valid_after_utc.isoformat())


def _authority(
    wanted: Authority, directory: Path, now: datetime
) -> tuple[Item, tuple[x509.Certificate, PrivateKey] | None, str]:
    stem = f"{wanted.name}-ca"
    path, key_path = directory / f"{stem}.pem", directory / f"{stem}-key.pem"
    try:
        certificate, key = store.read_certificate(path), store.read_key(key_path)
    except ValueError as error:
        raise StoreError(f"{path} or its key is damaged: {error}", "restore both files from a backup") from error
    if certificate is None and key is None:
        return Item(stem, "issue", ("missing",)), None, ""
    if certificate is None and key is not None:
        # The key is written first: a run that died in between left a key that signed nothing.
        return Item(stem, "issue", ("certificate missing",)), None, ""
    if certificate is None or key is None:
        raise StoreError(
            f"{key_path} is missing, but {path} exists",
            "restore the key from a backup; a new CA would cut off everything that trusts the old one. "
            "To start over on machines without a cluster, move the whole directory away",
        )
    if not issue.matches(key, certificate):
        raise StoreError(f"{key_path} is not the key of {path}", "restore both files from a backup")
    unfit = issue.unfit(certificate, now)
    if unfit:
        raise StoreError(
            f"{path} ({certificate.subject.rfc4514_string()}) {unfit}",
            f"put a CA certificate and its key there, or move both files away to have a new CA made for {wanted.name}",
        )
    warning = ""
    if issue.subject(wanted.cn, wanted.o) != certificate.subject:
        warning = (
            f"{path}: its subject is {certificate.subject.rfc4514_string()}, the specification says CN={wanted.cn}"
        )
    expiring = _expiring(certificate, now)
    if expiring:
        warning = f"{path}: {expiring}; plan a rotation of this CA"
    return _kept(stem, certificate), (certificate, key), warning


def _difference(label: str, have: Sequence[str], want: Sequence[str]) -> list[str]:
    added = [name for name in want if name not in have]
    removed = [name for name in have if name not in want]
    reasons = [f"{label} {', '.join(added)} added"] if added else []
    return reasons + ([f"{label} {', '.join(removed)} removed"] if removed else [])


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _usages(certificate: x509.Certificate) -> list[str]:
    try:
        return [
            usage.dotted_string for usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ]
    except x509.ExtensionNotFound:
        return []


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _reasons(
    wanted: Certificate, directory: Path, ca: x509.Certificate | None, now: datetime
) -> tuple[list[str], x509.Certificate | None]:
    try:
        certificate = store.read_certificate(directory / f"{wanted.name}.pem")
        key = store.read_key(directory / f"{wanted.name}-key.pem")
    except ValueError as error:
        return [f"cannot be read: {error}"], None
    if certificate is None or key is None:
        return ["missing" if certificate is None else "key missing"], None
    reasons = []
    if not issue.matches(key, certificate):
        reasons.append("key does not match")
    if ca is None or not _signed_by(certificate, ca):
        reasons.append("issuer changed")
    if certificate.subject != issue.subject(wanted.cn, wanted.o):
        reasons.append(f"subject was {certificate.subject.rfc4514_string()}")
    reasons += _difference("SAN", _names(certificate), [str(h) for h in wanted.hosts])
    if _usages(certificate) != usages.extended(wanted.profile.usages):
        reasons.append(f"usages are not those of the profile {wanted.profile.name}")
    if keys.kind(key) != wanted.key:
        reasons.append(f"key is {keys.kind(key)}, wanted {wanted.key}")
    expiring = _expiring(certificate, now)
    return reasons + ([expiring] if expiring else []), certificate


def plan(spec: Spec, directory: Path, now: datetime) -> Plan:
    """Compare without writing anything. `now` is an aware UTC time. StoreError: see the module's words on CAs."""
    items, warnings = [], []
    authorities: dict[str, tuple[x509.Certificate, PrivateKey]] = {}
    for wanted in spec.authorities.values():
        item, pair, warning = _authority(wanted, directory, now)
        items.append(item)
        warnings += [warning] if warning else []
        if pair:
            authorities[wanted.name] = pair
    items += [_keypair(name, directory) for name in spec.keypairs]
    for certificate in spec.certificates:
        ca = authorities.get(certificate.ca)
        reasons, found = _reasons(certificate, directory, ca[0] if ca else None, now)
        if reasons or found is None:
            items.append(Item(certificate.name, "issue", tuple(reasons)))
        else:
            items.append(_kept(certificate.name, found))
    return Plan(spec, directory, now, tuple(items), tuple(warnings), authorities)


def _keypair(name: str, directory: Path) -> Item:
    path = directory / f"{name}.key"
    try:
        key = store.read_key(path)
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}", "restore it from a backup") from error
    if key is None:
        return Item(name, "issue", ("missing",))
    public = directory / f"{name}.pub"
    if not public.exists() or public.read_bytes() != keys.public_pem(key):
        return Item(name, "issue", ("public key missing or of another key",))
    return Item(name, "keep")


def _write_pair(directory: Path, stem: str, key: PrivateKey, certificate: x509.Certificate) -> None:
    # Key first: a crash in between leaves a pair that does not match, which the next plan sees and cures.
    store.write(directory / f"{stem}-key.pem", keys.pem(key), 0o600)
    store.write(directory / f"{stem}.pem", certificate.public_bytes(Encoding.PEM), 0o644)


def apply(spec: Spec, directory: Path, now: datetime) -> Plan:
    """Issue what `plan` finds missing, under the directory's lock; returns the plan with the outcome in its items."""
    with store.locked(directory):
        decided = plan(spec, directory, now)
        authorities = dict(decided._authorities)  # noqa: SLF001 - the plan and its execution are one module
        outcome = []
        by_name = {certificate.name: certificate for certificate in spec.certificates}
        stems = {f"{name}-ca": wanted for name, wanted in spec.authorities.items()}
        for item in decided.items:
            if item.action == "keep":
                outcome.append(item)
                continue
            if item.name in spec.keypairs:
                _issue_keypair(item.name, spec.keypairs[item.name], directory)
                outcome.append(item)
                continue
            if item.name in stems:
                wanted = stems[item.name]
                key = keys.generate(wanted.key)
                made = issue.sign(issue.for_authority(wanted, now), key.public_key(), key)
                authorities[wanted.name] = (made, key)
            else:
                leaf = by_name[item.name]
                key = keys.generate(leaf.key)
                ca, ca_key = authorities[leaf.ca]
                made = issue.sign(issue.for_certificate(leaf, key, ca, now), key.public_key(), ca_key, ca)
            _write_pair(directory, item.name, key, made)
            done = _kept(item.name, made)
            outcome.append(Item(item.name, "issue", item.reasons, done.serial, done.not_after))
        return Plan(spec, directory, now, tuple(outcome), decided.warnings)


def _issue_keypair(name: str, wanted: Key, directory: Path) -> None:
    key = store.read_key(directory / f"{name}.key") or keys.generate(wanted)
    store.write(directory / f"{name}.key", keys.pem(key), 0o600)
    store.write(directory / f"{name}.pub", keys.public_pem(key), 0o644)
