"""What is to be done with a PKI directory: reads it, and compares it with a specification. Writes nothing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import compare, issue, keys, sources, store
from kubepki.errors import CertificateError, PrivateKeyError, StoreError
from kubepki.issue import Issuer
from kubepki.keys import Key, PrivateKey
from kubepki.spec import Authority, Certificate, Spec
from kubepki.store import File, Found, Owner

SECRET = 0o600
PUBLIC = 0o644


@dataclass(frozen=True)
class Item:
    """One decision: `keep`, or `issue` or `repair` with its reasons. Serial and end of life are those of the outcome.

    `name`: that of the certificate or key pair, or `<name>-ca`. `serial`: hexadecimal; `not_after`: ISO 8601; both are
    empty for key pairs and for what is yet to be issued. `files`: those below the directory that get another content.
    `consumers`: who is to be restarted or reloaded because of it.
    """

    name: str
    action: str
    reasons: tuple[str, ...] = ()
    serial: str = ""
    not_after: str = ""
    files: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """What is to be done for an item: `repairs` are the files of a repair, `key` that of a CA which lost its rest.

    `owners`: whose the key and the certificate are to be that are issued; None for whoever runs this.
    """

    item: Item
    wanted: Authority | Certificate | Key
    repairs: tuple[File, ...] = ()
    key: PrivateKey | None = None
    owners: tuple[Owner | None, Owner | None] = (None, None)


@dataclass
class Planner:
    """Reads a directory, and decides. `signers`: the CAs that are there, by name."""

    directory: Path
    now: datetime
    old_password: str
    renewal: compare.Renewal = compare.NOTHING
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    signers: dict[str, Issuer] = field(default_factory=dict)
    same_as: dict[str, str] = field(default_factory=dict)
    # What users and groups are in numbers, by what the specification calls them.
    owners: dict[str, Owner | None] = field(default_factory=dict)

    def authority(self, wanted: Authority) -> None:
        """A CA with its bundle."""
        stem = wanted.stem
        path, key_path = self.directory / f"{stem}.pem", self.directory / f"{stem}-key.pem"
        found, key_found = store.read(path), store.read(key_path)
        # Also before there is a key to decrypt: one that is made is to be readable again.
        sources.password(wanted.password)
        key = self._authority_key(wanted, key_path, key_found) if key_found else None
        restored = ""
        if found is None:
            found, restored = self._from_bundle(stem, key, key_found), f"{stem}.pem missing, but in the bundle"
        if found is None:
            self._refuse_third(wanted)
            # The key is written first: a run that died in between left a key that signed nothing. And whoever has
            # lost the certificate alone goes on with everything that the key has signed.
            reason = "missing" if key is None else "certificate missing, its key is there"
            files = tuple(f"{stem}{end}" for end in (".pem", "-key.pem", "-bundle.pem"))
            item = Item(stem, "issue", (reason,), files=files, consumers=wanted.consumers)
            self.steps.append(Step(item, wanted, key=key))
            return
        try:
            certificate = issue.load(found.content, str(path))
        except CertificateError as error:
            raise StoreError(error.message, "restore it and its key from a backup") from error
        if key_found is None or key is None:
            raise StoreError(
                f"{key_path} is missing, but {path} exists",
                "restore the key from a backup; a new CA would cut off everything that trusts the old one. "
                "To start over on machines without a cluster, move the whole directory away",
            )
        if not issue.matches(key, certificate):
            from kubepki import rotation  # noqa: PLC0415 - only who is in trouble needs it

            step = rotation.interrupted(self.directory, wanted)
            hint = f"kubepki rotate {step} SPEC {wanted.name} was interrupted; run it again" if step else ""
            raise StoreError(f"{key_path} is not the key of {path}", hint or "restore both files from a backup")
        self._require_fitness(wanted, path, certificate)
        self.warnings += [f"{path}: {one}" for one in compare.authority(wanted, certificate, key, self.now)]
        self.signers[wanted.name] = Issuer(certificate, key)
        self._authority_repairs(wanted, (found, key_found), Issuer(certificate, key), restored)

    def _from_bundle(self, stem: str, key: PrivateKey | None, key_found: Found | None) -> Found | None:
        """The certificate of a CA that has its key alone, when its trust bundle still has it."""
        bundle = store.read(self.directory / f"{stem}-bundle.pem") if key and key_found else None
        if not (bundle and key and key_found):
            return None
        try:
            held = issue.load_all(bundle.content, f"{stem}-bundle.pem")
        except CertificateError:
            return None
        own = [one for one in held if issue.matches(key, one)]
        if not own:
            return None
        pem = max(own, key=lambda one: one.not_valid_after_utc).public_bytes(Encoding.PEM)
        return Found(pem, PUBLIC, key_found.owner)

    def _refuse_third(self, wanted: Authority) -> None:
        """StoreError for a CA that is lost while it is rotated."""
        stem = wanted.stem
        names = (f"{stem}-rotation.json", f"{stem}-next.pem", f"{stem}-previous.pem")
        if traces := [name for name in names if (self.directory / name).exists()]:
            raise StoreError(
                f"{self.directory / stem}.pem is missing, and its rotation is under way: {', '.join(traces)} is there",
                "restore it and its key from a backup; a third CA would be trusted by nothing",
            )

    def _require_fitness(self, wanted: Authority, path: Path, certificate: x509.Certificate) -> None:
        """StoreError for a CA that cannot issue what this directory is for."""
        called = certificate.subject.rfc4514_string()
        if unfit := issue.unfit(certificate, self.now):
            if self.now < certificate.not_valid_before_utc:
                raise StoreError(f"{path} ({called}) {unfit}", "set the clock of this machine")
            raise StoreError(
                f"{path} ({called}) {unfit}",
                f"put a CA certificate and its key there, or move both files away to have a new CA made for "
                f"{wanted.name}; where something trusts the old one, rotate it: kubepki rotate -h",
            )
        if not issue.issued_by(certificate, certificate):
            raise StoreError(
                f"{path} ({called}) is an intermediate CA, issued by {certificate.issuer.rfc4514_string()}",
                "it alone would be handed out as the trust anchor, and many clients end a chain only at a self-signed "
                "CA. Put a self-signed CA and its key there, or move both files away to have one made for "
                f"{wanted.name}",
            )

    def _authority_key(self, wanted: Authority, path: Path, found: Found) -> PrivateKey:
        """The key of a CA, decrypted by the password of the specification, or by the old one."""
        tried = [source for source in (wanted.password, self.old_password) if source]
        if not keys.is_encrypted(found.content):
            tried = [""]
        elif not tried:
            raise StoreError(
                f"{path} is encrypted, and ca {wanted.name!r} has no password",
                "say where the password is: `password: env:NAME` or `file:PATH`; "
                "to have the key decrypted for good, give it as --old-password",
            )
        for number, source in enumerate(tried, 1):
            try:
                return keys.load(found.content, str(path), lambda: sources.password(source))  # noqa: B023 - called at once
            except PrivateKeyError as error:
                if number < len(tried):
                    continue
                if source:
                    hint = "is it the password of before? --old-password SOURCE says where that one is"
                    raise StoreError(f"{path} cannot be decrypted with {' or '.join(tried)}", hint) from error
                raise StoreError(error.message, "restore it and its certificate from a backup") from error
        raise AssertionError

    def _authority_repairs(self, wanted: Authority, found: tuple[Found, Found], ca: Issuer, restored: str = "") -> None:
        stem = wanted.stem
        certificate, key = found
        repairs, reasons, written = self._modes(
            ((f"{stem}-key.pem", key, SECRET), (f"{stem}.pem", certificate, PUBLIC))
        )
        if restored:
            repairs.append(File(self.directory / f"{stem}.pem", certificate.content, PUBLIC, _kept(certificate)))
            reasons.append(restored)
            written.append(f"{stem}.pem")
        if why := self._encryption(wanted, key):
            repairs = [one for one in repairs if one.path.name != f"{stem}-key.pem"]
            content = key_pem(ca.key, wanted)
            repairs.append(File(self.directory / f"{stem}-key.pem", content, SECRET, _kept(key)))
            reasons.append(why)
            written.append(f"{stem}-key.pem")
        name = f"{stem}-bundle.pem"
        bundle = store.read(self.directory / name)
        content, why = self.bundle(stem, bundle, certificate.content, ca.certificate)
        consumers: tuple[str, ...] = ()
        if why:
            repairs.append(File(self.directory / name, content, PUBLIC, _kept(bundle)))
            reasons.append(why)
            written.append(name)
            if content == certificate.content:
                self.same_as[name] = f"{stem}.pem"
            if bundle:
                consumers = wanted.consumers
        elif bundle:
            files, said, _ = self._modes(((name, bundle, PUBLIC),))
            repairs += files
            reasons += said
        self._found(stem, wanted, ca.certificate, reasons, repairs, written, consumers)

    def _encryption(self, wanted: Authority, found: Found) -> str:
        """Why the key of a CA must be written anew; empty when it is as encrypted as it should be."""
        if not keys.is_encrypted(found.content):
            return "its key is to be encrypted" if wanted.password else ""
        if not wanted.password:
            return "its key is to be no longer encrypted"
        if not self.old_password:
            return ""
        try:
            keys.load(found.content, "", lambda: sources.password(wanted.password))
        except PrivateKeyError:
            return "its key is to be encrypted with another password"
        return ""

    def bundle(self, stem: str, found: Found | None, own: bytes, ca: x509.Certificate) -> tuple[bytes, str]:
        """What a CA's trust bundle is to hold, and why it is to be written; empty when it is not.

        Certificates besides the CA's are those of a rotation, and left alone. Whatever is written, the bytes of the
        CA's file are kept as they are: consumers compare files, and nothing must restart for another line end.
        """
        if found is None:
            return self._trusted(stem, own), f"{stem}-bundle.pem missing"
        try:
            if ca in issue.load_all(found.content, f"{stem}-bundle.pem"):
                return b"", ""
        except CertificateError:
            return self._trusted(stem, own), f"{stem}-bundle.pem damaged"
        return _joined(own, found.content), f"{stem}-bundle.pem lacks the CA's certificate"

    def _trusted(self, stem: str, own: bytes) -> bytes:
        """The CA, and the one that comes before or after it in a rotation."""
        others = [store.read(self.directory / f"{stem}-{which}.pem") for which in ("next", "previous")]
        return _joined(own, *(one.content for one in others if one))

    def keypair(self, name: str, wanted: Key) -> None:
        """A key pair without certificate; like a CA it is never replaced."""
        path, public_name = self.directory / f"{name}.key", f"{name}.pub"
        found = store.read(path)
        if found is None:
            if store.read(self.directory / public_name):
                raise StoreError(
                    f"{path} is missing, but {public_name} exists",
                    f"restore it from a backup, or move {public_name} away to have a new pair made; what the lost key "
                    "has signed is not good with that one",
                )
            item = Item(name, "issue", ("missing",), files=(f"{name}.key", public_name))
            self.steps.append(Step(item, wanted))
            return
        try:
            key = keys.load(found.content, str(path))
        except PrivateKeyError as error:
            raise StoreError(error.message, "restore it from a backup") from error
        if keys.kind(key) != wanted:
            self.warnings.append(
                f"{path}: it is {keys.kind(key)}, the specification says {wanted}; what it has signed is good with it "
                f"alone, so it stays. Move it and {public_name} away to have new ones made"
            )
        repairs, reasons, written = self._modes(((f"{name}.key", found, SECRET),))
        public, content = store.read(self.directory / public_name), keys.public_pem(key)
        if public is None or public.content != content:
            reasons.append("public key missing" if public is None else "public key is that of another key")
            repairs.append(File(self.directory / public_name, content, PUBLIC, _kept(public or found)))
            written.append(public_name)
        else:
            files, said, _ = self._modes(((public_name, public, PUBLIC),))
            repairs += files
            reasons += said
        self._found(name, wanted, None, reasons, repairs, written)

    def certificate(self, wanted: Certificate) -> None:
        """A certificate with its key."""
        ca = self.signers.get(wanted.ca)
        owner = self._owner(wanted)
        names = f"{wanted.path}-key.pem", f"{wanted.path}.pem"
        key_found, found = (store.read(self.directory / name) for name in names)
        certificate, why = None, []
        if found is None or key_found is None:
            why = ["missing" if found is None else "key missing"]
        else:
            try:
                certificate = x509.load_pem_x509_certificate(found.content)
                key = keys.load(key_found.content, names[0])
                issuer = ca.certificate if ca else None
                why = compare.reasons(wanted, certificate, key, issuer, self.now)
                why = why or self.renewal.reasons(wanted.name, certificate, issuer, self.now)
            except PrivateKeyError as error:
                why = [error.message]
            except issue.UNREADABLE as error:
                why = [f"damaged: {issue.first_line(error)}"]
        if found is None or key_found is None or certificate is None or why:
            item = Item(wanted.name, "issue", tuple(why), files=names[::-1], consumers=wanted.consumers)
            # A pair of which half is lost is made for whom the other half was.
            owners = owner or _kept(key_found or found), owner or _kept(found or key_found)
            self.steps.append(Step(item, wanted, owners=owners))
            return
        repairs, reasons, _ = self._modes(
            ((names[0], key_found, wanted.mode), (names[1], found, PUBLIC)), owner, wanted.owner
        )
        self._found(wanted.name, wanted, certificate, reasons, repairs)

    def _owner(self, wanted: Certificate) -> Owner | None:
        if wanted.owner and wanted.owner not in self.owners:
            self.owners[wanted.owner] = store.owner(wanted.owner, f"certificate {wanted.name!r}")
        return self.owners.get(wanted.owner)

    def _modes(
        self, files: Sequence[tuple[str, Found, int]], owner: Owner | None = None, called: str = ""
    ) -> tuple[list[File], list[str], list[str]]:
        """Files to be written with another mode or owner, and why; the third list is for files with another content."""
        repairs, reasons = [], []
        for name, found, mode in files:
            said = []
            if found.mode != mode:
                said.append(f"{name} has mode {found.mode:04o}, wanted {mode:04o}")
            if owner and found.owner != owner:
                said.append(f"{name} belongs to {found.owner[0]}:{found.owner[1]}, wanted {called}")
            if said:
                repairs.append(File(self.directory / name, found.content, mode, owner or _kept(found)))
                reasons += said
        return repairs, reasons, []

    def _found(
        self,
        name: str,
        wanted: Authority | Certificate | Key,
        certificate: x509.Certificate | None,
        reasons: Sequence[str],
        repairs: Sequence[File],
        files: Sequence[str] = (),
        consumers: tuple[str, ...] = (),
    ) -> None:
        """Something that is there, and stays or is repaired."""
        action = "repair" if reasons else "keep"
        serial, end = identity(certificate) if certificate else ("", "")
        item = Item(name, action, tuple(reasons), serial, end, tuple(files), consumers)
        self.steps.append(Step(item, wanted, tuple(repairs)))

    def look(self, spec: Spec) -> None:
        """Decide on everything in a specification."""
        self._require_known(spec)
        for authority in spec.authorities.values():
            self.authority(authority)
        for name, wanted in spec.keypairs.items():
            self.keypair(name, wanted)
        for certificate in spec.certificates:
            self.certificate(certificate)
        self._directories(spec)

    def _require_known(self, spec: Spec) -> None:
        known = [certificate.name for certificate in spec.certificates]
        for name in self.renewal.names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                raise StoreError(
                    f"there is no certificate {name!r} to be renewed",
                    f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}",
                )

    def _directories(self, spec: Spec) -> None:
        for directory in directories(spec, self.directory):
            try:
                mode = directory.stat().st_mode
            except OSError:
                continue
            if mode & 0o022:
                self.warnings.append(
                    f"{directory}: others may write there (mode {mode & 0o7777:04o}) and so replace keys: "
                    f"chmod go-w {directory}"
                )
        said = set()
        for certificate in spec.certificates:
            owner = self.owners.get(certificate.owner)
            for directory in way(self.directory, certificate.path) if owner else ():
                if owner and not store.passes(directory, owner) and (directory, owner) not in said:
                    said.add((directory, owner))
                    self.warnings.append(
                        f"{directory}: {certificate.owner} cannot get through to the files that are its own: "
                        f"chmod a+x {directory}"
                    )


def _kept(found: Found | None) -> Owner | None:
    """Without an owner in the specification a file stays whose it is, if that is possible."""
    return found.owner if found and os.geteuid() == 0 else None


def identity(certificate: x509.Certificate) -> tuple[str, str]:
    """Serial number (hexadecimal) and end of life (ISO 8601)."""
    return f"{certificate.serial_number:x}", certificate.not_valid_after_utc.isoformat()


def _joined(*contents: bytes) -> bytes:
    """PEM texts behind one another; the last as it is."""
    whole = [one if one.endswith(b"\n") else one + b"\n" for one in contents[:-1]]
    return b"".join([*whole, contents[-1]])


def way(directory: Path, path: str) -> list[Path]:
    """The directories on the way to a certificate, from the top."""
    return [directory, *(directory / one for one in reversed(Path(path).parents[:-1]))]


def directories(spec: Spec, directory: Path) -> list[Path]:
    """All directories that hold files of a specification, parents first."""
    found = dict.fromkeys([directory])
    for path in {certificate.path for certificate in spec.certificates if "/" in certificate.path}:
        found |= dict.fromkeys(way(directory, path))
    return sorted(found)


def key_pem(key: PrivateKey, wanted: Authority) -> bytes:
    """The key of a CA as its file is to hold it. StoreError when its password cannot be read."""
    return keys.pem(key, sources.password(wanted.password))
