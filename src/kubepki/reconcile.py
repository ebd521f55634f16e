"""A specification and its PKI directory: what differs, and making it so; all certificates in one pass.

`compare` says for which reasons a certificate would be issued; no reason means keep. What only lies there wrongly
(mode, owner, a key that should be encrypted, a trust bundle) is repaired, and nothing is issued. A CA is never
replaced: what hangs on it is beyond this module (see `rotation`), so a damaged or half-missing CA is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import issue, keys, store
from kubepki.compare import NOTHING, Renewal
from kubepki.decide import PUBLIC, SECRET, Item, Planner, Step, directories, identity, key_pem, way
from kubepki.issue import Issuer
from kubepki.keys import Key, PrivateKey
from kubepki.spec import Authority, Certificate, Spec
from kubepki.store import File

# A user that is to read a certificate must get through to it, and needs no more.
_PASSABLE = 0o711
_PRIVATE = 0o700


@dataclass(frozen=True)
class Plan:
    """Decisions for a directory at a point in time.

    `same_as`: files that will be copies of others that are there already (a trust bundle, of its CA's certificate).
    """

    spec: Spec
    directory: Path
    now: datetime
    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def issued(self) -> tuple[str, ...]:
        """Names of what is to be issued."""
        return self._named("issue")

    @property
    def repaired(self) -> tuple[str, ...]:
        """Names of what is to be repaired."""
        return self._named("repair")

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of what stays as it is."""
        return self._named("keep")

    @property
    def changed(self) -> bool:
        """Whether there is anything to do."""
        return any(item.action != "keep" for item in self.items)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, in the directory, that get another content."""
        return tuple(file for item in self.items for file in item.files)

    @property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Who is to be restarted or reloaded, and because of which items."""
        found: dict[str, tuple[str, ...]] = {}
        for item in self.items:
            for consumer in item.consumers:
                found[consumer] = (*found.get(consumer, ()), item.name)
        return found

    def _named(self, action: str) -> tuple[str, ...]:
        return tuple(item.name for item in self.items if item.action == action)


def plan(spec: Spec, directory: Path, now: datetime, old_password: str = "", renewal: Renewal = NOTHING) -> Plan:
    """Compare without writing anything.

    `now`: aware, UTC. `old_password`: the source (see `sources`) of a password that CA keys were encrypted with before.
    `renewal`: what is issued anew although it is right. StoreError: see the module's words on CAs; also for what cannot
    be read, and for users that are not there.
    """
    return _plan(spec, _planned(spec, directory, now, old_password, renewal))


def _planned(spec: Spec, directory: Path, now: datetime, old_password: str, renewal: Renewal) -> Planner:
    planner = Planner(directory, now, old_password, renewal)
    planner.look(spec)
    return planner


def _plan(spec: Spec, planner: Planner, items: Sequence[Item] = ()) -> Plan:
    return Plan(
        spec,
        planner.directory,
        planner.now,
        tuple(items) or tuple(step.item for step in planner.steps),
        tuple(planner.warnings),
        planner.same_as,
    )


def apply(spec: Spec, directory: Path, now: datetime, old_password: str = "", renewal: Renewal = NOTHING) -> Plan:
    """Issue and repair what `plan` finds, under the directory's lock; returns the plan with the outcome in its items.

    Errors are those of `plan`, and StoreError for what cannot be written: then the files are as they were.
    """
    for certificate in spec.certificates:
        store.owner(certificate.owner, f"certificate {certificate.name!r}")
    places = directories(spec, directory)
    with store.locked(directory, _mode_of(spec, directory, directory)):
        store.sweep(places)
        planner = _planned(spec, directory, now, old_password, renewal)
        if not any(step.item.action != "keep" for step in planner.steps):
            return _plan(spec, planner)
        _may_write(planner, directory)
        for one in places[1:]:
            store.make_directory(one, _mode_of(spec, directory, one))
        groups, items = _Maker(planner).make()
        store.replace(groups)
        return _plan(spec, planner, items)


def _mode_of(spec: Spec, top: Path, directory: Path) -> int:
    """The mode of a directory that is yet to be made."""
    passed = any(c.owner and directory in way(top, c.path) for c in spec.certificates)
    return _PASSABLE if passed else _PRIVATE


def _may_write(planner: Planner, directory: Path) -> None:
    """Find out before the work whether files can be written, and given to whom they belong."""
    owners = {file.owner for step in planner.steps for file in step.repairs if file.owner}
    for step in planner.steps:
        owners |= {owner for owner in step.owners if owner}
    store.probe(directory, owners)


@dataclass
class _Maker:
    """Makes in memory what the steps of a planner ask for."""

    planner: Planner

    def make(self) -> tuple[list[list[File]], list[Item]]:
        """Files in the groups that belong together, and the items with their outcome."""
        made = iter(
            _generated([step.wanted for step in self.planner.steps if step.item.action == "issue" and not step.key])
        )
        signers = dict(self.planner.signers)
        groups: list[list[File]] = []
        items: list[Item] = []
        for step in self.planner.steps:
            item = step.item
            if item.action == "issue":
                certificate = self._issue(step, step.key or next(made), signers, groups)
                if certificate:
                    serial, end = identity(certificate)
                    item = Item(item.name, "issue", item.reasons, serial, end, item.files, item.consumers)
            else:
                groups += [[file] for file in step.repairs]
            items.append(item)
        return groups, items

    def _issue(
        self, step: Step, key: PrivateKey, signers: dict[str, Issuer], groups: list[list[File]]
    ) -> x509.Certificate | None:
        wanted, now, directory = step.wanted, self.planner.now, self.planner.directory
        if isinstance(wanted, Key):
            name = step.item.name
            public = File(directory / f"{name}.pub", keys.public_pem(key), PUBLIC)
            groups.append([File(directory / f"{name}.key", keys.pem(key), SECRET), public])
            return None
        if isinstance(wanted, Authority):
            made = issue.sign(issue.for_authority(wanted, now), key.public_key(), key)
            signers[wanted.name] = Issuer(made, key)
            pem = made.public_bytes(Encoding.PEM)
            stem = directory / wanted.stem
            bundle_path = Path(f"{stem}-bundle.pem")
            # What is trusted already goes on being trusted.
            bundle, why = self.planner.bundle(wanted.stem, store.read(bundle_path), pem, made)
            files = [File(bundle_path, bundle, PUBLIC)] if why else []
            pair = [
                File(Path(f"{stem}-key.pem"), key_pem(key, wanted), SECRET),
                File(Path(f"{stem}.pem"), pem, PUBLIC),
            ]
            # Whoever trusts by the bundle must know the CA before it signs anything.
            groups.append([*files, *pair])
            return made
        ca = signers[wanted.ca]
        template = issue.for_certificate(wanted, key, ca.certificate, now)
        made = issue.sign(template, key.public_key(), ca.key, ca.certificate)
        stem = directory / wanted.path
        groups.append(
            [
                File(Path(f"{stem}-key.pem"), keys.pem(key), wanted.mode, step.owners[0]),
                File(Path(f"{stem}.pem"), made.public_bytes(Encoding.PEM), PUBLIC, step.owners[1]),
            ]
        )
        return made


def _generated(wanted: Sequence[Authority | Certificate | Key]) -> list[PrivateKey]:
    """New keys, one for each; RSA's take long, and on all cores at once less."""
    kinds = [one if isinstance(one, Key) else one.key for one in wanted]
    if sum(kind.algo == "rsa" for kind in kinds) < 2:
        return [keys.generate(kind) for kind in kinds]
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only RSA is worth its loading

    # Threads do: OpenSSL works without Python's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(keys.generate, kinds))
