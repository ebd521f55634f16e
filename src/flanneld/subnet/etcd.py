"""Leases in etcd: this machine's is acquired here, kept by a Keeper, and everybody's are followed by a Watcher.

What is done is the same for etcd's v3 and v2 API; how is a LeaseStore's business. Two connections: one for the watch,
one for everything else.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.errors import ConfigError, EtcdError, LeaseError
from flanneld.etcd.transport import Cluster
from flanneld.log import Repeated, logger
from flanneld.options import EtcdOptions
from flanneld.subnet.config import Network, NetworkConfig, parse_config
from flanneld.subnet.etcd_keep import Keeper
from flanneld.subnet.etcd_watch import Book, Timing, Watcher
from flanneld.subnet.lease import (
    Attributes,
    Holding,
    Lease,
    choose_subnets,
    encode_attributes,
    format_key,
    overlap,
    permits,
)
from flanneld.subnet.manager import SubnetManager
from flanneld.subnet.store import CONFIG, LeaseStore, Position, Record, name_of

_TRIES = 100
"""Attempts to create a lease. Each lost one means that another machine has got its own, so this is plenty."""


class Reading(NamedTuple):
    """Everything below the prefix as read at one position; leases by the last part of their key."""

    position: Position
    config: Optional[str]
    leases: Dict[str, Lease]


class EtcdSubnetManager(SubnetManager):
    """A SubnetManager whose store is etcd."""

    def __init__(
        self, options: EtcdOptions, prefix: str, renew_margin: int, api: str = "v3", timing: Optional[Timing] = None
    ) -> None:
        """Take the keys below `prefix`; renew `renew_margin` seconds before the expiry. `api` is v3 or v2.

        Raises UsageError when the certificates cannot be used.
        """
        super().__init__()
        self.name = f"etcd ({api})"
        self._prefix = prefix
        self._margin = renew_margin
        self._timing = timing or Timing()
        self._cluster = Cluster(options)
        self._make = store_class(api)
        self._elsewhere: Optional[bool] = None
        self._store: LeaseStore = self._make(self._cluster, prefix)
        self._asking = threading.Lock()
        self._book = Book()
        self._reading: Optional[Reading] = None
        self._unfit = Repeated()
        self._keeper: Optional[Keeper] = None
        self._troubles: Dict[str, str] = {}

    def config_text(self) -> str:
        """Return the network's configuration; raises ConfigError when there is none."""
        with self._asking:
            text = self._store.config()
        if text is None:
            raise ConfigError(f"etcd has no key {self._prefix}/{CONFIG}", self._advice())
        return text

    def _advice(self) -> str:
        """Return what to do about a configuration that is not there; the other API's store is asked once."""
        if self._elsewhere is None:
            other = store_class("v2" if self._store.api == "v3" else "v3")(self._cluster, self._prefix)
            try:
                self._elsewhere = other.config() is not None
            except EtcdError:
                self._elsewhere = False  # it is off, or refused; which one does not matter here
            finally:
                other.close()
        if self._elsewhere and self._store.api == "v3":
            return "there is one in etcd's v2 store: `flanneld migrate` copies it, or use -etcd-api=v2 on all machines"
        if self._elsewhere:
            return "there is one in etcd's v3 store: leave out -etcd-api=v2"
        return f"write the network configuration there with the {self._store.api} API, or check -etcd-prefix"

    def leases(self) -> Mapping[str, Lease]:
        """Return all leases by the last part of their key, read now."""
        with self._asking:
            if self._keeper is None:
                return dict(self._read().leases)
            book = Book()  # the other one is the watcher's from the start on
            return book.sort(self._store.read(book.entry)[1])[1]

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Sequence[Network]) -> Holding:
        """Lease subnets: those this address holds already, else the previous ones, else free ones.

        What `leases` has just read is good enough for the first attempt: every write is conditional. A lost race is
        tried again with a fresh list.
        """
        if config.ipv4 is None:
            raise ConfigError(
                "EnableIPv4 is false, but leases in etcd always have an IPv4 subnet",
                "enable IPv4 in the network configuration, or keep the leases in Kubernetes (-kube-subnet-mgr)",
            )
        with self._asking:
            reading = self._reading or self._read()
            for _ in range(_TRIES):
                self._reading = None  # after a failure all is to be seen anew
                self._compare(reading.config, config)
                holding = self._attempt(reading.leases, config, attributes, previous)
                if holding is not None:
                    self._reading = reading
                    return holding
                reading = self._read()
        raise LeaseError(f"no subnet could be leased in {_TRIES} attempts", "too many machines start at once")

    def start(self, holding: Holding) -> None:
        """Follow the leases and keep the own one."""
        reading = self._reading
        config = reading.config if reading is not None else None
        if reading is not None and config is not None:
            self._book.begin(reading.leases, config, holding.lease)
        self._reading = None
        self._keeper = Keeper(
            self._store,
            self._asking,
            holding,
            self._margin,
            self._timing,
            self._book,
            self._note("keeper"),
            self._on_lost,
        )
        watcher = Watcher(
            self._make(self._cluster, self._prefix),
            self._prefix,
            self._book,
            reading.position if reading is not None and config is not None else None,
            self._timing,
            self._note("watcher"),
            self._publish,
            self._keeper.saw,
        )
        self._book.own = holding.lease
        watcher.start()
        self._keeper.start()

    def announce(self, attributes: Attributes) -> None:
        """Have the own lease say this from now on."""
        if self._keeper is not None:
            self._keeper.announce(attributes)

    def held(self) -> Optional[Holding]:
        """Return the own lease as the keeper has last written it."""
        return self._keeper.holding if self._keeper is not None else None

    def check(self) -> None:
        """Have the own lease looked at."""
        if self._keeper is not None:
            self._keeper.poke()

    def _read(self) -> Reading:
        position, entries = self._store.read(self._book.entry)
        self._reading = Reading(position, *self._book.sort(entries))
        return self._reading

    def _compare(self, text: Optional[str], config: NetworkConfig) -> None:
        """Raise ConfigError unless the configuration that was read with the leases is the one that is in use."""
        if text is None:
            raise ConfigError(f"etcd has lost {self._prefix}/{CONFIG}", "write it there again")
        if parse_config(text) != config:
            raise ConfigError("the network configuration was changed meanwhile", "flanneld starts anew with it")

    def _attempt(
        self,
        leases: Dict[str, Lease],
        config: NetworkConfig,
        attributes: Attributes,
        previous: Sequence[Network],
    ) -> Optional[Holding]:
        """Try once; None when something was in the way that a fresh list shows."""
        own = [one for one in leases.values() if one.attributes.public_ip == attributes.public_ip]
        fitting = [one for one in own if permits(config, one.subnets)]
        if fitting:
            held = next((one for one in fitting if set(one.subnets) <= set(previous)), fitting[0])
            return self._reuse(held, attributes)
        for unfit in own:
            if unfit.permanent:  # it was made by a person
                self._unfit.warn(f"the reservation {unfit.name} does not fit the network configuration; not used")
                continue
            self._unfit.warn(f"lease {unfit.name} does not fit the network configuration; deleting it")
            if not self._store.delete(unfit):
                return None
            leases.pop(format_key(unfit.subnets), None)
            previous = (*previous, *unfit.subnets)  # with another family added, the old one's subnet may stay
        chosen = choose_subnets(config, leases, previous)
        if chosen is None:
            ranges = " and ".join(f"{pool.subnet_min} to {pool.subnet_max}" for pool in config.pools.values())
            raise LeaseError(
                f"out of subnets: all from {ranges} are leased", "use a larger Network or a larger SubnetLen"
            )
        return self._create(Lease(chosen, attributes))

    def _reuse(self, held: Lease, attributes: Attributes) -> Optional[Holding]:
        started = time.monotonic()
        written = self._store.replace(held, encode_attributes(attributes), self._timing.ttl)
        if written is None:
            return None
        logger.info("found lease %s of %s, reusing it", held.name, attributes.public_ip)
        lease = held._replace(attributes=attributes, etcd_lease=written.lease, revision=written.revision)
        return Holding(lease, None if written.seconds is None else started + written.seconds)

    def _create(self, lease: Lease) -> Optional[Holding]:
        started = time.monotonic()
        written = self._store.create(lease, encode_attributes(lease.attributes), self._timing.ttl)
        if written is None:
            logger.info("another machine was faster in leasing %s; choosing again", lease.name)
            return None
        lease = lease._replace(etcd_lease=written.lease, revision=written.revision)
        if len(lease.subnets) > 1 and self._contested(lease):
            logger.info("another machine was faster in leasing a part of %s; choosing again", lease.name)
            self._store.delete(lease)
            return None
        logger.info("allocated lease %s to %s", lease.name, lease.attributes.public_ip)
        return Holding(lease, None if written.seconds is None else started + written.seconds)

    def _contested(self, lease: Lease) -> bool:
        """Tell whether an older lease overlaps: with two families, other keys may have one of the subnets."""
        name = name_of(lease)

        def build(record: Record) -> Tuple[str, int, Any]:
            entry = self._book.entry(record)
            return record.name, record.created, entry[1]

        _, found = self._store.read(build)
        mine = next((created for other, created, _ in found if other == name), 0)
        return any(
            isinstance(one, Lease) and other != name and created < mine and overlap(one, lease)
            for other, created, one in found
        )

    def _note(self, who: str) -> Callable[[str], None]:
        def note(text: str) -> None:
            self._troubles[who] = text
            self.trouble = "; ".join(filter(None, list(self._troubles.values())))

        return note

    def _publish(self) -> None:
        self.picture = self._book.picture()
        self.changed()

    def _on_lost(self, reason: str) -> None:
        self.lost(reason)


def store_class(api: str) -> Callable[[Cluster, str], LeaseStore]:
    """Return what makes the store of an API, v3 or v2."""
    if api == "v2":
        from flanneld.subnet.store2 import StoreV2  # noqa: PLC0415 - old clusters only

        return StoreV2
    from flanneld.subnet.store3 import StoreV3  # noqa: PLC0415 - as above

    return StoreV3
