"""Which backends there are. Each is imported when it is asked for, so that nobody pays for the others."""

from __future__ import annotations

import contextlib
import importlib
from typing import Dict, Tuple, Type

from flanneld.backend.base import Backend, Underlay
from flanneld.errors import ConfigError, NetworkError
from flanneld.flags import near
from flanneld.subnet.config import NetworkConfig

_BACKENDS: Dict[str, Tuple[str, str]] = {
    "alloc": ("alloc", "AllocBackend"),
    "extension": ("extension", "ExtensionBackend"),
    "host-gw": ("hostgw", "HostGatewayBackend"),
    "udp": ("udp", "UdpBackend"),
    "vxlan": ("vxlan", "VxlanBackend"),
}


_NOMINAL = {4: "192.0.2.1", 6: "2001:db8::1"}


def backend_class(kind: str) -> Type[Backend]:
    """Return the class of a backend; raises ConfigError that names those there are."""
    found = _BACKENDS.get(kind)
    if found is None:
        likely = near(kind, _BACKENDS)
        hint = f"did you mean {likely!r}?" if likely else f"there are {', '.join(_BACKENDS)}"
        raise ConfigError(f"there is no backend {kind!r}", hint)
    loaded: Type[Backend] = getattr(importlib.import_module(f"flanneld.backend.{found[0]}"), found[1])
    return loaded


def make_backend(config: NetworkConfig, underlay: Underlay) -> Backend:
    """Return the backend of a configuration; raises ConfigError or NetworkError."""
    return backend_class(config.backend_type)(config, underlay)


def check_backend(config: NetworkConfig) -> None:
    """Check the backend's settings without any interface; raises ConfigError."""
    with contextlib.suppress(NetworkError):
        make_backend(config, Underlay("", 65535, _NOMINAL))
