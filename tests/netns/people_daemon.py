"""Stands for a daemon: builds the overlay of one machine in the kernel, serves /status, repairs nothing after that.

python people_daemon.py CONFIG OWN LEASES SUBNET_FILE: OWN is the key of the own lease and LEASES values by key.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from flanneld import health, state
from flanneld.backend.base import Existing
from flanneld.backend.registry import make_backend
from flanneld.net import interfaces
from flanneld.net.kernel import Kernel
from flanneld.options import InterfaceOptions
from flanneld.outputs import SubnetFile, subnet_env, write_atomically
from flanneld.overlay import Overlay
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Holding, parse_lease
from flanneld.subnet.manager import Picture


def main(config_text: str, own_key: str, leases_text: str, subnet_file: str) -> None:
    config = parse_config(config_text)
    leases = {}
    for key, value in json.loads(leases_text).items():
        lease = parse_lease(key, json.dumps(value))
        assert lease is not None
        leases[key] = lease
    kernel = Kernel()
    underlay = interfaces.choose(
        interfaces.look(kernel, InterfaceOptions(), config.networks), InterfaceOptions(), config.networks
    )
    backend = make_backend(config, underlay)
    macs = {link.name: link.found.mac for link in kernel.links()}
    backend.prepare(Existing(macs, leases, underlay.addresses))
    own = leases[own_key]
    overlay = Overlay(kernel, [str(one) for one in own.subnets])
    desired = backend.desired(own, leases.values())
    overlay.converge(desired)
    networks = config.networks
    daemon = SimpleNamespace(
        options=SimpleNamespace(interface=InterfaceOptions(), ip_masq=True, forward_rules=True),
        manager=SimpleNamespace(name="a test", trouble="", held=lambda: None),
        started=time.monotonic(),
        config=config,
        underlay=underlay,
        backend=backend,
        holding=Holding(own, time.monotonic() + 86400),
        picture=Picture(leases, config_text),
        desired=desired,
        overlay=overlay,
        guard=SimpleNamespace(trouble=""),
        trouble=lambda: overlay.trouble,
    )
    content = SubnetFile(networks, {one.version: one for one in own.subnets}, backend.mtu, ip_masq=True)
    write_atomically(Path(subnet_file), subnet_env(content))
    health.serve(
        state.socket_path(Path(subnet_file)),
        {"/status": lambda: health.Answer(200, "application/json", json.dumps(state.report(daemon)))},  # type: ignore[arg-type]
    )
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:5])
