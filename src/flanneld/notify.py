"""Telling systemd how the service stands (sd_notify(3)), when it started us."""

from __future__ import annotations

import os
import socket
from typing import Mapping, Optional


def notify(environ: Mapping[str, str], *lines: str) -> bool:
    """Send lines such as READY=1, STATUS=text or WATCHDOG=1 to $NOTIFY_SOCKET.

    False when there is none, or nobody listens.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # Linux' abstract namespace
        address = "\0" + address[1:]
    text = "\n".join(" ".join(line.split("\n")) for line in lines)  # a newline in a status would begin a field
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)  # systemd may have more to do than to read
            sock.connect(address)
            sock.sendall(text.encode("utf-8", "backslashreplace"))
    except OSError:
        return False
    return True


def watchdog_interval(environ: Mapping[str, str]) -> Optional[float]:
    """Return every how many seconds WATCHDOG=1 should be sent: half of what systemd allows; None when it wants none."""
    allowed = environ.get("WATCHDOG_USEC", "")
    if not (allowed.isascii() and allowed.isdigit()) or int(allowed) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process of the unit
    return int(allowed) / 2e6
