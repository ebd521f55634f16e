"""Leases in etcd's v2 API: a key has a time to live of its own, and lives for ever without one.

Every write but that of a permanent lease gives the full time to live anew.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple, TypeVar

from flanneld.errors import CompactedError
from flanneld.etcd.transport import Cluster
from flanneld.etcd.v2 import EtcdV2Client, Node, WatchV2
from flanneld.subnet.lease import Lease
from flanneld.subnet.store import CONFIG, Batch, Change, Position, Record, Written, name_of

_Item = TypeVar("_Item")


class StoreV2:
    """A LeaseStore."""

    api = "v2"

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self._client = EtcdV2Client(cluster)
        self._directory = prefix

    def config(self) -> Optional[str]:
        """Return the text of the configuration."""
        found = self._client.get(f"{self._directory}/{CONFIG}")
        return None if found is None or found.directory else found.value

    def read(self, build: Callable[[Record], _Item]) -> Tuple[Position, List[_Item]]:
        """Return what `build` makes of all keys."""
        state, items = self._client.collect(self._directory, lambda node: build(self._record(node)))
        return Position(*state), items

    def get(self, name: str) -> Optional[Record]:
        """Return one key."""
        found = self._client.get(f"{self._directory}/{name}")
        return None if found is None or found.directory else self._record(found)

    def create(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease whose key must not exist."""
        return self._settled(lease, value, ttl, self._client.create(self._key(lease), value, ttl))

    def replace(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease with a new time to live."""
        ttl = 0 if lease.permanent else ttl
        return self._settled(lease, value, ttl, self._client.replace(self._key(lease), value, ttl, lease.revision))

    announce = replace

    def delete(self, lease: Lease) -> bool:
        """Delete a lease."""
        return self._client.delete(self._key(lease), lease.revision)

    def left(self, record: Record) -> Optional[float]:
        """Return the seconds that a lease lives on."""
        if record.permanent:
            return None
        found = self._client.get(f"{self._directory}/{record.name}")
        return 0.0 if found is None else None if found.ttl is None else float(found.ttl)

    def watch(self, position: Position) -> FollowerV2:
        """Watch all keys."""
        return FollowerV2(self._client.watch(self._directory, position.revision + 1), self._record, position.revision)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _key(self, lease: Lease) -> str:
        return f"{self._directory}/{name_of(lease)}"

    def _record(self, node: Node) -> Record:
        return Record(
            node.key[len(self._directory) + 1 :], node.value, node.modified, node.ttl is None, 0, node.created
        )

    def _settled(self, lease: Lease, value: str, ttl: int, index: Optional[int]) -> Optional[Written]:
        """Return what was written; a write that seems lost may be an earlier attempt's whose answer was lost."""
        if index is None:
            found = self._client.get(self._key(lease))
            if found is None or found.value != value or found.modified <= lease.revision:
                return None
            index = found.modified
        return Written(index, 0, ttl or None)


class FollowerV2:
    """A Follower."""

    def __init__(self, watch: WatchV2, record: Callable[[Node], Record], revision: int) -> None:
        self._watch = watch
        self._record = record
        self._started = False
        self._seen = revision

    @property
    def revision(self) -> int:
        """Up to where everything was told."""
        return max(self._seen, self._watch.quiet_index)

    def next(self, timeout: float) -> Optional[Batch]:
        """Return the next batch, of one change each; raises CompactedError also when a whole directory went."""
        if not self._started:
            state = self._watch.open()
            self._started = True
            return Batch(Position(state.cluster, min(state.revision, self._seen)), ())
        change = self._watch.next(timeout)
        if change is None:
            return None
        if change.node.directory:
            if change.deleted:
                raise CompactedError(f"the directory {change.node.key} was deleted")
            return Batch(Position(self._watch.opened.cluster, change.seen), ())
        self._seen = change.seen
        record = self._record(change.node)
        return Batch(
            Position(self._watch.opened.cluster, self._seen), (Change(record.name, None if change.deleted else record),)
        )

    def close(self) -> None:
        """End the watch."""
        self._watch.close()
