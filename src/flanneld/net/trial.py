"""Tries whether the kernel can make what a backend needs, under a name of its own that is removed at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import List, NamedTuple

from flanneld import dataplane as dp
from flanneld.net.kernel import Kernel

NAME = "flannelchk"

_VNI = 0xFFFFFE
_MTU = 1280
_NET_ADMIN = 12
_TUNSETIFF = 0x400454CA
_TUN, _NO_PI = 0x0001, 0x1000


class Holder(NamedTuple):
    """Who has a UDP port: a process, or the kernel itself (pid 0), for whichever `address`."""

    address: str
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def may_administer() -> bool:
    """Tell whether this process has the capability NET_ADMIN."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return match is not None and bool(int(match.group(1), 16) >> _NET_ADMIN & 1)


def vxlan(kernel: Kernel, device: dp.Vxlan) -> str:
    """Return why a device like this cannot be made and brought up, empty when it can.

    It gets a VNI that nobody uses, so that no packet of another network comes to it, but the same port. The MTU is not
    judged.
    """
    trial = device._replace(name=NAME, vni=_VNI, mtu=min(device.mtu, _MTU))
    remove = dp.DeleteDevice(NAME, "it was a trial")
    kernel.apply([remove])
    try:
        failures = kernel.apply([dp.CreateDevice(trial)]).failures
        there = any(link.name == NAME and link.found.kind == "vxlan" for link in kernel.links())
    finally:
        kernel.apply([remove])
    return failures[0] if failures else "" if there else "the kernel made no vxlan device, and did not say why"


def tun() -> str:
    """Return why no TUN device can be made, empty when one can."""
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/net/tun cannot be opened: {(error.strerror or '').lower()}"
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("=16sH22x", NAME.encode(), _TUN | _NO_PI))
    except OSError as error:
        return f"no TUN device can be made: {(error.strerror or '').lower()}"
    finally:
        os.close(handle)
    return ""


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
