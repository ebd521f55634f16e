"""What is wrong with certificates that were found, and how badly. Pure: a survey and a time in, a judgement out.

Limits are days, not parts of a life: who watches wants to know how long there is to act.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from kubepki import durations, issue, names
from kubepki.facts import Facts
from kubepki.names import Name
from kubepki.survey import KeyFound, Place, Sighting, Survey, Trouble

# From harmless to worst. `unknown`: what could not be looked at may be anything, but a certain warning is more.
SEVERITIES = ("info", "unknown", "warning", "critical")
# Exit codes of monitoring plugins.
EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
_OF_TROUBLE = {
    "absent": "unknown",
    "unreadable": "unknown",
    "unreadable-key": "info",
    "not-a-file": "unknown",
    "too-large": "info",
    "elsewhere": "info",
    "dangling": "warning",
    "damaged": "critical",
    "reference": "critical",
}
# Signatures that are tried for one certificate among CAs of the same name.
_TRIES = 32
_LONGEST_CHAIN = 10
_READABLE_BY_OTHERS = 0o004
_WRITABLE_BY_OTHERS = 0o022
_DAY = 86400


@dataclass(frozen=True)
class Limits:
    """Days that must be left: fewer than `warn` are a warning, fewer than `critical` are critical."""

    warn: float = 30
    critical: float = 7


@dataclass(frozen=True)
class Finding:
    """`severity` is one of SEVERITIES, `kind` a word for programs, `text` a sentence without a subject."""

    severity: str
    kind: str
    text: str
    path: str = ""


@dataclass(frozen=True)
class Chain:
    """Who signed it, up to a root: the subjects of its `issuers`, nearest first.

    `status`: `root` (signed by itself), `complete` (all signatures verified, up to a root), `unknown` (an issuer was
    not among what was found), `wrong` (the issuer's name was found, but not with the key that signed).
    """

    status: str
    issuers: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Spot:
    """One place of a certificate. `key`: where its key is, or empty; `key_state`: `matches`, `differs`, `encrypted`,
    `damaged`, or empty when there is none.
    """

    place: Place
    key: str
    key_state: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Judged:
    """A certificate with all places where it was found. `left`: until it ends, negative when it has ended."""

    facts: Facts
    chain: Chain
    left: timedelta
    findings: tuple[Finding, ...]
    spots: tuple[Spot, ...]

    @property
    def days(self) -> float:
        """Days left."""
        return self.left.total_seconds() / _DAY

    @property
    def replaced(self) -> bool:
        """Whether something else took its place everywhere."""
        return all(spot.place.replaced_by for spot in self.spots)

    @property
    def state(self) -> str:
        """The worst of its findings; `ok` when they are nothing but information."""
        return worst([*self.findings, *(one for spot in self.spots for one in spot.findings)])


@dataclass(frozen=True)
class Judgement:
    """Everything, soonest end first. `others`: findings that belong to no certificate."""

    at: datetime
    limits: Limits
    certificates: tuple[Judged, ...]
    others: tuple[Finding, ...]
    files: int
    kubeconfigs: int
    keys: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings; one of a certificate with several places counts once, one of a place for itself."""
        own = [one for judged in self.certificates for one in judged.findings]
        placed = [one for judged in self.certificates for spot in judged.spots for one in spot.findings]
        return (*own, *placed, *self.others)

    @property
    def places(self) -> int:
        """How many places there are."""
        return sum(len(judged.spots) for judged in self.certificates)

    @property
    def state(self) -> str:
        """`ok`, `warning`, `critical` or `unknown`."""
        return worst(self.findings)

    @property
    def exit_code(self) -> int:
        """As monitoring plugins have it."""
        return EXIT_CODES[self.state]


def worst(findings: Iterable[Finding]) -> str:
    """The state that findings make: `ok`, or the worst severity above `info`."""
    found = max((SEVERITIES.index(one.severity) for one in findings), default=0)
    return SEVERITIES[found] if found else "ok"


def judge(survey: Survey, now: datetime, limits: Limits) -> Judgement:
    """Judge all that was found at a time (aware)."""
    grouped: dict[bytes, list[Sighting]] = defaultdict(list)
    for sighting in survey.sightings:
        grouped[sighting.encoded].append(sighting)
    distinct = {encoded: sightings[0] for encoded, sightings in grouped.items()}
    chains = _Chains(distinct)
    certificates = [_judge(grouped[encoded], chains, now, limits) for encoded in distinct]
    others = [_trouble(one) for one in survey.troubles]
    others += [
        _exposed(path, mode) for path, mode in survey.key_modes if mode & (_READABLE_BY_OTHERS | _WRITABLE_BY_OTHERS)
    ]
    if not certificates:
        others.append(
            Finding("unknown", "nothing-found", f"no certificate was found in {_count(survey.files, 'file')}")
        )
    return Judgement(
        at=now,
        limits=limits,
        certificates=tuple(sorted(certificates, key=lambda one: (one.left, one.spots[0].place.path, one.facts.serial))),
        others=tuple(sorted(others, key=lambda one: (-SEVERITIES.index(one.severity), one.path, one.text))),
        files=survey.files,
        kubeconfigs=survey.kubeconfigs,
        keys=len(survey.key_modes),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _trouble(trouble: Trouble) -> Finding:
    severity = _OF_TROUBLE[trouble.kind]
    if trouble.named and severity == "info":
        severity = "unknown"
    return Finding(severity, trouble.kind, trouble.text, trouble.path)


def _exposed(path: str, mode: int) -> Finding:
    what = "read" if mode & _READABLE_BY_OTHERS else "changed"
    return Finding(
        "warning",
        "exposed-key",
        f"holds a private key that others than its owner may have {what} (mode {mode & 0o7777:04o})",
        path,
    )


def _judge(sightings: Sequence[Sighting], chains: _Chains, now: datetime, limits: Limits) -> Judged:
    first = sightings[0]
    found = [*_of_life(first.facts, now, limits), *_of_names(first.facts.names), *_of_content(first.facts)]
    chain, of_chain = chains.of(first.encoded)
    found += of_chain
    if chain.status == "root":
        # Nobody asks how a root has signed itself.
        found = [one for one in found if one.kind != "weak-signature"]
    replaced = {one.place.replaced_by for one in sightings}
    if "" not in replaced:
        text = f"is not in use any more: {', '.join(sorted(replaced))} took its place"
        found = [Finding("info", one.kind, one.text) for one in found] + [Finding("info", "replaced", text)]
    return Judged(
        facts=first.facts,
        chain=chain,
        left=first.facts.not_after - now,
        findings=tuple(sorted(found, key=lambda one: -SEVERITIES.index(one.severity))),
        spots=tuple(_spot(one) for one in sorted(sightings, key=_order)),
    )


def _order(sighting: Sighting) -> tuple[str, int, str, str]:
    place = sighting.place
    return place.path, place.index, place.kubeconfig, place.entry


def _spot(sighting: Sighting) -> Spot:
    state = _key_state(sighting.key, sighting.facts)
    path = sighting.key.path if sighting.key else ""
    findings = []
    if state == "differs":
        findings.append(
            Finding("critical", "key-differs", f"is for another key than the one in {path}", sighting.place.path)
        )
    return Spot(sighting.place, path, state, tuple(findings))


def _key_state(key: KeyFound | None, certificate: Facts) -> str:
    if not key:
        return ""
    if key.piece.public:
        return "matches" if key.piece.public.encoded == certificate.key.encoded else "differs"
    return "encrypted" if key.piece.encrypted else "damaged"


def _of_life(found: Facts, now: datetime, limits: Limits) -> list[Finding]:
    left = found.not_after - now
    if left < timedelta(0):
        return [Finding("critical", "expired", f"expired {durations.words(-left.total_seconds())} ago")]
    if now < found.not_before:
        wait = durations.words((found.not_before - now).total_seconds())
        return [Finding("critical", "not-yet-valid", f"begins to be valid in {wait}; is the clock right?")]
    for severity, days in (("critical", limits.critical), ("warning", limits.warn)):
        if left.total_seconds() < days * _DAY:
            return [Finding(severity, "ends-soon", f"ends in {durations.words(left.total_seconds())}")]
    return []


def _of_content(found: Facts) -> list[Finding]:
    findings = [Finding("critical", "damaged", text) for text in found.problems]
    if found.key.weakness:
        findings.append(Finding("warning", "weak-key", found.key.weakness))
    if found.weak_signature:
        findings.append(
            Finding("warning", "weak-signature", f"is signed with {found.signature}, which verifiers refuse")
        )
    if found.serial <= 0:
        findings.append(Finding("warning", "bad-serial", "has no positive serial number; Go refuses negative ones"))
    return findings


def _of_names(found: Iterable[Name]) -> list[Finding]:
    """DNS names that are none. Go 1.24.8 and 1.25.2 refuse certificates with them (CVE-2025-58187), others less."""
    findings = []
    for name in found:
        if name.kind != "dns":
            continue
        try:
            kind = names.parse(name.value).kind
            if kind == "dns":
                continue
            text = f"{name.value!r} is written as a DNS name, so that no client takes it for {names.WORDS[kind]}"
        except ValueError as error:
            text = str(error)
        refused = "; Go 1.24.8 and 1.25.2 refuse the certificate for it" if _refused(name.value) else ""
        findings.append(Finding("warning", "bad-name", f"name {text}{refused}"))
    return findings


def _refused(name: str) -> bool:
    labels = name.split(".")
    return (
        len(name) > names.LONGEST_NAME
        or any(not 33 <= ord(one) <= 126 for one in name)
        or any(not 0 < len(label) <= names.LONGEST_LABEL for label in labels)
    )


class _Chains:
    """Finds issuers by name and signature; each certificate is asked for its issuer once."""

    def __init__(self, found: Mapping[bytes, Sighting]) -> None:
        self._found = found
        self._by_subject: dict[bytes, list[bytes]] = defaultdict(list)
        self._by_words: dict[str, list[bytes]] = defaultdict(list)
        self._names: dict[bytes, tuple[bytes, bytes]] = {}
        self._issuers: dict[bytes, tuple[bytes | None, str]] = {}
        for encoded, sighting in found.items():
            subject, issuer = _raw_names(sighting.certificate)
            self._names[encoded] = subject, issuer
            if subject:
                self._by_subject[subject].append(encoded)
                self._by_words[sighting.facts.subject].append(encoded)

    def of(self, encoded: bytes) -> tuple[Chain, list[Finding]]:
        """The chain of a certificate, and what is wrong with it."""
        path = [encoded]
        findings: list[Finding] = []
        status, text = "unknown", ""
        while len(path) <= _LONGEST_CHAIN:
            issuer, said = self._issuer(path[-1])
            if issuer == path[-1]:
                status = "root" if len(path) == 1 else "complete"
                break
            if issuer is None or issuer in path:
                name = self._found[path[-1]].facts.issuer
                status, text = ("wrong", said) if said else ("unknown", f"its issuer {name} was not found")
                break
            if said:
                findings.append(Finding("warning", "issuer-encoding", said))
            path.append(issuer)
        if status == "wrong":
            findings.append(Finding("warning", "wrong-issuer", text))
        elif status == "unknown":
            findings.append(Finding("info", "no-issuer", text or "its chain is too long"))
        findings += self._unfit(path)
        return Chain(status, tuple(self._found[one].facts.title for one in path[1:]), text), findings

    def _issuer(self, encoded: bytes) -> tuple[bytes | None, str]:
        if encoded not in self._issuers:
            self._issuers[encoded] = self._look_for_issuer(encoded)
        return self._issuers[encoded]

    def _look_for_issuer(self, encoded: bytes) -> tuple[bytes | None, str]:
        """(the certificate of the issuer or None, what is wrong with that)."""
        sighting = self._found[encoded]
        subject, issuer = self._names[encoded]
        if subject == issuer and issue.signed_by(sighting.certificate, sighting.certificate):
            return encoded, ""
        candidates = [one for one in self._by_subject.get(issuer, []) if one != encoded]
        for one in self._likely(sighting.facts, candidates):
            if issue.signed_by(sighting.certificate, self._found[one].certificate):
                return one, ""
        # The same words in other encodings: OpenSSL takes them for the same name, Go compares bytes.
        alike = [
            one for one in self._by_words.get(sighting.facts.issuer, []) if one != encoded and one not in candidates
        ]
        for one in self._likely(sighting.facts, alike):
            if issue.signed_by(sighting.certificate, self._found[one].certificate):
                return one, "its issuer's name is encoded otherwise than in its CA, so that Go does not find the CA"
        if candidates:
            return (
                None,
                f"its issuer {sighting.facts.issuer} was found, but with another key than the one that signed it",
            )
        return None, ""

    def _likely(self, certificate: Facts, candidates: Sequence[bytes]) -> list[bytes]:
        """A bounded number of candidates: those first that have the key that the certificate names, then roots."""
        wanted = certificate.extensions.authority_key

        def rank(one: bytes) -> tuple[bool, bool, bool]:
            extensions = self._found[one].facts.extensions
            subject, issuer = self._names[one]
            return bool(wanted) and extensions.subject_key != wanted, subject != issuer, not extensions.is_ca

        return list(itertools.islice(sorted(candidates, key=rank), _TRIES))

    def _unfit(self, path: Sequence[bytes]) -> list[Finding]:
        """Issuers that may not be what they are (RFC 5280, 6.1.4), and an end that comes before the certificate's."""
        findings = []
        below = 0
        for number, one in enumerate(path[1:], 1):
            ca = self._found[one]
            if said := _no_authority(ca):
                findings.append(Finding("warning", "issuer-unfit", f"its issuer {ca.facts.title} {said}"))
            limit = ca.facts.extensions.path_length
            if limit is not None and below > limit:
                between = _count(below, "CA")
                text = f"its issuer {ca.facts.title} has path length {limit}, but {between} between them"
                findings.append(Finding("warning", "path-too-long", text))
            # What is its own issuer by name does not count: it is a CA with a new key.
            below += self._names[one][0] != self._names[one][1]
            # Ends a few seconds apart are those of a CA and a certificate that were made one after the other.
            if number == 1 and ca.facts.not_after + timedelta(days=1) < self._found[path[0]].facts.not_after:
                text = f"its issuer {ca.facts.title} ends before it, on {ca.facts.not_after:%Y-%m-%d}"
                findings.append(Finding("info", "outlives-issuer", text))
        return findings


def _no_authority(ca: Sighting) -> str:
    """Why a certificate is no CA; its time is judged where it is listed itself."""
    # Version 1 knows no extensions, and OpenSSL and Go take such a one for a root.
    if ca.facts.version < 3 or ca.facts.extensions.problem:
        return ""
    return issue.unfit(ca.certificate, ca.facts.not_before)


def _raw_names(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    try:
        return certificate.subject.public_bytes(), certificate.issuer.public_bytes()
    except issue.UNREADABLE:
        return b"", b"?"
