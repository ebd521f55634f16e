"""Rotation of a CA as a state machine, so that nobody is refused while a cluster goes from one CA to the next.

    settled --trust--> trust-both --issue--> issue-from-new --drop--> settled
                       trust-both --abort--> settled

In `trust-both` every consumer learns to trust the old CA and the new one, while certificates still come from the old.
In `issue-from-new` the new CA is NAME-ca.pem, so `apply` issues everything anew; both are trusted, so the order in
which consumers change over does not matter. After `drop` the old one is trusted no more. A step is refused while a
consumer has not shown that it is ready; what it showed is bound to fingerprints, and so is worth nothing for other
files.

Every step first writes what it is about to do into NAME-ca-rotation.json, then makes changes that can be made twice,
and last writes that it is done: a run that was killed is finished by running the step again.

The new CA has the subject of the specification, which normally is that of the old one. Go and OpenSSL look for issuers
by the subject and tell those of the same subject apart by the key identifier, which every certificate here names
(RFC 5280, 4.2.1.1). So nothing that knows the CA by its name changes with a rotation: the specification, the list of
acceptable CAs that a TLS server sends to its clients, and whoever looks at certificates. A client that looks an issuer
up by its name and takes the first would fail, and with distinct subjects it would not: for the sake of such a one
change the CA's `cn` in the specification before `trust`, and the new CA has that subject.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import issue as certificates
from kubepki import keys, sources, store
from kubepki.errors import CertificateError, PrivateKeyError, RotationError, StoreError
from kubepki.keys import PrivateKey
from kubepki.rules_x509 import issued_by
from kubepki.spec import Authority, Certificate, Spec
from kubepki.store import File

SETTLED = "settled"
TRUST_BOTH = "trust-both"
ISSUE_FROM_NEW = "issue-from-new"
PHASES = (SETTLED, TRUST_BOTH, ISSUE_FROM_NEW)
# What takes a phase to the next.
_NEXT = {SETTLED: "trust", TRUST_BOTH: "issue", ISSUE_FROM_NEW: "drop"}
_VERSION = 1
RETIRED = "retired"
# Under this name stand certificates that are in no PKI directory: kubelets have them from the controller manager.
_ELSEWHERE = "(issued elsewhere)"


@dataclass(frozen=True)
class Missing:
    """What the next step waits for: of whom (a consumer, or a certificate to be issued anew), what, and how."""

    who: str
    what: str
    command: str


@dataclass(frozen=True)
class State:
    """Where a CA stands.

    `unfinished`: the step in which a run was killed, empty when none was. `old` and `new`: the two CAs of a rotation;
    when nothing rotates, `old` is the CA. `trusted`: what consumers must trust now. `next`: the step that comes next,
    and `missing` all that it waits for. `unwatched`: certificates, or the CA itself, that have no consumers in the
    specification, so that nobody is waited for.
    """

    name: str
    phase: str
    unfinished: str
    begun: datetime | None
    old: x509.Certificate
    new: x509.Certificate | None
    trusted: tuple[x509.Certificate, ...]
    next: str
    missing: tuple[Missing, ...] = ()
    unwatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    """NAME-ca-rotation.json. Certificates are told by their SHA-256 fingerprints, times are ISO 8601 in UTC.

    `trust`: consumer -> {anchors: [fingerprint...], at}. `shown`: consumer -> certificate -> {fingerprint, at}.
    """

    phase: str
    doing: str
    old: str
    new: str = ""
    begun: str = ""
    trust: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shown: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


class _Files:
    """The paths of a CA's rotation."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.stem = authority.stem
        self.directory = directory
        self.current = self._pair("")
        self.next = self._pair("-next")
        self.previous = self._pair("-previous")
        self.bundle = directory / f"{self.stem}-bundle.pem"
        self.record = directory / f"{self.stem}-rotation.json"
        self.retired = directory / RETIRED

    def _pair(self, which: str) -> tuple[Path, Path]:
        return self.directory / f"{self.stem}{which}.pem", self.directory / f"{self.stem}{which}-key.pem"


@dataclass(frozen=True)
class _Rotation:
    """Everything that a step needs; `call` is what commands in messages call the specification."""

    spec: Spec
    authority: Authority
    files: _Files
    call: str

    @property
    def name(self) -> str:
        return self.authority.name

    def command(self, step: str, *more: str) -> str:
        return " ".join(["kubepki rotate", step, self.call, *map(shlex.quote, (self.name, *more))])

    def consumers(self) -> dict[str, list[Certificate]]:
        """Who trusts the CA, and what of it each presents."""
        found: dict[str, list[Certificate]] = {consumer: [] for consumer in self.authority.consumers}
        for leaf in self.leaves():
            for consumer in leaf.consumers:
                found.setdefault(consumer, []).append(leaf)
        return found

    def leaves(self) -> list[Certificate]:
        return [leaf for leaf in self.spec.certificates if leaf.ca == self.name]

    def unwatched(self) -> tuple[str, ...]:
        alone = tuple(leaf.name for leaf in self.leaves() if not leaf.consumers)
        return alone if self.consumers() else (self.authority.stem, *alone)

    def refuse(self, message: str, hint: str, waiting: Sequence[str] = ()) -> RotationError:
        return RotationError(f"{self.name}: {message}", hint, waiting)


def _rotation(spec: Spec, directory: Path, name: str, call: str) -> _Rotation:
    authority = spec.authorities.get(name)
    if authority is None:
        close = difflib.get_close_matches(name, spec.authorities, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(spec.authorities)}"
        raise RotationError(f"there is no CA {name!r} in the specification", hint)
    if not directory.is_dir():
        raise StoreError(f"{directory}: there is no such directory", "kubepki apply makes it")
    return _Rotation(spec, authority, _Files(directory, authority), call)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256, in hexadecimal digits."""
    return certificate.fingerprint(SHA256()).hex()


def state(spec: Spec, directory: Path, name: str, *, call: str = "SPEC") -> State:
    """Where the CA `name` stands, from what lies in the directory. Nothing is written.

    StoreError when files are missing, damaged or not those with which the rotation began; RotationError for a name that
    the specification does not have. `call` is what commands in messages call the specification.
    """
    return _state(_rotation(spec, directory, name, call))


def interrupted(directory: Path, authority: Authority) -> str:
    """The step of a CA's rotation in which a run was killed; empty when none was."""
    record = _load(_Files(directory, authority))
    return record.doing if record else ""


def _state(rotation: _Rotation) -> State:
    record = _load(rotation.files)
    current = _certificate(rotation.files.current[0])
    if record is None:
        return State(rotation.name, SETTLED, "", None, current, None, (current,), "trust", (), rotation.unwatched())
    old, new = _both(rotation, record, current)
    if record.doing:
        missing: tuple[Missing, ...] = ()
    else:
        missing = tuple(_missing(rotation, record, old, new))
    return State(
        name=rotation.name,
        phase=record.phase,
        unfinished=record.doing,
        begun=datetime.fromisoformat(record.begun) if record.begun else None,
        old=old,
        new=new,
        trusted=(old, new) if new else (old,),
        next=record.doing or _NEXT[record.phase],
        missing=missing,
        unwatched=rotation.unwatched(),
    )


def _both(
    rotation: _Rotation, record: _Record, current: x509.Certificate
) -> tuple[x509.Certificate, x509.Certificate | None]:
    """The two CAs of a rotation, wherever they lie; the new one may not be made yet."""
    files = rotation.files
    places = [files.current[0], files.next[0], files.previous[0]]
    if record.doing in ("drop", "abort"):
        places += sorted(files.retired.glob(f"{files.stem}-*.pem")) if files.retired.is_dir() else []
    known: dict[str, x509.Certificate] = {}
    for path in places:
        if path.name.endswith("-key.pem") or not path.exists():
            continue
        # What was retired long ago is no reason to stop.
        found = _quietly(path) if path.parent == files.retired else _certificate(path)
        if found:
            known[fingerprint(found)] = found
    expected = record.new if record.phase == ISSUE_FROM_NEW else record.old
    if not record.doing and fingerprint(current) != expected:
        raise StoreError(
            f"{files.current[0]} is not the CA that the rotation of {rotation.name} began with",
            f"restore it; {files.record.name} has the fingerprints of both CAs",
        )
    old = known.get(record.old)
    new = known.get(record.new)
    if old is None or (new is None and record.new):
        which = "old" if old is None else "new"
        raise StoreError(
            f"the certificate of the {which} CA is missing, in the middle of the rotation of {rotation.name}",
            f"restore {files.directory} from a backup; {files.record.name} has the fingerprints of both CAs",
        )
    return old, new


def _certificate(path: Path) -> x509.Certificate:
    found = store.read(path)
    if found is None:
        raise StoreError(f"{path} is missing", "kubepki apply makes a CA; one that was lost comes from a backup")
    return certificates.load(found.content, str(path))


def _missing(
    rotation: _Rotation, record: _Record, old: x509.Certificate, new: x509.Certificate | None
) -> Iterator[Missing]:
    anchors = sorted([record.old, record.new])
    consumers = rotation.consumers()
    for consumer in consumers:
        shown = record.trust.get(consumer)
        if shown is None or sorted(shown.get("anchors", ())) != anchors:
            before = " these two CAs, but others before" if shown else " both CAs"
            yield Missing(
                consumer,
                f"has not shown that it trusts{before}",
                rotation.command("confirm", consumer, "--trust", "FILE"),
            )
    if record.phase == ISSUE_FROM_NEW and new:
        yield from _still_old(rotation, old, new)
        for consumer, presented in consumers.items():
            yield from _not_shown(rotation, record, consumer, presented)


def _still_old(rotation: _Rotation, old: x509.Certificate, new: x509.Certificate) -> Iterator[Missing]:
    """Certificates in the directory that are not issued by the new CA."""
    directory = rotation.files.directory
    known = {pair[0] for pair in (rotation.files.current, rotation.files.next, rotation.files.previous)}
    known.add(rotation.files.bundle)
    for leaf in rotation.leaves():
        path = directory / f"{leaf.path}.pem"
        known.add(path)
        found = _quietly(path)
        if found is None or not issued_by(found, new):
            what = "cannot be read" if found is None else "is not issued by the new CA yet"
            yield Missing(leaf.name, what, f"kubepki apply {rotation.call}")
    # What was taken out of the specification may be in use still.
    for path in sorted(directory.rglob("*.pem")):
        apart = path in known or RETIRED in path.relative_to(directory).parts
        found = None if apart else _quietly(path)
        if found and issued_by(found, old):
            yield Missing(
                str(path.relative_to(directory)),
                "is issued by the old CA, and not in the specification",
                f"add it to the specification, or move it away: mv {shlex.quote(str(path))} ELSEWHERE",
            )


def _quietly(path: Path) -> x509.Certificate | None:
    """The first certificate of a file; None when there is none, or no such file."""
    return next(iter(_all_quietly(path)), None)


def _all_quietly(path: Path) -> list[x509.Certificate]:
    """All certificates of a file; none when it cannot be read."""
    try:
        found = store.read(path)
        return certificates.load_all(found.content, str(path)) if found else []
    except (StoreError, CertificateError):
        return []


def _not_shown(
    rotation: _Rotation, record: _Record, consumer: str, presented: Sequence[Certificate]
) -> Iterator[Missing]:
    shown = record.shown.get(consumer, {})
    command = rotation.command("confirm", consumer, "--cert", "FILE")
    for leaf in presented:
        found = _quietly(rotation.files.directory / f"{leaf.path}.pem")
        seen = shown.get(leaf.name, {}).get("fingerprint")
        if found and seen != fingerprint(found):
            before = ", but one before it" if seen else ""
            yield Missing(consumer, f"has not shown that it has the new {leaf.name}.pem{before}", command)
    if _has_elsewhere(rotation.authority, consumer) and _ELSEWHERE not in shown:
        yield Missing(consumer, "has not shown a certificate from the new CA", command)


def _has_elsewhere(authority: Authority, consumer: str) -> bool:
    """Kubelets have certificates that the controller manager issued; they lie on their machines only."""
    return authority.role == "kubelet-signer" and consumer.partition("@")[0] == "kubelet"


def trust(
    spec: Spec, directory: Path, name: str, now: datetime, *, call: str = "SPEC", old_password: str = ""
) -> State:
    """Make the new CA, and let the bundle hold both. A pair NAME-ca-next.pem and -key.pem that lies there is taken.

    `old_password` is the source of the password under which that key is, when it is not the specification's.
    The old CA may have expired, and its key may be lost. In `trust-both` it mends the bundle, and does nothing else.
    `now` is an aware UTC time. RotationError when another step has to come first.
    """
    with _step(spec, directory, name, call) as rotation:
        files = rotation.files
        record = _load(files)
        current = _certificate(files.current[0])
        resumed = record is not None and record.doing == "trust"
        if record is None:
            record = _Record(SETTLED, "trust", fingerprint(current), begun=now.astimezone(UTC).isoformat())
        elif record.doing not in ("", "trust") or record.phase == ISSUE_FROM_NEW:
            raise _first(rotation, record, "a rotation is under way already")
        _both(rotation, record, current)
        password = sources.password(rotation.authority.password)
        if not resumed and files.next[1].exists() and not files.next[0].exists():
            raise StoreError(
                f"{files.next[1]} is there, but not its certificate {files.next[0].name}",
                "put the certificate beside it, or move the key away to have a new pair made",
            )
        # Found out before anything is written: whether what lies there can be used.
        _usable_next(rotation, current, now, old_password)
        if record.phase == SETTLED:
            _save(files, record)
        new = _make_next(rotation, password, now)
        _write_bundle(files, add=[current, new])
        _save(files, replace(record, phase=TRUST_BOTH, doing="", new=fingerprint(new)))
        return _state(rotation)


def issue(
    spec: Spec, directory: Path, name: str, now: datetime, *, call: str = "SPEC", old_password: str = ""
) -> State:
    """Make the new CA the one that issues; the old one becomes NAME-ca-previous.pem, and stays trusted.

    `old_password` is the source of the password under which the new CA's key is, when the specification has another by
    now: the key is then encrypted anew.
    `apply` then issues all certificates of the CA anew. RotationError lists every consumer that has not shown that it
    trusts both, or names the step that comes first. In `issue-from-new` it mends the bundle, and does nothing else.
    """
    with _step(spec, directory, name, call) as rotation:
        files = rotation.files
        record = _load(files)
        if record is None:
            raise rotation.refuse("no new CA has been made yet", f"first: {rotation.command('trust')}")
        if record.doing not in ("", "issue") or record.phase == SETTLED:
            raise _first(rotation, record, "nothing can be issued from the new CA yet")
        current = _certificate(files.current[0])
        old, new = _both(rotation, record, current)
        if record.phase == ISSUE_FROM_NEW:
            _write_bundle(files, add=[current, old])
            return _state(rotation)
        if not record.doing:
            _wait(rotation, record, "issue")
            _usable_next(rotation, current, now, old_password)
            record = replace(record, doing="issue")
            _save(files, record)
        if not files.previous[0].exists():
            # Nothing of the old pair is replaced before this is complete: the certificate is last.
            _copy(files.current, files.previous)
        _write_bundle(files, add=[old, *([new] if new else [])])
        if fingerprint(current) != record.new:
            _copy(files.next, files.current)
        for path in files.next:
            path.unlink(missing_ok=True)
        _save(files, replace(record, phase=ISSUE_FROM_NEW, doing=""))
        return _state(rotation)


def drop(spec: Spec, directory: Path, name: str, now: datetime, *, call: str = "SPEC") -> State:
    """Trust the old CA no more; its files move to `retired/`. A CA that is settled stays as it is.

    RotationError lists everything that still needs the old CA: certificates that were not issued anew, consumers that
    have not shown the new ones; or it names the step that comes first.
    """
    with _step(spec, directory, name, call) as rotation:
        files = rotation.files
        record = _load(files)
        if record is None:
            return _state(rotation)
        if record.doing not in ("", "drop") or record.phase != ISSUE_FROM_NEW:
            raise _first(rotation, record, "the old CA is still the one that issues")
        current = _certificate(files.current[0])
        old, _ = _both(rotation, record, current)
        if not record.doing:
            _wait(rotation, record, "drop")
            _save(files, replace(record, doing="drop"))
        _write_bundle(files, add=[current], remove=old)
        _retire(files, files.previous, old)
        _close(files, replace(record, phase=SETTLED, doing=""), old, now)
        return _state(rotation)


def abort(spec: Spec, directory: Path, name: str, now: datetime, *, call: str = "SPEC") -> State:
    """Go back to the old CA alone, as long as nothing was issued from the new one; its files move to `retired/`."""
    with _step(spec, directory, name, call) as rotation:
        files = rotation.files
        record = _load(files)
        if record is None:
            return _state(rotation)
        if record.phase == ISSUE_FROM_NEW and not record.doing:
            raise rotation.refuse(
                "certificates may have been issued from the new CA, so there is no way back",
                f"finish with {rotation.command('drop')}; to be rid of the new CA, rotate once more",
            )
        if record.doing not in ("", "trust", "abort"):
            raise _first(rotation, record, "it is too late to go back")
        current = _certificate(files.current[0])
        _, new = _both(rotation, record, current)
        made = new or _quietly(files.next[0])
        record = replace(record, doing="abort", new=fingerprint(made) if made else "")
        _save(files, record)
        _write_bundle(files, add=[current], remove=made)
        if made:
            _retire(files, files.next, made)
        else:
            # A key without its certificate: somebody may have brought it.
            _move(files.next[1], files.retired / f"{files.stem}-without-certificate-key.pem")
        _close(files, replace(record, phase=SETTLED, doing=""), made or current, now)
        return _state(rotation)


def confirm(
    spec: Spec,
    directory: Path,
    name: str,
    consumer: str,
    now: datetime,
    *,
    trusts: Sequence[Sequence[x509.Certificate]] = (),
    presents: Sequence[x509.Certificate] = (),
    call: str = "SPEC",
) -> State:
    """Record what a consumer has shown: the trust anchors that it really has, certificates that it really presents.

    A consumer that runs on several machines shows what all of them have, in one call: `trusts` has one list of anchors
    for each. RotationError when one lacks a CA, or presents what is not the new certificate; then nothing is recorded.
    """
    with _step(spec, directory, name, call) as rotation:
        record = _load(rotation.files)
        if record is None:
            raise rotation.refuse("nothing is being rotated", f"{rotation.command('trust')} begins a rotation")
        if record.doing:
            raise _first(rotation, record, "nothing can be confirmed yet")
        consumers = rotation.consumers()
        if consumer not in consumers:
            close = difflib.get_close_matches(consumer, consumers, 1)
            known = ", ".join(consumers) or "none; add consumers to the specification"
            raise rotation.refuse(
                f"{consumer!r} is no consumer", f"did you mean {close[0]}?" if close else f"there are {known}"
            )
        if not trusts and not presents:
            raise rotation.refuse("nothing is shown", "give --trust FILE, --cert FILE or --connect HOST:PORT")
        current = _certificate(rotation.files.current[0])
        old, new = _both(rotation, record, current)
        at = now.astimezone(UTC).isoformat()
        if trusts and new:
            for anchors in trusts:
                _check_trust(rotation, consumer, anchors, old, new)
            shown = {"anchors": sorted([record.old, record.new]), "at": at}
            record = replace(record, trust={**record.trust, consumer: shown})
        if presents and new:
            if record.phase != ISSUE_FROM_NEW:
                raise rotation.refuse(
                    "nothing is issued from the new CA yet, so there is no new certificate to show",
                    f"first: {rotation.command('issue')}",
                )
            seen = dict(record.shown.get(consumer, {}))
            for one in presents:
                which = _which(rotation, consumer, consumers[consumer], one, old, new)
                seen[which] = {"fingerprint": fingerprint(one), "at": at}
            record = replace(record, shown={**record.shown, consumer: seen})
        _save(rotation.files, record)
        return _state(rotation)


def _check_trust(
    rotation: _Rotation,
    consumer: str,
    anchors: Sequence[x509.Certificate],
    old: x509.Certificate,
    new: x509.Certificate,
) -> None:
    lacking = [f"the {which} CA (serial {one.serial_number:x})" for which, one in (("old", old), ("new", new))
               if one not in anchors]  # fmt: skip
    if lacking:
        raise rotation.refuse(
            f"{consumer} does not trust {' and '.join(lacking)}",
            f"give it {rotation.files.bundle}, restart it, and confirm again",
            [consumer],
        )


def _which(
    rotation: _Rotation,
    consumer: str,
    presented: Sequence[Certificate],
    shown: x509.Certificate,
    old: x509.Certificate,
    new: x509.Certificate,
) -> str:
    """The name of the certificate that is shown."""
    directory = rotation.files.directory
    files = {leaf.name: _quietly(directory / f"{leaf.path}.pem") for leaf in presented}
    for name, found in files.items():
        if found == shown:
            if issued_by(shown, new):
                return name
            raise rotation.refuse(
                f"{consumer} shows {name}.pem, which is not issued by the new CA yet",
                f"kubepki apply {rotation.call} issues it anew",
                [consumer],
            )
    if _has_elsewhere(rotation.authority, consumer) and issued_by(shown, new):
        return _ELSEWHERE
    whose = "the old CA" if issued_by(shown, old) else "the new CA" if issued_by(shown, new) else "another CA"
    like = [name for name, found in files.items() if found and found.subject == shown.subject]
    expected = " or ".join(f"{name}.pem" for name in like or files) or "none"
    raise rotation.refuse(
        f"{consumer} shows {shown.subject.rfc4514_string()} from {whose} (serial {shown.serial_number:x}), "
        f"not what is in the directory for it: {expected}",
        f"give it that file from {directory}, restart it, and confirm again",
        [consumer],
    )


@contextmanager
def _step(spec: Spec, directory: Path, name: str, call: str) -> Iterator[_Rotation]:
    rotation = _rotation(spec, directory, name, call)
    with store.locked(directory):
        try:
            yield rotation
        except OSError as error:
            raise StoreError(
                f"{error.filename or directory}: {error.strerror}", "mend it, and run this again"
            ) from error


def _first(rotation: _Rotation, record: _Record, message: str) -> RotationError:
    """What has to be done before the step that was asked for."""
    if record.doing:
        back = f", or {rotation.command('abort')} to go back" if record.doing == "trust" else ""
        hint = f"{rotation.command(record.doing)} finishes it{back}"
        return rotation.refuse(f"{message}: a run of {record.doing!r} was interrupted", hint)
    return rotation.refuse(f"{message}: its phase is {record.phase}", f"next: {rotation.command(_NEXT[record.phase])}")


def _wait(rotation: _Rotation, record: _Record, step: str) -> None:
    """RotationError while something is missing."""
    current = _certificate(rotation.files.current[0])
    missing = list(_missing(rotation, record, *_both(rotation, record, current)))
    if missing:
        lines = "".join(f"\n  - {one.who} {one.what}" for one in missing)
        commands = "\n  ".join(dict.fromkeys(one.command for one in missing))
        raise rotation.refuse(f"{step} has to wait{lines}", commands, list(dict.fromkeys(one.who for one in missing)))


def _next_key(rotation: _Rotation, content: bytes, old_password: str) -> PrivateKey:
    """The next key, under the password of the specification or the one that it had before. PrivateKeyError."""
    where, secret = str(rotation.files.next[1]), sources.password(rotation.authority.password)
    try:
        return keys.load(content, where, lambda: secret)
    except PrivateKeyError as error:
        if not keys.is_encrypted(content):
            raise
        if old_password:
            return keys.load(content, where, lambda: sources.password(old_password))
        raise PrivateKeyError(
            error.message,
            "if the password of the CA was changed during the rotation, give the one before as well: "
            "--old-password env:NAME or file:PATH",
            error.code,
        ) from error


def _usable_next(rotation: _Rotation, current: x509.Certificate, now: datetime, old_password: str) -> None:
    """CertificateError or PrivateKeyError when there is a next pair that cannot take over.

    Its key becomes its owner's alone, under the password of the specification.
    """
    path, key_path = rotation.files.next
    if not path.exists():
        return
    found = store.read(key_path)
    if found is None:
        raise StoreError(f"{key_path} is missing, but {path} exists", "restore it, or move both away")
    made = _certificate(path)
    key = _next_key(rotation, found.content, old_password)
    problem = certificates.unfit(made, now)
    if problem:
        raise CertificateError(f"{path} {problem}", f"{rotation.command('abort')}, and begin again")
    if not certificates.matches(key, made):
        raise CertificateError(f"{key_path} is not the key of {path}", "restore both, or move both away")
    if made.public_key() == current.public_key():
        raise CertificateError(f"{path} has the key of {rotation.files.current[0]}", "a rotation needs a new key")
    secret = sources.password(rotation.authority.password)
    if keys.is_encrypted(found.content) and not _opens(found.content, str(key_path), secret):
        store.replace([[File(key_path, keys.pem(key, secret), 0o600, found.owner)]])
    elif found.mode & 0o077:
        key_path.chmod(0o600)


def _opens(content: bytes, where: str, password: bytes) -> bool:
    try:
        keys.load(content, where, lambda: password)
    except PrivateKeyError:
        return False
    return True


def _make_next(rotation: _Rotation, password: bytes, now: datetime) -> x509.Certificate:
    """The new CA: what lies there, or one that is made now. The key is first, and alone it is worth nothing."""
    path, key_path = rotation.files.next
    if path.exists():
        return _certificate(path)
    key: PrivateKey = keys.generate(rotation.authority.key)
    made = certificates.sign(certificates.for_authority(rotation.authority, now), key.public_key(), key)
    store.replace([[File(key_path, keys.pem(key, password), 0o600), File(path, _pem(made), 0o644)]])
    return made


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _write_bundle(files: _Files, *, add: Sequence[x509.Certificate], remove: x509.Certificate | None = None) -> None:
    """Let the bundle hold what is to be added, and not what is to be removed; the rest of it stays."""
    found = store.read(files.bundle)
    before = certificates.load_all(found.content, str(files.bundle)) if found else []
    kept = [one for one in before if one != remove]
    wanted = [one for one in add if one not in kept] + kept
    if wanted != before:
        store.write(files.bundle, b"".join(map(_pem, wanted)), 0o644)


def _copy(source: tuple[Path, Path], target: tuple[Path, Path]) -> None:
    """Key and certificate as they are, so that an encrypted key stays encrypted; the key of the old CA may be lost."""
    key, certificate = store.read(source[1]), store.read(source[0])
    if certificate is None:
        raise StoreError(f"{source[0]} is missing", "restore it from a backup")
    pair = [File(target[1], key.content, 0o600)] if key else []
    store.replace([[*pair, File(target[0], certificate.content, 0o644)]])


def _retire(files: _Files, pair: tuple[Path, Path], certificate: x509.Certificate) -> None:
    """Move a pair to `retired/`, under a name with its fingerprint; nothing is lost."""
    stem = f"{files.stem}-{fingerprint(certificate)}"
    for path, name in ((pair[1], f"{stem}-key.pem"), (pair[0], f"{stem}.pem")):
        _move(path, files.retired / name)
    store.flush_directory(files.directory)


def _move(path: Path, target: Path) -> None:
    """Move a file to `retired/`, if it is there; what lies there is never replaced."""
    found = store.read(path)
    if found is None:
        return
    target.parent.mkdir(0o700, exist_ok=True)
    target.parent.chmod(0o700)
    if path.name.endswith("-key.pem") and found.mode & 0o077:
        path.chmod(0o600)
    path.replace(_free(target, found.content))
    store.flush_directory(target.parent)


def _free(target: Path, content: bytes) -> Path:
    """The path itself, or with a number, so that no other content lies there; the names end in what they are."""
    stem, end = target.name, ""
    for known in ("-key.pem", "-rotation.json", ".pem"):
        if target.name.endswith(known):
            stem, end = target.name.removesuffix(known), known
            break
    candidate, number = target, 1
    while candidate.exists() and not _holds(candidate, content):
        number += 1
        candidate = target.with_name(f"{stem}-{number}{end}")
    return candidate


def _holds(path: Path, content: bytes) -> bool:
    try:
        found = store.read(path)
    except StoreError:
        return False
    return found is not None and found.content == content


def _close(files: _Files, record: _Record, certificate: x509.Certificate, now: datetime) -> None:
    """End a rotation: its record becomes history."""
    files.retired.mkdir(0o700, exist_ok=True)
    files.retired.chmod(0o700)
    content = _json(record, ended=now.astimezone(UTC).isoformat())
    store.write(
        _free(files.retired / f"{files.stem}-{fingerprint(certificate)}-rotation.json", content), content, 0o600
    )
    files.record.unlink(missing_ok=True)
    store.flush_directory(files.directory)


def _json(record: _Record, **more: str) -> bytes:
    return f"{json.dumps({'version': _VERSION, **asdict(record), **more}, indent=2)}\n".encode()


def _save(files: _Files, record: _Record) -> None:
    store.write(files.record, _json(record), 0o600)


def _parsed(content: bytes) -> _Record:
    """ValueError, TypeError, KeyError, AttributeError or RecursionError for what no step has written."""
    data = json.loads(content)
    version, record = data.pop("version"), _Record(**data)
    steps = {"", "trust", "issue", "drop", "abort"}
    if version != _VERSION or record.phase not in PHASES or record.doing not in steps:
        raise ValueError
    evidence = [one for shown in record.shown.values() for one in shown.values()]
    anchors = [one["anchors"] for one in record.trust.values()]
    texts = [record.old, record.new, record.begun, *(one["fingerprint"] for one in evidence)]
    texts += [anchor for those in anchors for anchor in those]
    if not all(isinstance(those, list) for those in anchors) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if record.begun:
        datetime.fromisoformat(record.begun)
    if not record.old or (record.phase != SETTLED and record.doing != "abort" and not record.new):
        raise ValueError
    return record


def _load(files: _Files) -> _Record | None:
    """What is recorded; without a record, what the files say. None when nothing is being rotated."""
    found = store.read(files.record)
    if found is None:
        return _derived(files)
    try:
        return _parsed(found.content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{files.record} is damaged",
            "restore it from a backup, or move it away: the phase is then told by the files, "
            "and all consumers have to be confirmed again",
        ) from error


def _derived(files: _Files) -> _Record | None:
    previous, following = _quietly(files.previous[0]), _quietly(files.next[0])
    current = _quietly(files.current[0])
    if current is None:
        return None
    if previous and following:
        return _Record(TRUST_BOTH, "issue", fingerprint(previous), fingerprint(following))
    if previous:
        return _Record(ISSUE_FROM_NEW, "", fingerprint(previous), fingerprint(current))
    if following and following != current and following in _all_quietly(files.bundle):
        return _Record(TRUST_BOTH, "", fingerprint(current), fingerprint(following))
    # A pair that somebody brought is no rotation yet: `trust` takes it.
    return None
