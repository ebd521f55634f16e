"""The udp backend in the daemon, over a real etcd."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flannel_lab import Machine, Network, every_pair_pings, run, until

Networks = Callable[[dict[str, Any]], Network]


@pytest.mark.parametrize("backend", [{"Backend": {"Type": "udp", "Port": 8300}}, {}], ids=["udp", "absent"])
def test_machines_of_the_udp_backend(network: Networks, backend: dict[str, Any]) -> None:
    net = network({"Network": "10.78.0.0/16", **backend})
    machines = net.started(3)
    until(5, lambda: all(reaches(one, two) for one in machines for two in machines if one is not two), "all reach all")
    every_pair_pings(machines, 1472)
    one, two, three = machines
    assert json.loads(net.keys()[one.key]) == {"PublicIP": one.address, "PublicIPv6": None}
    assert one.env["FLANNEL_MTU"] == "1472"
    assert f"inet {one.subnet.network_address}/32 scope global flannel0" in one.ip("addr", "show", "flannel0")
    assert "10.78.0.0/16 dev flannel0" in map(str.strip, one.ip("route").splitlines())
    one.ip("link", "del", "flannel0")
    assert until(2, lambda: reaches(one, two), lambda: one.log) < 2
    one.ip("route", "del", "10.78.0.0/16", "dev", "flannel0")
    assert until(2, lambda: reaches(one, three), lambda: one.log) < 2
    one.ip("link", "set", "flannel0", "down")
    assert until(2, lambda: reaches(one, three), lambda: one.log) < 2
    elsewhere = f"{one.namespace}z"
    run("ip", "netns", "add", elsewhere)
    try:
        one.ip("link", "set", "flannel0", "netns", elsewhere)
        assert until(4, lambda: reaches(one, two), lambda: one.log) < 3
        until(2, one.ready, lambda: one.log)
    finally:
        run("ip", "netns", "del", elsewhere, check=False)
    assert one.stop() == 0
    assert "flannel0" not in one.ip("link")
    one.start()
    until(3, lambda: reaches(one, two) and reaches(two, one), lambda: one.log)
    assert all("Traceback" not in machine.log for machine in machines)


def reaches(one: Machine, two: Machine) -> bool:
    first, target = (str(machine.subnet.network_address + 1) for machine in (one, two))
    return "1 received" in one.exec("ping", "-c", "1", "-W", "0.3", "-I", first, target, check=False)
