"""The thread that keeps this machine's lease in etcd: renewed, announced, written anew when somebody deleted it."""

from __future__ import annotations

import random
import threading
import time
from typing import Callable, Optional

from flanneld.errors import EtcdError, LeaseError
from flanneld.log import Repeated, logger
from flanneld.metrics import FIGURES
from flanneld.subnet.etcd_watch import Book, Timing
from flanneld.subnet.lease import Attributes, Holding, Lease, decode_attributes, encode_attributes
from flanneld.subnet.store import CONFIG, LeaseStore, Record, Written, name_of

_SPARSE = 3.0
"""Seconds per lease between two announcements of one machine: all together write at most one key in this time, for
every key written is sent to every machine."""

_CONTEST = (2.0, 300.0)
"""Seconds before the own key is written over what another flanneld with our address has written: at first, at most.
Two machines with one address must not fight at full speed."""

_FORGIVEN = 3600.0  # seconds after which such a contest is forgotten

_PAUSE = (1.0, 30.0)  # seconds between attempts while etcd is away, at first and at most
_LOOK = 60.0  # seconds between updates of the figures


class Keeper(threading.Thread):
    """Keeps the own key for ever, or until it is lost. All times are monotonic: a clock that is set changes nothing.

    asking: held while the store is used. note: told what is wrong, empty when nothing is. lost: called once with the
    reason when another machine holds the subnet.
    """

    def __init__(
        self,
        store: LeaseStore,
        asking: threading.Lock,
        holding: Holding,
        margin: float,
        timing: Timing,
        book: Book,
        note: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        super().__init__(name="keeper", daemon=True)
        self._store = store
        self._asking = asking
        self._holding = holding
        self._wanted = holding.lease.attributes
        self._margin = margin
        self._timing = timing
        self._book = book
        self._note = note
        self._lost = lost
        self._woken = threading.Event()
        self._look = False
        self._seen = holding.lease.revision
        self._announce_at = time.monotonic() + timing.announce_first
        self._contest_at: Optional[float] = None
        self._contest = _CONTEST[0]
        self._contested_at = 0.0
        self._written_at = time.monotonic()
        self._trouble = Repeated()

    def poke(self) -> None:
        """Have the own key looked at now: something changed."""
        self._look = True
        self._woken.set()

    def saw(self, revision: int) -> None:
        """Take note of a change of the own key, 0 = deleted."""
        self._seen = revision
        if revision != self._holding.lease.revision:
            self._woken.set()

    @property
    def holding(self) -> Holding:
        """The own lease as last written; may be read by any thread."""
        return self._holding

    def announce(self, attributes: Attributes) -> None:
        """Have the own key say this from now on."""
        self._wanted = attributes
        self._woken.set()

    def run(self) -> None:
        """Keep for ever, or until the lease is lost."""
        pause = _PAUSE[0]
        self._figures()
        while True:
            self._woken.wait(max(0.0, min(self._next() - time.monotonic(), _LOOK)))
            self._woken.clear()
            self._figures()
            try:
                with self._asking:
                    self._round()
                pause = _PAUSE[0]
                self._note("")
                self._trouble.clear("the lease is looked after again")
            except EtcdError as error:
                self._complain(error)
                # News, such as that etcd has its configuration back, end the wait, but not all the time.
                time.sleep(_PAUSE[0] * random.uniform(0.8, 1.2))  # noqa: S311 - nothing secret
                self._woken.wait((pause - _PAUSE[0]) * random.uniform(0.8, 1.2))  # noqa: S311
                pause = min(pause * 2, _PAUSE[1])
                self._look = True
                self._woken.set()
            except LeaseError as error:
                self._note(str(error))
                self._lost(str(error))
                return
            finally:
                self._store.close()  # the next use is minutes away

    def _next(self) -> float:
        return min(self._due(), self._announce_at, self._contest_at or self._announce_at)

    def _due(self) -> float:
        expires = self._holding.expires
        if expires is None:
            return float("inf")
        # A time to live hardly longer than the margin must not mean renewing without a break.
        return max(expires - self._margin, self._written_at + min(60.0, self._timing.ttl / 4))

    def _round(self) -> None:
        if self._look or self._seen != self._holding.lease.revision:
            self._look, self._seen = False, self._holding.lease.revision
            self._check()
        now = time.monotonic()
        if self._contest_at is not None:
            if now >= self._contest_at:
                self._contest_at = None
                self._announce()
        elif self._wanted != self._holding.lease.attributes or now >= self._announce_at:
            self._announce()
        if self._due() <= now:
            self._renew()

    def _check(self) -> None:
        lease = self._holding.lease
        record = self._store.get(name_of(lease))
        if record is None:
            self._revive()
            return
        found = decode_attributes(record.value)
        if found is not None and found.public_ip not in {lease.attributes.public_ip, self._wanted.public_ip}:
            raise LeaseError(
                f"the lease {lease.name} was taken over by {found.public_ip}",
                "flanneld restarts with another subnet; restart what uses the old one",
            )
        if record.revision == lease.revision:
            return
        ours = found == self._wanted
        self._adopt(record, self._wanted if ours else lease.attributes)
        if ours:
            # It may be what a slow etcd has written after all: writing it again would slow it further.
            self._contest_at = None
            self._plan_announcement()
        elif found != lease.attributes:
            now = time.monotonic()
            if now >= self._contested_at + _FORGIVEN:
                self._contest = _CONTEST[0]
            self._contested_at = now
            logger.warning(
                "the lease %s was changed to %s; writing ours again in %d s: if another machine announces the address"
                " %s, too, give one of them another -public-ip",
                lease.name,
                "something malformed" if found is None else encode_attributes(found)[:300],
                self._contest,
                lease.attributes.public_ip,
            )
            self._contest_at = now + self._contest * random.uniform(0.8, 1.2)  # noqa: S311
            self._contest = min(self._contest * 2, _CONTEST[1])

    def _adopt(self, record: Record, attributes: Attributes) -> None:
        """Take over how long the key lives after somebody else wrote it."""
        started = time.monotonic()
        left = self._store.left(record)
        lease = self._holding.lease._replace(
            attributes=attributes, permanent=record.permanent, etcd_lease=record.lease, revision=record.revision
        )
        self._hold(lease, None if left is None else started + left)

    def _revive(self) -> None:
        lease = self._holding.lease._replace(attributes=self._wanted)
        if self._store.config() is None:
            raise EtcdError(f"etcd has lost {CONFIG} and the lease {lease.name}", "write the configuration there again")
        logger.warning("the lease %s was deleted or has expired; writing it anew", lease.name)
        started = time.monotonic()
        fresh = lease._replace(permanent=False, etcd_lease=0, revision=0)
        written = self._store.create(fresh, encode_attributes(self._wanted), self._timing.ttl)
        if written is None:
            raise LeaseError(
                f"the lease {lease.name} was deleted and taken by another machine",
                "flanneld restarts with another subnet; restart what uses the old one",
            )
        self._wrote(fresh, written, started)

    def _announce(self) -> None:
        self._write(self._holding.lease._replace(attributes=self._wanted), self._store.announce)

    def _renew(self) -> None:
        lease = self._holding.lease
        if self._write(lease, self._store.replace):
            FIGURES.add("flannel_lease_renewals_total")
            logger.info("lease %s renewed", lease.name)

    def _write(self, lease: Lease, write: Callable[[Lease, str, int], Optional[Written]]) -> bool:
        """Write the own key; where it was changed meanwhile it is looked at first."""
        started = time.monotonic()
        written = write(lease, encode_attributes(lease.attributes), self._timing.ttl)
        if written is None:
            self.poke()
            return False
        self._wrote(lease, written, started)
        return True

    def _wrote(self, lease: Lease, written: Written, started: float) -> None:
        expires = self._holding.expires
        if written.seconds != 0:  # 0: it lives on as before
            expires = None if written.seconds is None else started + written.seconds
            self._written_at = started
        self._hold(lease._replace(etcd_lease=written.lease, revision=written.revision), expires)
        self._plan_announcement()

    def _plan_announcement(self) -> None:
        interval = max(self._timing.announce, len(self._book) * _SPARSE)
        self._announce_at = time.monotonic() + interval * random.uniform(0.8, 1.2)  # noqa: S311

    def _hold(self, lease: Lease, expires: Optional[float]) -> None:
        self._holding = Holding(lease, expires)
        self._seen = lease.revision
        self._book.own = lease
        self._figures()

    def _complain(self, error: EtcdError) -> None:
        text = f"the lease cannot be looked after: {error}"
        expires = self._holding.expires
        if expires is not None and time.monotonic() > expires:
            text = f"the lease {self._holding.lease.name} has probably expired, and {text}"
        self._note(text)
        self._trouble.warn(text)

    def _figures(self) -> None:
        if self._holding.expires is None:
            FIGURES.drop("flannel_lease_expires_seconds")
        else:
            left = self._holding.expires - time.monotonic()
            FIGURES.set("flannel_lease_expires_seconds", max(0.0, left))
