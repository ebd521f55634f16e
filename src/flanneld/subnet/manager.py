"""What a subnet manager is: where the configuration and the leases come from, and who keeps the own one.

The daemon's main thread asks; after `start` threads of the manager follow the leases and keep the own one.
"""

from __future__ import annotations

import abc
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

from flanneld.subnet.config import Network, NetworkConfig
from flanneld.subnet.lease import Attributes, Holding, Lease


class Picture(NamedTuple):
    """Everybody's leases by name, and the text of the configuration, as they were at one moment."""

    leases: Mapping[str, Lease]
    config: str


class Overrides(NamedTuple):
    """Addresses that the manager's store prescribes for this machine, by IP version.

    `own` must be addresses of the machine (like -public-ip); `announced` need not be.
    """

    own: Mapping[int, str] = {}
    announced: Mapping[int, str] = {}


class SubnetManager(abc.ABC):
    """Where leases live. Methods are for the main thread; the attributes are replaced by the manager's threads.

    picture: None until the leases were seen for the first time. trouble: why the leases are not followed at the
    moment, empty when they are; it does not make the daemon unready. changed and lost: set by the daemon before
    `start`; called from threads, `changed` whenever `picture` was replaced, `lost` with the reason when the own
    lease is gone for good. own_name: under which name the own lease is among `leases`, where that is known before
    there is one, else empty.
    """

    name = ""
    own_name = ""

    def __init__(self) -> None:
        self.picture: Optional[Picture] = None
        self.trouble = ""
        self.changed: Callable[[], None] = lambda: None
        self.lost: Callable[[str], None] = lambda _reason: None

    @abc.abstractmethod
    def config_text(self) -> str:
        """Return the network's configuration; raises ConfigError when there is none."""

    def overrides(self) -> Overrides:
        """Return addresses prescribed for this machine."""
        return Overrides()

    @abc.abstractmethod
    def leases(self) -> Mapping[str, Lease]:
        """Return all leases by name, read now."""

    @abc.abstractmethod
    def acquire(self, config: NetworkConfig, attributes: Attributes, previous: Sequence[Network]) -> Holding:
        """Lease subnets: those held already, else the previous ones, else free ones.

        Raises LeaseError when there are none, ConfigError when the configuration does not fit the manager, and
        another FlanneldError when the store cannot be asked; the daemon tries again.
        """

    @abc.abstractmethod
    def start(self, holding: Holding) -> None:
        """Follow the leases and keep the own one, in threads of the manager's own. Returns at once."""

    @abc.abstractmethod
    def announce(self, attributes: Attributes) -> None:
        """Have the own lease say this from now on; written soon, by a thread."""

    def check(self) -> None:  # noqa: B027 - a hook that most managers do without
        """Have the own lease looked at: in the picture it is not what it should be."""

    def held(self) -> Optional[Holding]:
        """Return the own lease as it was last written, None when that is for ever as `acquire` returned it."""
        return None

    def ready(self) -> None:  # noqa: B027 - a hook that most managers do without
        """The daemon works from now on: tell whoever wants to know. Must not block."""
