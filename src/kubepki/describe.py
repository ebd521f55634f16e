"""Certificates in words, for people who look at one or compare two of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509

from kubepki import durations, facts, issue
from kubepki.contents import KeyPiece
from kubepki.facts import Extensions, Facts
from kubepki.names import Name

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_TIME = "%Y-%m-%d %H:%M"
_LISTED = 20


def certificate(found: x509.Certificate, now: datetime | None = None) -> list[str]:
    """Lines with all that matters; times are UTC. With `now` (aware) the life has the days that are left."""
    said = facts.of(found)
    return [
        f"subject {said.subject or '(empty)'}",
        f"issuer {said.issuer or '(empty)'}",
        *_extensions(said.extensions),
        f"key {said.key.kind}",
        f"signature {said.signature}",
        f"valid {said.not_before:{_TIME}} to {said.not_after:{_TIME}}{_left(said, now)}",
        f"serial {said.serial:x}",
        *_identifiers(said.extensions),
        f"fingerprint SHA-256 {_pairs(said.fingerprint)}",
        *(f"damaged: {problem}" for problem in said.problems),
    ]


def _extensions(said: Extensions) -> list[str]:
    lines = [f"SAN {name.value}" if name.value else "SAN (an empty name)" for name in said.names]
    lines += [f"key usage {usage}" for usage in said.key_usages]
    lines += [f"usage {usage}" for usage in said.usages]
    if said.is_ca:
        lines.append("is a CA" if said.path_length is None else f"is a CA, path length {said.path_length}")
    return lines + [f"critical extension {oid}" for oid in said.critical]


def _identifiers(said: Extensions) -> list[str]:
    lines = [f"subject key identifier {_pairs(said.subject_key)}"] if said.subject_key else []
    return lines + ([f"authority key identifier {_pairs(said.authority_key)}"] if said.authority_key else [])


def _left(said: Facts, now: datetime | None) -> str:
    if now is None:
        return ""
    if now > said.not_after:
        return f", expired {durations.words((now - said.not_after).total_seconds())} ago"
    if now < said.not_before:
        return f", begins in {durations.words((said.not_before - now).total_seconds())}"
    return f", {durations.words((said.not_after - now).total_seconds())} left"


def _pairs(text: str) -> str:
    return ":".join(text[place : place + 2] for place in range(0, len(text), 2))


def request(found: x509.CertificateSigningRequest) -> list[str]:
    """Lines about a certificate signing request."""
    said = facts.of_extensions(found)
    key = facts.of_public_key(found)
    try:
        valid = found.is_signature_valid
        subject = facts.name(found.subject)
    except issue.UNREADABLE as error:
        return [f"damaged: {facts.first_line(error)}"]
    lines = [f"subject {subject or '(empty)'}", *_extensions(said), f"key {key.kind}"]
    lines.append("signed with its key" if valid else "damaged: its signature is not that of its key")
    return lines + ([f"damaged: {said.problem}"] if said.problem else [])


def revocations(found: x509.CertificateRevocationList, now: datetime | None = None) -> list[str]:
    """Lines about a revocation list, with the first twenty of what it revokes."""
    try:
        issuer, update, until = facts.name(found.issuer), found.last_update_utc, found.next_update_utc
        lines = [f"issuer {issuer or '(empty)'}", f"of {update:{_TIME}}" if update else "of no date"]
        if until:
            late = f", {durations.words((now - until).total_seconds())} late" if now and now > until else ""
            lines.append(f"next by {until:{_TIME}}{late}")
        lines.append(f"revokes {len(found)}")
        for number, one in enumerate(found):
            if number == _LISTED:
                lines.append(f"and {len(found) - _LISTED} more")
                break
            lines.append(f"revoked serial {one.serial_number:x} on {one.revocation_date_utc:{_TIME}}")
    except issue.UNREADABLE as error:
        return [f"damaged: {facts.first_line(error)}"]
    return lines


def private_key(found: KeyPiece) -> list[str]:
    """Lines about a private key, that say nothing of the key itself."""
    if found.public:
        return [f"key {found.public.kind}"] + ([f"weak: {found.public.weakness}"] if found.public.weakness else [])
    return ["encrypted"] if found.encrypted else [f"damaged: {found.problem}"]


def difference(old: x509.Certificate, new: x509.Certificate) -> list[str]:
    """What changed from one certificate to another, a line for each thing; empty when they are the same."""
    before, after = facts.of(old), facts.of(new)
    lines = [
        *_change("subject", before.subject or "(empty)", after.subject or "(empty)"),
        *_change("issuer", before.issuer or "(empty)", after.issuer or "(empty)"),
        *_moved("SAN", [_name(one) for one in before.names], [_name(one) for one in after.names]),
        *_moved("key usage", before.extensions.key_usages, after.extensions.key_usages),
        *_moved("usage", before.extensions.usages, after.extensions.usages),
        *_change("", _authority(before.extensions), _authority(after.extensions)),
        *_moved("critical extension", before.extensions.critical, after.extensions.critical),
        *_key(before, after),
        *_change("signature", before.signature, after.signature),
        *_change("begins", f"{before.not_before:{_TIME}}", f"{after.not_before:{_TIME}}"),
        *_change("ends", f"{before.not_after:{_TIME}}", f"{after.not_after:{_TIME}}"),
        *_change("serial", f"{before.serial:x}", f"{after.serial:x}"),
        *_identifier("subject key identifier", before.extensions.subject_key, after.extensions.subject_key),
        *_identifier("authority key identifier", before.extensions.authority_key, after.extensions.authority_key),
        *_moved("damage:", before.problems, after.problems),
    ]
    if not lines and before.fingerprint != after.fingerprint:
        lines = ["the same in words, but not in bytes (seconds, encodings, the signature, or other extensions)"]
    return lines


def _name(name: Name) -> str:
    return f"{name.value or '(empty)'}" + ("" if name.kind in ("dns", "ip") else f" ({name.kind})")


def _change(what: str, before: str, after: str) -> list[str]:
    return [f"{what} {before} -> {after}".lstrip()] if before != after else []


def _identifier(what: str, before: str, after: str) -> list[str]:
    return _change(what, _pairs(before) or "(none)", _pairs(after) or "(none)")


def _moved(what: str, before: Sequence[str], after: Sequence[str]) -> list[str]:
    lines = [f"{what} {one} removed" for one in _without(before, after)]
    lines += [f"{what} {one} added" for one in _without(after, before)]
    if not lines and before != after:
        lines = [f"{what}: in another order, or given twice"]
    return lines


def _without(some: Iterable[str], others: Iterable[str]) -> list[str]:
    gone = set(others)
    return [one for one in dict.fromkeys(some) if one not in gone]


def _authority(said: Extensions) -> str:
    if not said.is_ca:
        return "is no CA"
    return "is a CA" if said.path_length is None else f"is a CA of path length {said.path_length}"


def _key(before: Facts, after: Facts) -> list[str]:
    if before.key.kind != after.key.kind:
        return _change("key", before.key.kind, after.key.kind)
    return [f"key another one, {after.key.kind} as well"] if before.key.encoded != after.key.encoded else []


def pem(content: bytes) -> str | None:
    """All certificates of a PEM file in words, a blank line between them; None for anything else."""
    if not content.startswith(_BEGIN):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = x509.load_pem_x509_certificates(content)
        except issue.UNREADABLE:
            return None
        return "\n".join("".join(f"{line}\n" for line in certificate(one)) for one in found)
