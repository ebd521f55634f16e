"""TUN devices: a descriptor whose reads and writes are the device's packets. The device lives as long as that."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Tuple

from flanneld.errors import NetworkError

_PATH = "/dev/net/tun"
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_REQUEST = struct.Struct("=16sH22x")
_HINTS = {
    errno.ENOENT: "load the kernel module tun",
    errno.ENODEV: "load the kernel module tun",
    errno.ENXIO: "load the kernel module tun",
    errno.EBUSY: "something else has this device: remove it",
    errno.EINVAL: "there is another device of this name: remove it",
    errno.EPERM: "run flanneld as root, or with CAP_NET_ADMIN",
    errno.EACCES: "run flanneld as root, or with CAP_NET_ADMIN and with access to /dev/net/tun",
}


def open_tun(name: str = "flannel%d") -> Tuple[int, str]:
    """Make a device; returns its non-blocking descriptor and its name. Raises NetworkError.

    The kernel puts the first free number for %d.
    """
    tun = -1
    try:
        tun = os.open(_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        answer = fcntl.ioctl(tun, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        if tun >= 0:
            os.close(tun)
        what = _PATH if tun < 0 else f"a TUN device {name}"
        raise NetworkError(f"{what} cannot be opened: {error.strerror}", _HINTS.get(error.errno or 0, "")) from None
    return tun, _name(answer)


def tun_name(tun: int) -> str:
    """Return the name that the device has now, empty when it is gone."""
    try:
        return _name(fcntl.ioctl(tun, _TUNGETIFF, _REQUEST.pack(b"", 0)))
    except OSError:
        return ""


def tun_index(name: str) -> int:
    """Return the index of the device that has this name in the daemon's network namespace, 0 when none has.

    TUNGETIFF goes on naming a device that was moved to another namespace.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _name(request: bytes) -> str:
    raw: bytes = _REQUEST.unpack(request)[0]
    return raw.rstrip(b"\0").decode()
