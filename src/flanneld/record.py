"""What the daemon has set over the underlay, kept in a file: by its form it cannot be told from an administrator's."""

from __future__ import annotations

from pathlib import Path
from typing import FrozenSet, Optional, Tuple

from flanneld.dataplane import Desired, Past
from flanneld.errors import FlanneldError
from flanneld.log import Repeated
from flanneld.outputs import previous_networks, write_atomically

_HEAD = "# destination and gateway of the routes that flanneld has set over the interface to other machines"

Made = FrozenSet[Tuple[str, str]]


def path(subnet_file: Path) -> Path:
    """Return where the record of the daemon with this subnet file is."""
    return subnet_file.with_suffix(".routes")


def read(subnet_file: Path) -> Optional[Made]:
    """Return destination and gateway of the routes that were set, None when nobody has kept a record."""
    try:
        lines = path(subnet_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    words = (line.split() for line in lines)
    return frozenset((pair[0], pair[1]) for pair in words if len(pair) == 2 and pair[0] != "#")


class Record:
    """What has been made, by earlier runs and this one. Without a subnet file it lasts as long as the process."""

    def __init__(self, subnet_file: Optional[Path]) -> None:
        self._file = subnet_file
        self._written = read(subnet_file) if subnet_file is not None else None
        self._unwritten = Repeated()
        self.past = Past(self._written, previous_networks(subnet_file) if subnet_file is not None else ())

    def keep(self, desired: Desired, *, exact: bool) -> None:
        """Remember what is set now; `exact`: nothing of before is left."""
        below, routes = desired.ownership.underlay, desired.routes.values() if desired.ownership.plain else ()
        now: Made = frozenset((one.destination, one.gateway) for one in routes if one.device == below)
        if not exact:
            now |= self.past.made or frozenset()
        if now != self.past.made:
            self.past = self.past._replace(made=now)
        if exact and self.past.former:
            self.past = self.past._replace(former=())
        # Empty, it says that nothing was set; a backend that sets no such routes need not say that.
        if self._file is None or now == self._written or not (now or self._written or desired.ownership.plain):
            return
        try:
            self._write(self._file, now, exact=exact)
        except (FlanneldError, OSError) as error:
            reason = f"{path(self._file)} cannot be written: {error.strerror}" if isinstance(error, OSError) else error
            self._unwritten.warn(str(reason))
        else:
            self._written = now

    def _write(self, file: Path, made: Made, *, exact: bool) -> None:
        """Write the file anew, or add to it what a lease has brought."""
        new = made if exact or self._written is None else made - self._written
        text = "".join(f"{destination} {gateway}\n" for destination, gateway in sorted(new))
        if new is made:
            write_atomically(path(file), f"{_HEAD}\n{text}")
        else:
            with path(file).open("a", encoding="utf-8") as record:
                record.write(text)
