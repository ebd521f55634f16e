"""Who has a UDP port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path
from typing import List, NamedTuple


class Holder(NamedTuple):
    """Who has a UDP port: a process, or the kernel itself (pid 0), for whichever `address`."""

    address: str
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def holders(port: int) -> List[Holder]:
    """Return who has a UDP port in this network namespace."""
    found: List[Holder] = []
    for file in ("/proc/self/net/udp", "/proc/self/net/udp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(file).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, hexadecimal = fields[1].partition(":")
                if int(hexadecimal, 16) == port:
                    found.append(_holder(_address(address), int(fields[9])))
    return found


def _address(hexadecimal: str) -> str:
    words = bytes.fromhex(hexadecimal)
    packed = b"".join(struct.pack(">I", *struct.unpack_from("=I", words, at)) for at in range(0, len(words), 4))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _holder(address: str, inode: int) -> Holder:
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) == wanted:  # noqa: PTH115 - readlink of pathlib makes a Path of it
                    return Holder(address, int(process.name), (process / "comm").read_text().strip())
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM}:
                continue  # it ended meanwhile, or is somebody else's
            raise
    return Holder(address, 0, "the kernel, or a process that is not to be seen from here")
