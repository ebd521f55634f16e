"""Which machine has which subnet: longest prefix first, with the last answers remembered."""

from __future__ import annotations

import socket
import struct
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

Machine = Tuple[str, int]
"""A socket address: IPv4 address and UDP port."""

_REMEMBERED = 4096


def prefix(text: str) -> Tuple[int, int]:
    """Return (address, mask) of 10.5.1.0/24 as numbers."""
    address, length = text.split("/")
    mask = 0xFFFFFFFF << (32 - int(length)) & 0xFFFFFFFF
    number: int = struct.unpack("!I", socket.inet_aton(address))[0]
    return number & mask, mask


class Peers:
    """The other machines by subnet. `answers` remembers what `find` returned; the data path looks there first."""

    def __init__(self) -> None:
        self._by_mask: List[Tuple[int, Dict[int, Machine]]] = []
        self.answers: Dict[int, Optional[Machine]] = {}

    def change(self, there: Mapping[str, Machine], gone: Sequence[str]) -> None:
        """Forget the subnets `gone`, then add or replace those that are `there`; both in the form 10.5.1.0/24."""
        tables = dict(self._by_mask)
        for text in gone:
            address, mask = prefix(text)
            tables.get(mask, {}).pop(address, None)
        for text, machine in there.items():
            address, mask = prefix(text)
            tables.setdefault(mask, {})[address] = machine
        self._by_mask = sorted((item for item in tables.items() if item[1]), key=lambda item: -item[0])
        self.answers.clear()

    def find(self, address: int) -> Optional[Machine]:
        """Return the machine that has an address, None when nobody has it."""
        entry = self._entry(address)
        found = entry[1] if entry else None
        if len(self.answers) >= _REMEMBERED:  # a scan of the network must not fill the memory
            self.answers.clear()
        self.answers[address] = found
        return found

    def first(self, address: int) -> Optional[int]:
        """Return the first address of the subnet that an address is in, its machine's TUN's; None without one."""
        entry = self._entry(address)
        return entry[0] if entry else None

    def _entry(self, address: int) -> Optional[Tuple[int, Machine]]:
        for mask, table in self._by_mask:
            machine = table.get(address & mask)
            if machine is not None:
                return address & mask, machine
        return None
