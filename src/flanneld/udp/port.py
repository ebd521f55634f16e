"""The UDP port of the machine, and who has it when it is taken."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from pathlib import Path
from typing import Optional

from flanneld.errors import NetworkError

_SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max, with CAP_NET_ADMIN
_RECEIVE = 1 << 21


def bind(address: str, port: int) -> socket.socket:
    """Return a UDP socket bound to the machine's address; raises NetworkError, with the port's owner when taken."""
    sock: Optional[socket.socket] = None
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
    except OSError as error:
        if sock is not None:
            sock.close()
        hint = ""
        with contextlib.suppress(OSError):  # without descriptors left nothing can be found out
            if holder := owner(address, port):
                hint = f"{holder} has it: stop it, or choose another Port on all machines"
        raise NetworkError(f"UDP port {port} of {address} cannot be used: {error.strerror}", hint) from None
    # The usual 200 KB are three bursts of one sender. For sending they do, as the data path waits for room.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE)
    return sock


def owner(address: str, port: int) -> str:
    """Return the process that receives what is sent to this address and port, empty when it cannot be told."""
    inode = _inode(Path("/proc/net/udp").read_text(encoding="ascii"), address, port)
    if inode is None:
        return ""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes end, and those of others may be closed to us
            if any(str(entry.readlink()) == f"socket:[{inode}]" for entry in (directory / "fd").iterdir()):
                name = (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"process {directory.name} ({name})"
    return ""


def _inode(table: str, address: str, port: int) -> Optional[int]:
    """Return the inode of the socket in the text of /proc/net/udp that is bound so, to this address or to all."""
    # The kernel prints the address as a number of the machine's byte order.
    number = struct.unpack("=I", socket.inet_aton(address))[0]
    pattern = rf"^ *\d+: (?:{number:08X}|00000000):{port:04X} (?:\S+ +){{7}}(\d+)"
    match = re.search(pattern, table, re.MULTILINE)
    return int(match.group(1)) if match else None
