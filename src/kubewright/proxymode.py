"""kube-proxy's mode where it is `auto`: a choice that later runs keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODES = ("iptables", "ipvs")


def mode(wanted: str, known: Mapping[str, Any], *, loads_ipvs: bool) -> str:
    """`wanted` (kube_proxy_mode), or for `auto` the mode that fits the machine.

    `known`: `configured`, the mode of a configuration that is on the machine already; `ip_vs`, whether the kernel has
    it now; `ip_vs_module`, whether it could load it. `loads_ipvs`: sysprep_ipvs. What is configured already wins:
    kube-proxy itself loads ip_vs in either mode, and changing the mode of a living cluster cuts connections.
    """
    if wanted != "auto":
        return wanted
    if known["configured"] in MODES:
        return str(known["configured"])
    return "ipvs" if known["ip_vs"] or (loads_ipvs and known["ip_vs_module"]) else "iptables"
