"""What a changed network configuration means for a daemon that runs. Pure."""

from __future__ import annotations

from typing import List

from flanneld.subnet.config import NetworkConfig, show
from flanneld.subnet.lease import Lease, permits


def refusals(before: NetworkConfig, after: NetworkConfig) -> List[str]:
    """Return why a changed configuration cannot be taken over by a running daemon; empty when it can.

    A network may grow, and its first and last subnet may change. Everything else would cut machines off from each
    other as long as some have it and others do not.
    """
    found: List[str] = []
    for version in (4, 6):
        old, new = before.pools.get(version), after.pools.get(version)
        if old is None and new is None:
            continue
        if old is None or new is None:
            found.append(f"IPv{version} is {'switched on' if old is None else 'switched off'}")
            continue
        if not old.network.subnet_of(new.network):  # type: ignore[arg-type]  # both are of this version
            found.append(f"the network {new.network} does not contain the present one, {old.network}")
        if old.subnet_len != new.subnet_len:
            found.append(f"SubnetLen is {new.subnet_len} instead of {old.subnet_len} (set it to {old.subnet_len})")
    if before.backend_type != after.backend_type:
        found.append(f"the backend is {after.backend_type} instead of {before.backend_type}")
    elif dict(before.backend) != dict(after.backend):
        keys = sorted(
            key
            for key in before.backend.keys() | after.backend.keys()
            if key != "type" and before.backend.get(key) != after.backend.get(key)
        )
        if keys:
            shown = ", ".join(f"{key} is {show(after.backend.get(key))}" for key in keys)
            found.append(f"the backend's settings differ: {shown}")
    if before.nftables != after.nftables:
        found.append(f"EnableNFTables is {show(after.nftables)}")
    return found


def remark(after: NetworkConfig, own: Lease) -> str:
    """Return what an operator should know about the own lease under a new configuration; empty when it fits."""
    if permits(after, own.subnets):
        return ""
    return f"the own lease {own.name} is not one that the configuration permits; it is kept until flanneld is restarted"
