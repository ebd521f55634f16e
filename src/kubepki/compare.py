"""Why a certificate is not what the specification asks for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from kubepki import issue, keys, names, usages
from kubepki.keys import PrivateKey
from kubepki.spec import Authority, Certificate

# Attribute of a KeyUsage -> the name that cfssl's profiles have for it.
_BITS = {attribute: name for name, attribute in usages.KEY.items()}


@dataclass(frozen=True)
class Renewal:
    """What is to be issued anew although it is right: certificates by `names`, and those that end `within` a time."""

    names: Collection[str] = ()
    within: timedelta = timedelta(0)

    def reasons(self, name: str, found: x509.Certificate, ca: x509.Certificate | None, now: datetime) -> list[str]:
        """Why this one is renewed; none when it is not."""
        if name in self.names:
            return ["to be renewed"]
        end = found.not_valid_after_utc
        # A certificate that ends with its CA would not live longer for being made anew.
        lasts = ca is not None and ca.not_valid_after_utc <= end
        if self.within and end - now < self.within and not lasts:
            return [f"ends on {end:%Y-%m-%d}, within {self.within / timedelta(days=1):g} days"]
        return []


NOTHING = Renewal()


def expiring(certificate: x509.Certificate, now: datetime) -> str:
    """A reason when less than a third of the life is left; empty when there is more."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"expired on {end:%Y-%m-%d}"
    if end - now < (end - begin) / 3:
        return f"expires on {end:%Y-%m-%d}, within the last third of its life"
    return ""


def reasons(
    wanted: Certificate, found: x509.Certificate, key: PrivateKey, ca: x509.Certificate | None, now: datetime
) -> list[str]:
    """Why a certificate and its key must be made anew; none when they are right.

    `ca`: what signs now, None for a CA that is yet to be made. `now`: aware, UTC. ValueError for extensions that cannot
    be read.
    """
    extensions = {type(one.value): one.value for one in found.extensions}
    said = [] if issue.matches(key, found) else ["key does not match"]
    if ca is None or not issue.issued_by(found, ca):
        said.append("issuer changed")
    if found.subject != issue.subject(wanted.cn, wanted.o):
        said.append(f"subject was {found.subject.rfc4514_string()}")
    said += _names(extensions.get(x509.SubjectAlternativeName), wanted.hosts)
    said += _usages(extensions, wanted, key)
    if keys.kind(key) != wanted.key:
        said.append(f"key is {keys.kind(key)}, wanted {wanted.key}")
    return said + _life(found, ca, now)


def authority(wanted: Authority, found: x509.Certificate, key: PrivateKey, now: datetime) -> list[str]:
    """In what a CA differs from the specification: for warnings, because a CA is never made anew."""
    said = []
    if found.subject != issue.subject(wanted.cn, wanted.o):
        said.append(
            f"its subject is {found.subject.rfc4514_string()}, the specification says "
            f"{issue.subject(wanted.cn, wanted.o).rfc4514_string()}"
        )
    if keys.kind(key) != wanted.key:
        said.append(f"its key is {keys.kind(key)}, the specification says {wanted.key}; a rotation gives it another")
    if late := expiring(found, now):
        said.append(f"{late}; plan a rotation of this CA")
    return said


def _difference(label: str, have: Iterable[str], want: Iterable[str]) -> list[str]:
    before, after = list(dict.fromkeys(have)), list(dict.fromkeys(want))
    added = [one for one in after if one not in before]
    removed = [one for one in before if one not in after]
    said = [f"{label} {', '.join(added)} added"] if added else []
    return said + ([f"{label} {', '.join(removed)} removed"] if removed else [])


def _names(extension: object, wanted: tuple[names.Name, ...]) -> list[str]:
    have = []
    if isinstance(extension, x509.SubjectAlternativeName):
        have = [names.Name(issue.KINDS.get(type(one), "other"), str(one.value)) for one in extension]
    if set(have) == set(wanted):
        return []
    texts = {one.value: one for one in have}
    # 10.0.0.1 as a DNS name looks like what is wanted, and no client takes it.
    same = [one for one in wanted if one.value in texts and one not in have]
    said = [f"SAN {one} is {_a(texts[one.value])}, not {_a(one)}" for one in same]
    known = [one.value for one in same]
    return said + _difference(
        "SAN",
        [str(one) for one in have if one.value not in known],
        [str(one) for one in wanted if str(one) not in known],
    )


def _a(name: names.Name) -> str:
    return names.WORDS.get(name.kind, "a name of another kind")


def _usages(
    extensions: dict[type[x509.ExtensionType], x509.ExtensionType], wanted: Certificate, key: PrivateKey
) -> list[str]:
    found = extensions.get(x509.ExtendedKeyUsage)
    have = [one.dotted_string for one in found] if isinstance(found, x509.ExtendedKeyUsage) else []
    want = usages.extended(wanted.profile.usages)
    said = _difference("usage", map(usages.name_of, have), map(usages.name_of, want))
    key_usage = extensions.get(x509.KeyUsage)
    bits = set(usages.bits(key_usage)) if key_usage else set()
    if bits != (need := issue.leaf_key_usages(wanted, key)):
        said += _difference("key usage", (_BITS[one] for one in sorted(bits)), (_BITS[one] for one in sorted(need)))
    constraints = extensions.get(x509.BasicConstraints)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        said.append("it is a CA")
    return said


def _life(found: x509.Certificate, ca: x509.Certificate | None, now: datetime) -> list[str]:
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if begin > now:
        return [f"is not valid before {begin:%Y-%m-%d %H:%M} UTC"]
    late = expiring(found, now)
    # A certificate that ends with its CA would not live longer for being made anew.
    return [late] if late and not (now < end and ca and ca.not_valid_after_utc <= end) else []
