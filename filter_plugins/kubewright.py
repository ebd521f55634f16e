"""Registration of the pure functions that templates use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubewright import (
    certreport,
    endpoint,
    flags,
    keyring,
    podnetwork,
    ports,
    preflight,
    proxymode,
    runlock,
    scale,
    upkeep,
)
from kubewright.topology import Machine


class FilterModule:
    """Filters with the prefix kubewright_."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "kubewright_certs_served": certreport.served,
            "kubewright_encryption_keys": keyring.parse,
            "kubewright_flags": flags.flags,
            "kubewright_env": flags.environment,
            "kubewright_env_file": flags.environment_file,
            "kubewright_ports": ports.watched,
            "kubewright_firewall": lambda machine, *arguments: ports.firewall(Machine(**machine), *arguments),
            "kubewright_pki_files": flags.pki_files,
            "kubewright_pod_network": podnetwork.network,
            "kubewright_etcd_members": upkeep.members,
            "kubewright_etcd_program": upkeep.program,
            "kubewright_etcd_upkeep": upkeep.told,
            "kubewright_helpers": preflight.outside,
            "kubewright_lock_places": runlock.places,
            "kubewright_other_servers": endpoint.other_servers,
            "kubewright_outside_url": endpoint.outside_url,
            "kubewright_proxy_mode": proxymode.mode,
            "kubewright_without": scale.pattern,
        }
