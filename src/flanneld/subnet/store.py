"""What the subnet manager needs of a store of leases: etcd's v3 and v2 API do the same in different ways.

Names are relative to the prefix: `config`, and `subnets/10.244.7.0-24`. Every method raises EtcdUnavailableError when
the store cannot be asked, and EtcdError when it refuses.
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Protocol, Tuple, TypeVar

from flanneld.subnet.lease import Lease, format_key

CONFIG = "config"
SUBNETS = "subnets/"
_Item = TypeVar("_Item")


class Record(NamedTuple):
    """A key as read. `lease`: etcd's lease number (v3 only); `permanent`: it does not expire."""

    name: str
    value: str
    revision: int
    permanent: bool
    lease: int = 0
    created: int = 0


class Position(NamedTuple):
    """Up to where the store is known; a revision has a meaning within one cluster only (0: it has no number)."""

    cluster: int
    revision: int


class Written(NamedTuple):
    """A lease that was written; `seconds` that it lives, None for ever."""

    revision: int
    lease: int
    seconds: Optional[int]


class Change(NamedTuple):
    """A key that was written, or deleted: then there is no record."""

    name: str
    record: Optional[Record]


class Batch(NamedTuple):
    """Changes in order; `position` is known with them. The first batch has none: it tells what the store knows."""

    position: Position
    changes: Tuple[Change, ...]


class Follower(Protocol):
    """An open watch; it occupies its store's connection."""

    def next(self, timeout: float) -> Optional[Batch]:
        """Return the next batch, None when nothing happens for `timeout` seconds.

        Raises CompactedError when only a full read can tell what happened.
        """

    @property
    def revision(self) -> int:
        """Up to where everything was told."""

    def close(self) -> None:
        """End the watch."""


class LeaseStore(Protocol):
    """One connection to the store; belongs to one thread at a time."""

    api: str

    def config(self) -> Optional[str]:
        """Return the text of the configuration, None when there is none."""

    def read(self, build: Callable[[Record], _Item]) -> Tuple[Position, List[_Item]]:
        """Return what `build` makes of all keys below the prefix: one request, however many there are."""

    def get(self, name: str) -> Optional[Record]:
        """Return one key, None when there is none."""

    def create(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease whose key must not exist; None when it does."""

    def replace(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease with a new time to live, None when its key was changed since `lease.revision`.

        A permanent lease stays one.
        """

    def announce(self, lease: Lease, value: str, ttl: int) -> Optional[Written]:
        """Write a lease so that every watcher sees it, without more requests than it takes; None as `replace`.

        `seconds` of the result is 0 where the time to live goes on as it was.
        """

    def delete(self, lease: Lease) -> bool:
        """Delete a lease; False when its key was changed since `lease.revision`."""

    def left(self, record: Record) -> Optional[float]:
        """Return the seconds that a lease lives on, None for ever."""

    def watch(self, position: Position) -> Follower:
        """Watch all keys below the prefix for what comes after `position`."""

    def close(self) -> None:
        """Close the connection; the next call opens another."""


def name_of(lease: Lease) -> str:
    """Return the name of a lease's key."""
    return SUBNETS + format_key(lease.subnets)
