"""The UDP port of the machine, and who has it when it is taken."""

from __future__ import annotations

import contextlib
import socket
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
            if holder := _owner(address, port):
                hint = f"{holder} has it: stop it, or choose another Port on all machines"
        raise NetworkError(f"UDP port {port} of {address} cannot be used: {error.strerror}", hint) from None
    # The usual 200 KB are three bursts of one sender. For sending they do, as the data path waits for room.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE)
    return sock


def _owner(address: str, port: int) -> str:
    """Return who receives what is sent to this address and port, empty when it cannot be told."""
    from flanneld.net.holders import holders  # noqa: PLC0415 - only after a failure

    return next((str(one) for one in holders(port) if one.pid and one.address in {address, "0.0.0.0"}), "")  # noqa: S104
