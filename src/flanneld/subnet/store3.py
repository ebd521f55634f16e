"""Leases in etcd's v3 API: a key lives as long as the etcd lease that it is attached to, and for ever without one.

A renewal takes a new etcd lease, as in the Go daemon; the one it supersedes is ended, unless other keys hang on it.
"""

from __future__ import annotations

import time
from typing import Callable, List, NamedTuple, Optional, Tuple, TypeVar

from flanneld.errors import EtcdError
from flanneld.etcd.transport import TIMEOUT, Cluster
from flanneld.etcd.v3 import EtcdClient, KeyValue, Watch
from flanneld.subnet.lease import Lease
from flanneld.subnet.store import CONFIG, Batch, Change, Position, Record, Written, name_of

_Item = TypeVar("_Item")
_NOT_FOUND = 5  # gRPC's code: the etcd lease is gone


class _Grant(NamedTuple):
    """An etcd lease on which nothing hangs yet; `since` is monotonic time."""

    number: int
    seconds: int
    since: float

    @property
    def left(self) -> int:
        """The seconds that it lives on."""
        return int(self.seconds - (time.monotonic() - self.since))


class StoreV3:
    """A LeaseStore."""

    api = "v3"

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self._client = EtcdClient(cluster)
        self._prefix = f"{prefix}/"
        self._unused: Optional[_Grant] = None

    def config(self) -> Optional[str]:
        """Return the text of the configuration."""
        found = self._client.get(self._prefix + CONFIG)
        return None if found is None else found.value

    def read(self, build: Callable[[Record], _Item]) -> Tuple[Position, List[_Item]]:
        """Return what `build` makes of all keys."""
        header, items = self._client.collect(self._prefix, lambda item: build(self._record(item)))
        return Position(*header), items

    def get(self, name: str) -> Optional[Record]:
        """Return one key."""
        found = self._client.get(self._prefix + name)
        return None if found is None else self._record(found)

    def create(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease whose key must not exist."""
        return self._attached(lease, value, ttl, lambda number: self._client.create(self._key(lease), value, number))

    def replace(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease with a new time to live."""

        def write(number: int) -> Optional[int]:
            return self._client.replace(self._key(lease), value, number, lease.revision)

        if lease.permanent:
            return self._settled(lease, value, Written(0, 0, None), write(0))
        written = self._attached(lease, value, ttl, write)
        if written is not None and written.lease != lease.etcd_lease:
            self._retire(lease.etcd_lease)
        return written

    def announce(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease, attached to the etcd lease that it has."""
        del ttl
        revision = self._client.replace(self._key(lease), value, lease.etcd_lease, lease.revision)
        seconds = None if lease.permanent else 0
        return self._settled(lease, value, Written(0, lease.etcd_lease, seconds), revision, keep=True)

    def delete(self, lease: Lease) -> bool:
        """Delete a lease."""
        if not self._client.delete(self._key(lease), lease.revision):
            return False
        self._retire(lease.etcd_lease)
        return True

    def left(self, record: Record) -> Optional[float]:
        """Return the seconds that a lease lives on."""
        return None if record.permanent else float(max(0, self._client.lease(record.lease)[0]))

    def watch(self, position: Position) -> FollowerV3:
        """Watch all keys."""
        return FollowerV3(self._client.watch(self._prefix, position.revision + 1), self._record, position.revision)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _key(self, lease: Lease) -> str:
        return self._prefix + name_of(lease)

    def _record(self, item: KeyValue) -> Record:
        name = item.key[len(self._prefix) :]
        return Record(name, item.value, item.revision, item.lease == 0, item.lease, item.created)

    def _attached(self, lease: Lease, value: str, ttl: int, write: Callable[[int], Optional[int]]) -> Optional[Written]:
        """Write with an etcd lease of its own: a new one, or what an attempt that failed has left.

        So a store that grants, and then refuses or does not answer, is not filled with leases that live for a day.
        """
        grant = self._unused
        if grant is None or grant.left < 0.9 * ttl:
            grant = _Grant(*self._client.grant(ttl), time.monotonic())
        self._unused = grant
        try:
            written = self._settled(lease, value, Written(0, grant.number, grant.left), write(grant.number))
        except EtcdError as error:
            if error.code == _NOT_FOUND:
                self._unused = None
            raise
        self._unused = None
        return written

    def _settled(
        self, lease: Lease, value: str, written: Written, revision: Optional[int], *, keep: bool = False
    ) -> Optional[Written]:
        """Return what was written; a write that seems lost may be an earlier attempt's whose answer was lost."""
        if revision is None:
            found = self._client.get(self._key(lease))
            mine = found is not None and (found.value, found.lease) == (value, written.lease)
            if found is None or not mine or (not written.lease and found.revision <= lease.revision):
                if not keep:
                    self._retire(written.lease)
                return None
            revision = found.revision
        return written._replace(revision=revision)

    def _retire(self, number: int) -> None:
        """End an etcd lease on which no key hangs: someone may have attached keys of their own to it."""
        if number and not self._client.lease(number)[1]:
            self._client.revoke(number)


class FollowerV3:
    """A Follower."""

    def __init__(self, watch: Watch, record: Callable[[KeyValue], Record], revision: int) -> None:
        self._watch = watch
        self._record = record
        self._started = False
        self.revision = revision

    def next(self, timeout: float) -> Optional[Batch]:
        """Return the next batch."""
        found = self._watch.next(timeout if self._started else min(timeout, TIMEOUT))
        if found is None:
            return None
        self._started = True
        self.revision = found.revision
        changes = []
        for event in found.events:
            record = self._record(event.item)
            changes.append(Change(record.name, None if event.deleted else record))
        return Batch(Position(found.cluster, found.revision), tuple(changes))

    def close(self) -> None:
        """End the watch."""
        self._watch.close()
