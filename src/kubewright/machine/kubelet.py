"""A kubelet that asks for new certificates: without the old ones it introduces itself with the bootstrap token."""

from __future__ import annotations

import os
import time
from typing import Any

from . import certs, files, health, systemd

_UNIT = "kubelet.service"
_DIRECTORY = "/opt/kubernetes/ssl/kubelet"
_KINDS = ("client", "server")
_HEALTH = [{"kind": "http", "url": "http://127.0.0.1:10248/healthz", "expect": "ok"}]


def _link(kind: str) -> str:
    return f"{_DIRECTORY}/kubelet-{kind}-current.pem"


def held() -> dict[str, str]:
    """Kind (client, server) -> the certificate that the kubelet has, as PEM; empty when it has none."""
    return {kind: certs.blocks(files.read(_link(kind))) for kind in _KINDS}


def _aside(kind: str) -> str:
    return f"{_DIRECTORY}/kubelet-{kind}-before.pem"


def _restart(timeout: float) -> str:
    systemd.restart(_UNIT)
    return health.wait(_UNIT, _HEALTH, timeout)


def renew(timeout: float) -> str:
    """Restart the kubelet without its certificates; empty, or why it did not come back: then it has the old ones again.

    Pods go on meanwhile. The former certificates are put aside until there are new ones, also by a run that dies.
    """
    for kind in _KINDS:
        if os.path.lexists(_link(kind)):
            os.replace(_link(kind), _aside(kind))
    begin = time.monotonic()
    reason = _restart(timeout)
    while not reason and not held()["client"]:
        if time.monotonic() - begin > timeout:
            reason = f"it got no client certificate within {timeout:.0f} s"
        time.sleep(0.25)
    if not reason:
        return ""
    journal = systemd.journal(_UNIT, time.time() - timeout, 5)
    for kind in _KINDS:
        if os.path.lexists(_aside(kind)):
            os.replace(_aside(kind), _link(kind))
    back = _restart(timeout)
    state = f"; and it does not come back with the former ones: {back}" if back else "; it has its former ones again"
    return f"{reason}{state}. Its last words: {' | '.join(journal)}"


def conclude() -> bool:
    """Forget what was put aside, once there are new ones; whether there was anything."""
    found = False
    for kind in _KINDS:
        if os.path.lexists(_aside(kind)) and held()[kind]:
            former: Any = os.path.realpath(_aside(kind))
            os.unlink(_aside(kind))
            if former.startswith(f"{_DIRECTORY}/") and former != os.path.realpath(_link(kind)):
                os.unlink(former)
            found = True
    return found
