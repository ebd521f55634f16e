"""Everybody's leases as etcd has them: a Book of them, and the thread that keeps it up to date."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple, Union

from flanneld.errors import CompactedError, ConfigError, EtcdError, EtcdUnavailableError
from flanneld.etcd.transport import TIMEOUT
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.subnet.config import Network
from flanneld.subnet.lease import Lease, decode_attributes, format_key, parse_key
from flanneld.subnet.manager import Picture
from flanneld.subnet.store import CONFIG, SUBNETS, Batch, Change, Follower, LeaseStore, Position, Record, name_of

_MALFORMED = "malformed"  # labels of flannel_leases_ignored
_OWN_ADDRESS = "own-address"


class Timing(NamedTuple):
    """Durations in seconds. `ttl`: of a lease, as in the Go daemon.

    quiet: a watch that was silent for so long is opened anew, because a stopped member answers keep-alives but sends
    nothing. audit: between full reads, which find what no watch tells: an etcd that was restored from a backup.
    gather: a burst of changes is published in steps of this. announce_first: after the start, the own key is written
    once more, because Go daemons v0.18 to v0.21.2 miss peers that start together with them; announce: then again and
    again, because every write makes Go daemons program this machine anew. grace: leases that a store has lost together
    with its configuration, or with the own lease, are believed in for so long: their machines write them again.
    """

    ttl: int = 86400
    quiet: float = 60.0
    audit: float = 3600.0
    gather: float = 0.02
    announce_first: float = 5.0
    announce: float = 300.0
    grace: float = 60.0


class Book:
    """The leases by the last part of their key, the configuration, and what is ignored. Belongs to one thread.

    A lease that says the same as before stays the same object, whatever its revision.
    """

    def __init__(self) -> None:
        self.own: Optional[Lease] = None
        self.config = ""
        self._leases: Dict[str, Lease] = {}
        self._ignored: Dict[str, str] = {}  # label by name
        self._warned: Dict[str, str] = {}  # reason by name
        self._counted: Dict[str, int] = {}
        self._spared: Dict[str, Lease] = {}  # lost by the store, and still believed in
        self.spared_until = float("inf")

    def __len__(self) -> int:
        return len(self._leases)

    def begin(self, leases: Mapping[str, Lease], config: str, own: Lease) -> None:
        """Take over what was read at the start, with the own lease as it was written since."""
        self._leases = {**leases, format_key(own.subnets): own}
        self.config = config

    def entry(self, record: Record) -> Entry:
        """Return what a key holds: (name, text of the configuration), (last part, lease), or (name, None)."""
        if record.name == CONFIG:
            return CONFIG, record.value
        if not record.name.startswith(SUBNETS):
            return record.name, None
        key = record.name[len(SUBNETS) :]
        lease, reason = self._lease(key, record)
        if lease is None:
            self._ignore(key, reason)
        return key, lease

    def sort(self, entries: Iterable[Entry]) -> Tuple[Optional[str], Dict[str, Lease]]:
        """Return the configuration and the leases among the entries of a full reading."""
        config: Optional[str] = None
        leases: Dict[str, Lease] = {}
        ignored: Dict[str, str] = {}
        for name, content in entries:
            if isinstance(content, Lease):
                leases[name] = content
                if self._ignored.get(name) == _OWN_ADDRESS:  # until the next picture finds it otherwise
                    ignored[name] = _OWN_ADDRESS
            elif content is not None and name == CONFIG:
                config = content
            elif name in self._ignored:
                ignored[name] = self._ignored[name]
        self._ignored = ignored
        return config, leases

    def replace(self, config: str, leases: Dict[str, Lease], spare_until: Optional[float] = None) -> bool:
        """Take over a full reading; tell whether anything differs.

        `spare_until`: leases that are not among them are still believed in until then, or until others take
        their place.
        """
        before = self._leases
        if spare_until is not None:
            self._spared.update({name: lease for name, lease in before.items() if name not in leases})
            self.spared_until = spare_until
        self._displace(leases)
        if spare_until is not None and self._spared:
            lost = len(self._spared)
            logger.warning("etcd has lost %d leases; their machines get some time to write them again", lost)
        changed = config != self.config or before.keys() != leases.keys()
        for name, lease in leases.items():
            old = before.get(name)
            if old is not None and _same(old, lease):
                leases[name] = old
            else:
                changed = True
        self._leases, self.config = leases, config
        self._count()
        return changed

    def apply(self, changes: Iterable[Change]) -> bool:
        """Take over changes; tell whether anything differs. The configuration must not be deleted by them."""
        changed = False
        for name, record in changes:
            if record is None:
                key = name[len(SUBNETS) :] if name.startswith(SUBNETS) else ""
                self._ignored.pop(key, None)
                # What is deleted in the eyes of all is not spared, though here it was lost already.
                changed |= (self._leases.pop(key, None) or self._spared.pop(key, None)) is not None
                continue
            key, content = self.entry(record)
            if isinstance(content, Lease):
                if self._ignored.get(key) == _MALFORMED:
                    del self._ignored[key]
                old = self._leases.get(key)
                if old is None or not _same(old, content):
                    self._leases[key] = content
                    self._displace({key: content})
                    changed = True
            elif content is not None:
                changed |= content != self.config
                self.config = content
            elif name.startswith(SUBNETS):
                changed |= self._leases.pop(key, None) is not None
        self._count()
        return changed

    def give_up(self) -> bool:
        """Believe no longer in what the store has lost; tell whether there was anything."""
        lost, self._spared, self.spared_until = self._spared, {}, float("inf")
        if lost:
            logger.warning("%d leases that etcd had lost were not written again: they are gone", len(lost))
        return bool(lost)

    def _displace(self, leases: Mapping[str, Lease]) -> None:
        """Believe no longer in lost leases that these took the place of."""
        if self._spared:
            for name in leases:
                self._spared.pop(name, None)
            self._spared = displaced(self._spared, leases.values())
        if not self._spared:
            self.spared_until = float("inf")

    def picture(self) -> Picture:
        """Return the leases that others may use, as they are now.

        Those that give this machine's own address for another subnet are left out: whoever programs them sends
        traffic to itself.
        """
        view = {**self._spared, **self._leases}
        own = self.own
        if own is not None:
            mine, name = own.attributes.public_ip, format_key(own.subnets)
            twins = [key for key, lease in view.items() if lease.attributes.public_ip == mine and key != name]
            for key in twins:
                del view[key]
                self._ignore(key, f"it announces this machine's own address {mine}", _OWN_ADDRESS)
            for key in [key for key, reason in self._ignored.items() if reason == _OWN_ADDRESS and key not in twins]:
                del self._ignored[key]
        self._count()
        return Picture(view, self.config)

    def _lease(self, key: str, record: Record) -> Tuple[Optional[Lease], str]:
        subnets = parse_key(key)
        if subnets is None:
            return None, "its key is malformed"
        if format_key(subnets) != key:
            return None, f"its key should be {format_key(subnets)}"
        attributes = decode_attributes(record.value)
        if attributes is None:
            return None, "its value is not that of a lease"
        shared = attributes._replace(
            backend_type=sys.intern(attributes.backend_type),
            backend_data=_interned(attributes.backend_data),
            backend_v6_data=_interned(attributes.backend_v6_data),
        )
        return Lease(subnets, shared, record.permanent, record.lease, record.revision), ""

    def _ignore(self, key: str, reason: str, label: str = _MALFORMED) -> None:
        self._ignored[key] = label
        if self._warned.get(key) != reason:
            if len(self._warned) >= 1000:  # whoever writes thousands of such keys shall not fill the memory
                self._warned.clear()
            self._warned[key] = reason
            logger.warning("ignoring the key %s: %s", key[:100], reason)

    def _count(self) -> None:
        labels = list(self._ignored.values())
        counts = {label: labels.count(label) for label in (_MALFORMED, _OWN_ADDRESS)}
        if counts != self._counted:
            self._counted = counts
            for label, count in counts.items():
                FIGURES.set("flannel_leases_ignored", count, reason=label)


Entry = Tuple[str, Union[str, Lease, None]]


def displaced(lost: Mapping[str, Lease], present: Iterable[Lease]) -> Dict[str, Lease]:
    """Return those of `lost` that are in nobody's way: whose machine has no other lease, and nobody their subnets."""
    present = list(present)
    machines = {lease.attributes.public_ip for lease in present}
    taken = {subnet for lease in present for subnet in lease.subnets}
    lengths = {(subnet.version, subnet.prefixlen) for lease in lost.values() for subnet in lease.subnets}
    # Subnets of one length overlap when they are equal: in thousands only those of other lengths are compared.
    odd = [
        one for one in taken if any(version == one.version and length != one.prefixlen for version, length in lengths)
    ]

    def free(subnet: Network) -> bool:
        return subnet not in taken and not any(one.version == subnet.version and one.overlaps(subnet) for one in odd)

    return {
        name: lease
        for name, lease in lost.items()
        if lease.attributes.public_ip not in machines and all(map(free, lease.subnets))
    }


def _same(one: Lease, other: Lease) -> bool:
    return one.attributes == other.attributes and one.permanent == other.permanent


def _interned(data: Any) -> Any:
    """Return a backend's data with one copy of each key: thousands of leases have the same ones."""
    if isinstance(data, dict):
        return {sys.intern(key): value for key, value in data.items()}
    return data


class Watcher(threading.Thread):
    """Follows the leases for ever. While etcd is away, or has lost the configuration, the last picture stays.

    position: where the book stands, None when it is empty. note: told what is wrong, empty when nothing is. publish:
    called after changes. saw: told the revision of every change of the own key, 0 when it was deleted.
    """

    def __init__(
        self,
        store: LeaseStore,
        prefix: str,
        book: Book,
        position: Optional[Position],
        timing: Timing,
        note: Callable[[str], None],
        publish: Callable[[], None],
        saw: Callable[[int], None],
    ) -> None:
        super().__init__(name="watcher", daemon=True)
        self._store = store
        self._prefix = prefix
        self._book = book
        self._position = position
        self._known = position  # where the book stands, also while everything is to be read anew
        self._timing = timing
        self._note = note
        self._publish = publish
        self._saw = saw
        self._trouble = Repeated()
        self._bereft = False
        self._audit_at = 0.0
        self._stands = False

    def run(self) -> None:
        """Follow for ever; failures are tried again after 0.2 s, doubling to 5 s."""
        pause = 0.2
        self._plan_audit()
        if self._position is not None:
            self._publish()
        while True:
            self._stands = False
            try:
                if self._position is None:
                    self._read()
                self._follow()
                continue
            except CompactedError as error:
                logger.info("the watch of the leases needs a full read: %s", error)
                self._position = None
            except (EtcdError, ConfigError) as error:
                self._note(str(error))
                self._trouble.warn(f"leases cannot be followed, the network stays as it is: {error}")
                if isinstance(error, EtcdUnavailableError):
                    # Perhaps it was restored from a backup meanwhile. Machines are not to ask all at the same time.
                    self._plan_audit(within=1 + len(self._book) * 0.01)
            finally:
                self._store.close()
            FIGURES.add("flannel_watch_restarts_total")
            if self._stands:
                pause = 0.2
            time.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - nothing secret
            pause = min(pause * 2, 5.0)

    def _plan_audit(self, within: float = 0.0) -> None:
        spread = random.uniform(0, within) if within else self._timing.audit * random.uniform(0.75, 1.25)  # noqa: S311
        self._audit_at = time.monotonic() + spread

    def _read(self) -> None:
        if self._bereft and self._store.config() is None:
            raise self._lost_config()
        position, entries = self._store.read(self._book.entry)
        config, leases = self._book.sort(entries)
        if config is None:
            self._bereft = True
            raise self._lost_config()
        own = leases.get(self._own_key)
        known = self._known or position
        emptied = self._bereft or own is None or position.cluster != known.cluster or position.revision < known.revision
        self._bereft = False
        changed = self._book.replace(config, leases, time.monotonic() + self._timing.grace if emptied else None)
        self._saw(own.revision if own is not None else 0)
        self._position = self._known = position
        self._plan_audit()
        if changed:
            self._publish()

    def _follow(self) -> None:
        position = self._position
        assert position is not None  # noqa: S101 - read just before
        follower = self._store.watch(position)
        first = follower.next(TIMEOUT)
        if first is None:
            raise EtcdUnavailableError("etcd opens no watch")
        if first.position.cluster != position.cluster or first.position.revision < position.revision:
            self._position = None
            self._confirm(position, first)
            return
        self._stands = True
        self._note("")
        self._trouble.clear("leases are followed again")
        self._events(follower)

    def _confirm(self, position: Position, first: Batch) -> None:
        """Find out whether etcd lost data or just one member lags behind."""
        self._store.close()
        self._read()
        now = self._position
        if now is not None and (now.cluster != position.cluster or now.revision < position.revision):
            logger.warning(
                "etcd went from revision %d back to %d, or is another cluster: everything was read anew",
                position.revision,
                min(now.revision, first.position.revision),
            )
        time.sleep(0.5)  # a lagging member gets time to catch up

    def _events(self, follower: Follower) -> None:
        """Take over changes until the watch was quiet for long, or it is time for a full read."""
        dirty, published, heard = False, 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            if dirty and now >= published + self._timing.gather:
                dirty, published = False, now
                self._publish()
            if now >= self._book.spared_until:
                dirty |= self._book.give_up()
            if now >= self._audit_at and not dirty:
                self._position = None
                return
            until = min(heard + self._timing.quiet, self._audit_at, self._book.spared_until)
            if dirty:
                until = published + self._timing.gather
            batch = follower.next(max(0.0, until - now))
            if batch is not None:
                heard = time.monotonic()
                dirty |= self._take(batch)
            elif not dirty and time.monotonic() >= heard + self._timing.quiet:
                self._move(follower.revision)
                return

    def _take(self, batch: Batch) -> bool:
        deleted = {change.name: change.record is None for change in batch.changes}
        if deleted.get(CONFIG):
            self._position, self._bereft = None, True
            raise self._lost_config()
        changed = self._book.apply(batch.changes)
        self._move(batch.position.revision)
        own = SUBNETS + self._own_key
        for name, record in batch.changes:
            if name == own:
                self._saw(record.revision if record is not None else 0)
        return changed

    def _move(self, revision: int) -> None:
        if self._position is not None:
            self._position = self._known = self._position._replace(revision=revision)

    @property
    def _own_key(self) -> str:
        own = self._book.own
        return name_of(own)[len(SUBNETS) :] if own is not None else ""

    def _lost_config(self) -> ConfigError:
        return ConfigError(
            f"etcd has lost {self._prefix}/{CONFIG}", "write it there again; until then nothing is changed"
        )
