"""Telling systemd how the service stands (sd_notify), when it started us."""

from __future__ import annotations

import socket
from typing import Mapping


def notify(environ: Mapping[str, str], *lines: str) -> bool:
    """Send lines such as READY=1 to $NOTIFY_SOCKET; False when there is none or nobody listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux' abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True
