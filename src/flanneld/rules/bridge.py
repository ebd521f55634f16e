"""Whether bridged traffic comes by iptables at all."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

_SYSCTLS = Path("/proc/sys/net/bridge")
_NAMES = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}


def check_bridge_netfilter(versions: Iterable[int], directory: Path = _SYSCTLS) -> str:
    """Return what is missing for these IP versions, empty when nothing is. Not needed in nftables mode.

    The Go daemon ends in this case. The module may be loaded at any time, so this is a trouble that passes: the
    daemon is not ready, and asks again.
    """
    for version in versions:
        if not (directory / _NAMES[version]).exists():
            return (
                f"there is no {directory / _NAMES[version]}: traffic between pods of this machine does not come by "
                "iptables (load the module: modprobe br_netfilter)"
            )
    return ""


def remark_bridge_netfilter(versions: Iterable[int], directory: Path = _SYSCTLS) -> str:
    """Return for which of these IP versions bridged traffic is kept from the rules on purpose, empty: for none.

    Somebody may want that, so the daemon says it and works on, as the Go daemon does.
    """
    for version in versions:
        try:
            value = (directory / _NAMES[version]).read_text().strip()
        except OSError:
            continue
        if value == "0":
            name = f"net.bridge.{_NAMES[version]}"
            return (
                f"{name} is 0: traffic between pods of this machine does not come by iptables, and services may not "
                f"work there (sysctl -w {name}=1)"
            )
    return ""
