"""The subnet manager: this machine's lease in etcd, and a live picture of everybody's.

`SubnetManager` acquires; `Watcher` follows the keys in a thread; `Keeper` renews and defends the own key in another.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from flanneld.config import Network, NetworkConfig, parse_config
from flanneld.errors import CompactedError, ConfigError, EtcdError, FlanneldError, LeaseError
from flanneld.etcd import EtcdClient, Event, KeyValue, Snapshot
from flanneld.log import Repeated, logger
from flanneld.subnet import (
    Attributes,
    Lease,
    choose_subnet,
    encode_attributes,
    format_key,
    own_lease,
    parse_lease,
)

TTL = 86400
"""Seconds a lease lives, as in the Go daemon."""

REANNOUNCE = 5.0
"""Seconds after the start at which the own key is written once more: Go daemons v0.18-v0.21.2 lose events."""

_TRIES = 20


class Holding(NamedTuple):
    """The own lease as last written; `expires` is monotonic time, None for a reservation."""

    lease: Lease
    expires: Optional[float]


class SubnetManager:
    """Reads the configuration and the leases, and writes the own one. Belongs to one thread, as its client does."""

    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client = client
        self.prefix = prefix

    def config(self) -> NetworkConfig:
        """Return the network's configuration; raises ConfigError when it is absent or wrong."""
        found = self._client.get(f"{self.prefix}/config")
        if found is None:
            raise ConfigError(
                f"etcd has no key {self.prefix}/config",
                "write the network configuration there with the v3 API, or check -etcd-prefix",
            )
        return parse_config(found.value)

    def leases(self) -> Dict[str, Lease]:
        """Return all leases by the last part of their key."""
        return leases_of(self._client.list(f"{self.prefix}/subnets/"), self.prefix)

    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Optional[Network]) -> Holding:
        """Lease a subnet: the one held by this address already, else the previous one, else a free one.

        A lost race is tried again with a fresh list. Raises LeaseError when there is no free subnet.
        """
        for _ in range(_TRIES):
            leases = self.leases()
            key = own_lease(leases, attributes.public_ip)
            if key is not None:
                held = leases[key]
                if config.permits(held.subnet):
                    logger.info("found lease %s of %s, reusing it", held.subnet, attributes.public_ip)
                    renewed = self.write(held, attributes)
                    if renewed is not None:
                        return renewed
                    continue
                logger.warning("lease %s does not fit the network configuration; deleting it", held.subnet)
                self._client.delete(self._key(held.subnet), held.revision)
                continue
            subnet = choose_subnet(config, leases, previous)
            if subnet is None:
                raise LeaseError(
                    f"all subnets from {config.subnet_min} to {config.subnet_max} are leased",
                    "use a larger Network or a larger SubnetLen",
                )
            created = self.create(subnet, attributes)
            if created is not None:
                logger.info("allocated lease %s to %s", subnet, attributes.public_ip)
                return created
            logger.info("another machine was faster in leasing %s; choosing again", subnet)
        raise LeaseError(f"no subnet could be leased in {_TRIES} attempts", "too many machines start at once")

    def create(self, subnet: Network, attributes: Attributes) -> Optional[Holding]:
        """Write the own key, which must not exist; None when somebody else holds it."""
        value = encode_attributes(attributes)
        started = time.monotonic()
        number = self._client.grant(TTL)
        revision = self._client.create(self._key(subnet), value, number)
        if revision is None:
            # An attempt whose answer was lost may have succeeded: then the key is there with our lease.
            found = self.own_key(subnet)
            if found is None or found.lease != number:
                self._client.revoke(number)
                return None
            revision = found.revision
        return Holding(Lease(subnet, attributes, number, revision), started + TTL)

    def write(self, held: Lease, attributes: Attributes) -> Optional[Holding]:
        """Write the own key again with a new time to live, and end the lease it had.

        A reservation (a key without expiry) stays one. None when the key changed meanwhile.
        """
        started = time.monotonic()
        number = self._client.grant(TTL) if held.etcd_lease else 0
        revision = self._client.replace(self._key(held.subnet), encode_attributes(attributes), number, held.revision)
        if revision is None:
            found = self.own_key(held.subnet)
            if not number or found is None or found.lease != number:
                if number:
                    self._client.revoke(number)
                return None
            revision = found.revision
        if held.etcd_lease:
            self._client.revoke(held.etcd_lease)
        return Holding(Lease(held.subnet, attributes, number, revision), started + TTL if number else None)

    def announce(self, held: Lease) -> Optional[int]:
        """Write the own key unchanged, so that every watcher sees it; the revision, None when it changed."""
        value = encode_attributes(held.attributes)
        return self._client.replace(self._key(held.subnet), value, held.etcd_lease, held.revision)

    def own_key(self, subnet: Network) -> Optional[KeyValue]:
        """Return the key of `subnet` as it stands in etcd."""
        return self._client.get(self._key(subnet))

    def _key(self, subnet: Network) -> str:
        return f"{self.prefix}/subnets/{format_key(subnet)}"


def leases_of(snapshot: Snapshot, prefix: str) -> Dict[str, Lease]:
    """Return the leases among the keys of a snapshot; malformed ones are left out."""
    found: Dict[str, Lease] = {}
    for item in snapshot.items:
        lease = _lease(item, prefix)
        if lease is not None:
            found[item.key.rsplit("/", 1)[1]] = lease
    return found


def _lease(item: KeyValue, prefix: str) -> Optional[Lease]:
    start = f"{prefix}/subnets/"
    if not item.key.startswith(start):
        return None
    lease = parse_lease(item.key[len(start) :], item.value, item.lease, item.revision)
    if lease is None:
        logger.debug("ignoring the malformed lease %s", item.key)
    return lease


class Watcher(threading.Thread):
    """Follows the leases; `leases` is the latest picture, `on_change` is called from this thread after each change.

    While etcd is away the last picture stays. A snapshot without the network's configuration is not believed: etcd
    with lost data must not take the overlay down.
    """

    def __init__(self, client: EtcdClient, prefix: str, on_change: Callable[[], None]) -> None:
        super().__init__(name="watcher", daemon=True)
        self._client = client
        self._prefix = prefix
        self._on_change = on_change
        self._trouble = Repeated()
        self.leases: Mapping[str, Lease] = {}
        self.seen = threading.Event()
        """Set when there is a first picture."""

    def run(self) -> None:
        """Follow for ever; failures are retried after 0.2 s, doubling to 5 s."""
        revision, pause = 0, 0.2
        while True:
            try:
                if not revision:
                    revision = self._snapshot()
                for seen, events in self._client.watch(f"{self._prefix}/subnets/", revision + 1):
                    revision, pause = seen, 0.2
                    self._trouble.clear("etcd answers again")
                    if events:
                        self._apply(events)
            except CompactedError:
                revision = 0
            except (EtcdError, ConfigError, ValueError, KeyError) as error:
                self._trouble.warn(f"leases cannot be watched, the network stays as it is: {error}")
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                revision = 0  # a full read also notices an etcd restored from an older state

    def _snapshot(self) -> int:
        snapshot = self._client.list(f"{self._prefix}/")
        if not any(item.key == f"{self._prefix}/config" for item in snapshot.items):
            raise ConfigError(f"etcd has lost {self._prefix}/config", "restore it; until then nothing is changed")
        self.leases = leases_of(snapshot, self._prefix)
        self.seen.set()
        self._on_change()
        return snapshot.revision

    def _apply(self, events: Tuple[Event, ...]) -> None:
        leases = dict(self.leases)
        for event in events:
            name = event.item.key.rsplit("/", 1)[1]
            lease = None if event.deleted else _lease(event.item, self._prefix)
            if lease is None:
                leases.pop(name, None)
            else:
                leases[name] = lease
        self.leases = leases
        self._on_change()


class Keeper(threading.Thread):
    """Keeps the own key: renewed before it expires, written anew when somebody deleted it.

    `lost` is called with the reason, once, when another machine holds the subnet.
    """

    def __init__(self, manager: SubnetManager, holding: Holding, margin: int, lost: Callable[[str], None]) -> None:
        super().__init__(name="keeper", daemon=True)
        self._manager = manager
        self._holding = holding
        self._margin = margin
        self._lost = lost
        self._poked = threading.Event()
        self._trouble = Repeated()

    def poke(self) -> None:
        """Have the own key looked at now: something changed."""
        self._poked.set()

    def run(self) -> None:
        """Keep for ever, or until the lease is lost."""
        announce_at: Optional[float] = time.monotonic() + REANNOUNCE
        pause = 1.0
        try:
            while True:
                self._poked.wait(self._until(announce_at))
                self._poked.clear()
                try:
                    self._check()
                    if announce_at is not None and time.monotonic() >= announce_at:
                        self._announce()
                        announce_at = None
                    if self._due() <= time.monotonic():
                        self._renew()
                    pause = 1.0
                    self._trouble.clear("the lease is looked after again")
                except EtcdError as error:
                    self._trouble.warn(f"the lease cannot be looked after: {error}")
                    time.sleep(pause)
                    pause = min(pause * 2, 30.0)
                    self._poked.set()
        except LeaseError as error:
            self._lost(str(error))

    def _due(self) -> float:
        expires = self._holding.expires
        return float("inf") if expires is None else expires - self._margin

    def _until(self, announce_at: Optional[float]) -> float:
        next_time = min(self._due(), announce_at if announce_at is not None else float("inf"))
        return max(0.0, min(next_time - time.monotonic(), 3600.0))

    def _check(self) -> None:
        lease = self._holding.lease
        found = self._manager.own_key(lease.subnet)
        if found is None:
            logger.warning("the lease %s was deleted by somebody; writing it anew", lease.subnet)
            created = self._manager.create(lease.subnet, lease.attributes)
            if created is None:
                raise LeaseError(
                    f"the lease {lease.subnet} was deleted and taken by another machine",
                    "flanneld restarts with another subnet; restart what uses the old one",
                )
            self._holding = created
            return
        seen = _lease(found, self._manager.prefix)
        if seen is None or seen.attributes.public_ip != lease.attributes.public_ip:
            raise LeaseError(
                f"the lease {lease.subnet} was taken over by"
                f" {seen.attributes.public_ip if seen else 'something malformed'}",
                "flanneld restarts with another subnet; restart what uses the old one",
            )
        if seen.revision == lease.revision:
            return
        self._holding = Holding(
            lease._replace(etcd_lease=seen.etcd_lease, revision=seen.revision), self._holding.expires
        )
        if seen.attributes != lease.attributes:
            logger.warning("the lease %s was changed by somebody; writing ours", lease.subnet)
            time.sleep(2.0)  # two daemons with one address must not overwrite each other at full speed
            self._announce()

    def _announce(self) -> None:
        revision = self._manager.announce(self._holding.lease)
        if revision is None:
            self._poked.set()
            return
        self._holding = Holding(self._holding.lease._replace(revision=revision), self._holding.expires)

    def _renew(self) -> None:
        lease = self._holding.lease
        renewed = self._manager.write(lease, lease.attributes)
        if renewed is None:
            self._poked.set()
            return
        self._holding = renewed
        logger.info("lease %s renewed", lease.subnet)


def fetch_config(manager: SubnetManager, stopped: threading.Event) -> Optional[NetworkConfig]:
    """Return the configuration as soon as etcd has a valid one; None when stopped meanwhile."""
    trouble, pause = Repeated(), 0.2
    while not stopped.is_set():
        try:
            return manager.config()
        except FlanneldError as error:
            trouble.warn(f"no network configuration yet: {error}")
        stopped.wait(pause)
        pause = min(pause * 2, 2.0)
    return None
