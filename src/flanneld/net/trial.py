"""Tries whether the kernel can make what a backend needs, under a name of its own that is removed at once."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

from flanneld import dataplane as dp
from flanneld.net.kernel import Kernel

NAME = "flannelchk"

_VNI = 0xFFFFFE
_MTU = 1280
_NET_ADMIN = 12
_TUNSETIFF = 0x400454CA
_TUN, _NO_PI = 0x0001, 0x1000


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
