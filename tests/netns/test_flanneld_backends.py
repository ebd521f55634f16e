"""Every backend on real kernels: what each end gets, and that packets pass."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from flannel_lab import Machine, Network, every_pair_pings, until
from interpreters import supported

from kubewright import network_change
from kubewright.machine import podnet

Networks = Callable[[dict[str, Any]], Network]
VXLAN = {"Type": "vxlan"}
HOST_GW = {"Type": "host-gw"}
DUAL = {"Network": "10.77.0.0/16", "EnableIPv6": True, "IPv6Network": "fd77::/48"}


def acquainted(machines: list[Machine]) -> None:
    """Wait until everybody has a route to everybody."""
    for machine in machines:
        for peer in machines:
            if peer is not machine:
                until(5, lambda m=machine, p=peer: str(p.subnet) in m.ip("route"), lambda m=machine: m.log)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_host_gw(network: Networks) -> None:
    net = network({"Network": "10.71.0.0/16", "Backend": HOST_GW})
    machines = net.started(3)
    acquainted(machines)
    one, two, three = machines
    assert f"{two.subnet} via {two.address} dev eth0" in lines(one.ip("route"))
    assert one.env["FLANNEL_MTU"] == "1500"
    assert json.loads(net.keys()[one.key]) == {"PublicIP": one.address, "PublicIPv6": None, "BackendType": "host-gw"}
    every_pair_pings(machines, 1472)
    # Lost and changed routes come back; what was there of a peer that is gone is removed at the next start.
    one.ip("route", "flush", "proto", "boot", "root", "10.71.0.0/16")
    one.ip("route", "add", str(two.subnet), "via", three.address)
    until(2, lambda: f"{two.subnet} via {two.address} dev eth0" in lines(one.ip("route")), lambda: one.log)
    until(2, lambda: f"{three.subnet} via {three.address} dev eth0" in lines(one.ip("route")), lambda: one.log)
    one.stop()
    stale = str(three.subnet)
    three.stop()
    net.lab.etcd.client(
        "delete",
        f"{net.prefix}/subnets/{three.key}",
        net.lab.etcd.client("get", f"{net.prefix}/subnets/{three.key}")[2],
    )
    assert stale in one.ip("route")
    one.start()
    assert stale not in one.ip("route")
    every_pair_pings([one, two])


def test_host_gw_ignores_machines_behind_a_router(network: Networks) -> None:
    net = network({"Network": "10.71.0.0/16", "Backend": HOST_GW})
    near = net.started(1)[0]
    far = net.machine(segment=61)
    far.start()
    until(5, lambda: "is not on the link of eth0, which host-gw needs" in near.log, lambda: near.log)
    assert str(far.subnet) not in near.ip("route")
    assert near.ready()


def test_vxlan_with_direct_routing(network: Networks) -> None:
    net = network({"Network": "10.72.0.0/16", "Backend": {**VXLAN, "DirectRouting": True, "VNI": 5}})
    one, two = net.started(2)
    far = net.machine(segment=61)
    far.start()
    far.bridge_up()
    acquainted([one, two, far])
    assert f"{two.subnet} via {two.address} dev eth0" in lines(one.ip("route"))
    first = far.subnet.network_address
    assert f"{far.subnet} via {first} dev flannel.5 onlink" in lines(one.ip("route"))
    assert f"{one.subnet} via {one.subnet.network_address} dev flannel.5 onlink" in lines(far.ip("route"))
    every_pair_pings([one, two, far])


def status_of(machine: Machine) -> dict[str, Any]:
    """What a run of network.yml reads there."""
    command = [machine.python, str(machine.lab.pyz), "status", "-json", f"-subnet-file={machine.subnet_file}"]
    found: dict[str, Any] = json.loads(machine.exec(*command, check=False))
    return found


def test_from_vxlan_to_host_gw_and_back_machine_by_machine(network: Networks) -> None:
    """By way of DirectRouting no packet is lost, whoever has which of two neighbouring backends."""
    direct = {**VXLAN, "DirectRouting": True}
    net = network({"Network": "10.79.0.0/16", "Backend": VXLAN})
    machines = net.started(3)
    acquainted(machines)
    one, two, three = machines
    keys = set(net.keys())
    pings = [
        subprocess.Popen(
            [*f"ip netns exec {source.namespace} ping -n -q -i 0.01 -I {source.gateway} {target.gateway}".split()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for source, target in ((one, two), (two, three), (three, one))
    ]
    try:
        for backend in (direct, HOST_GW, direct, VXLAN):
            config = {"Network": "10.79.0.0/16", "Backend": backend}
            net.configure(config)
            wanted = network_change.expected(json.dumps(config))
            for machine in machines:
                others = [peer.address for peer in machines if peer is not machine]
                assert "the configuration of before" in podnet.missing(status_of(machine), wanted, others)
                machine.stop()
                machine.start()
                until(5, lambda m=machine, w=wanted, o=others: not podnet.missing(status_of(m), w, o), machine.log)
                every_pair_pings(machines)
            if backend is HOST_GW:
                assert "flannel.1" not in one.ip("link")
                assert f"{two.subnet} via {two.address} dev eth0" in lines(one.ip("route"))
    finally:
        for ping in pings:
            ping.send_signal(signal.SIGINT)
    for ping in pings:
        told = ping.communicate(timeout=5)[0]
        sent, answered = (int(number) for number in re.findall(r"(\d+) (?:packets transmitted|received)", told))
        assert sent > 200, told
        assert sent - answered <= 1, told  # the last one may be on its way
    assert set(net.keys()) == keys
    assert f"{two.subnet} via {two.subnet.network_address} dev flannel.1 onlink" in lines(one.ip("route"))


def test_dual_stack_over_vxlan(network: Networks) -> None:
    net = network({**DUAL, "Backend": VXLAN})
    machines = net.started(3)
    one, two, _ = machines
    acquainted(machines)
    for peer in machines[1:]:
        until(5, lambda p=peer: str(p.subnet6) in one.ip("-6", "route"), lambda: one.log)
    device = json.loads(one.ip("-j", "-d", "link", "show", "flannel-v6.1"))[0]
    assert device["linkinfo"]["info_data"]["local6"] == one.address6
    assert (device["mtu"], one.env["FLANNEL_MTU"]) == (1430, "1430")
    first = str(two.subnet6.network_address)
    way = f"{two.subnet6} via {first} dev flannel-v6.1"
    assert any(line.startswith(way) and line.endswith("onlink pref medium") for line in lines(one.ip("-6", "route")))
    assert f"{one.subnet6.network_address}/128 scope global" in one.ip("addr", "show", "flannel-v6.1")
    value = json.loads(net.keys()[f"{one.key}&{str(one.subnet6).replace('/', '-')}"])
    assert value["PublicIPv6"] == one.address6
    assert value["BackendV6Data"] == {"VNI": 1, "VtepMAC": device["address"]}
    assert list(one.env) == [
        "FLANNEL_NETWORK",
        "FLANNEL_SUBNET",
        "FLANNEL_IPV6_NETWORK",
        "FLANNEL_IPV6_SUBNET",
        "FLANNEL_MTU",
        "FLANNEL_IPMASQ",
    ]
    every_pair_pings(machines)
    one.ip("link", "del", "flannel-v6.1")
    until(2, lambda: first in one.ip("-6", "route"), lambda: one.log)
    every_pair_pings(machines)


def test_dual_stack_over_host_gw(network: Networks) -> None:
    net = network({**DUAL, "Backend": HOST_GW})
    machines = net.started(2)
    acquainted(machines)
    one, two = machines
    until(5, lambda: f"{two.subnet6} via {two.address6} dev eth0" in one.ip("-6", "route"), lambda: one.log)
    until(5, lambda: f"{one.subnet6} via {one.address6} dev eth0" in two.ip("-6", "route"), lambda: two.log)
    every_pair_pings(machines)


def test_udp(network: Networks) -> None:
    net = network({"Network": "10.73.0.0/16"})  # without a backend it is udp
    machines = net.started(3)
    one = machines[0]
    for machine in machines:
        until(5, lambda m=machine: "10.73.0.0/16 dev flannel0" in lines(m.ip("route")), lambda m=machine: m.log)
    assert net.keys()[one.key] == f'{{"PublicIP":"{one.address}","PublicIPv6":null}}'
    assert one.env["FLANNEL_MTU"] == "1472"
    assert f"inet {one.subnet.network_address}/32" in one.ip("addr", "show", "flannel0")
    until(5, lambda: one.figure("flannel_leases") == 3, lambda: one.log)
    every_pair_pings(machines, 1444)


def test_alloc_leases_and_does_nothing_else(network: Networks) -> None:
    net = network({"Network": "10.74.0.0/16", "Backend": {"Type": "alloc"}})
    one, two = net.started(2)
    assert net.keys()[one.key] == f'{{"PublicIP":"{one.address}","PublicIPv6":null}}'
    assert one.env["FLANNEL_MTU"] == "1500"
    assert str(two.subnet) not in one.ip("route")
    assert one.ready()


def test_extension_runs_its_commands(network: Networks) -> None:
    said = '>> "$EXTENSION_LOG"'
    backend = {
        "Type": "extension",
        "PreStartupCommand": "echo \"made with 'quotes' | pipes\" | tr a-z A-Z",
        "PostStartupCommand": f'echo "post $NETWORK $SUBNET $PUBLIC_IP" {said}',
        "SubnetAddCommand": f'read data; echo "add $SUBNET $data" {said}; ip route replace $SUBNET via $PUBLIC_IP',
        "SubnetRemoveCommand": f'echo "remove $SUBNET" {said}; ip route del $SUBNET',
    }
    net = network({"Network": "10.75.0.0/16", "Backend": backend})
    machines = [net.machine() for _ in range(2)]
    logs = []
    for machine in machines:
        logs.append(machine.directory / "extension.log")
        net.lab.tools.env["EXTENSION_LOG"] = str(logs[-1])
        machine.start()
        machine.bridge_up()
    del net.lab.tools.env["EXTENSION_LOG"]
    one, two = machines
    acquainted(machines)
    every_pair_pings(machines)
    data = "MADE WITH 'QUOTES' | PIPES"
    assert json.loads(net.keys()[one.key])["BackendData"] == data
    until(5, lambda: f"add {two.subnet} {data}" in logs[0].read_text(), lambda: one.log)
    assert f"post 10.75.0.0/16 {one.subnet}" in logs[0].read_text()
    two.stop()
    key = f"{net.prefix}/subnets/{two.key}"
    net.lab.etcd.client("delete", key, net.lab.etcd.client("get", key)[2])
    until(5, lambda: f"remove {two.subnet}" in logs[0].read_text(), lambda: one.log)
    assert str(two.subnet) not in one.ip("route")


def test_two_daemons_on_one_machine(network: Networks) -> None:
    wrapped = network({"Network": "10.11.0.0/16", "Backend": {**VXLAN, "VNI": 11}})
    plain = network({"Network": "10.12.0.0/16", "Backend": HOST_GW})
    first = wrapped.started(2)
    second = [plain.machine("-iptables-forward-rules=false", beside=machine) for machine in first]
    for machine in second:
        machine.start()
        machine.bridge_up("cni1")
    acquainted(first)
    acquainted(second)
    every_pair_pings(first)
    every_pair_pings(second)
    # Each network's packets take its own way, and neither daemon takes the other's things for stale.
    assert "dev flannel.11" in first[0].ip("route", "get", first[1].gateway)
    assert f"via {second[1].address} dev eth0" in first[0].ip("route", "get", second[1].gateway)
    for machine in [*first, *second]:
        machine.stop()
        machine.start()
    every_pair_pings(first)
    every_pair_pings(second)


def test_other_settings_of_vxlan(network: Networks) -> None:
    settings = {"VNI": 300, "Port": 4790, "GBP": True, "Learning": True, "MTU": 1400}
    net = network({"Network": "10.76.0.0/16", "Backend": {**VXLAN, **settings}})
    machines = net.started(2)
    acquainted(machines)
    device = json.loads(machines[0].ip("-j", "-d", "link", "show", "flannel.300"))[0]
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"], data["gbp"], device["mtu"]) == (300, 4790, True, True, 1350)
    every_pair_pings(machines, 1322)


@pytest.mark.parametrize(("before", "after"), [(VXLAN, HOST_GW), (HOST_GW, VXLAN)])
def test_a_change_of_the_backend_at_a_restart(network: Networks, before: dict[str, Any], after: dict[str, Any]) -> None:
    net = network({"Network": "10.78.0.0/16", "Backend": before})
    machines = net.started(2)
    acquainted(machines)
    subnets = [machine.subnet for machine in machines]
    for machine in machines:
        machine.stop()
    net.configure({"Network": "10.78.0.0/16", "Backend": after})
    for machine in machines:
        machine.start()
    assert [machine.subnet for machine in machines] == subnets
    wanted = after is VXLAN
    assert all(("flannel.1" in machine.ip("-br", "link")) is wanted for machine in machines), "none is left over"
    device = "eth0" if after is HOST_GW else "flannel.1"
    until(5, lambda: f"dev {device}" in machines[0].ip("route", "get", machines[1].gateway), lambda: machines[0].log)
    until(5, lambda: f"dev {device}" in machines[1].ip("route", "get", machines[0].gateway), lambda: machines[1].log)
    every_pair_pings(machines)


def test_a_blackhole_takes_what_the_bridge_does_not(network: Networks) -> None:
    net = network({"Network": "10.79.0.0/16", "Backend": VXLAN})
    machine = net.machine("-ip-blackhole-route")
    machine.start()
    assert f"blackhole {machine.subnet}" in machine.ip("route")
    machine.bridge_up()
    assert "dev cni0" in machine.ip("route", "get", str(machine.subnet.network_address + 9))
    machine.ip("route", "del", "blackhole", str(machine.subnet))
    until(2, lambda: f"blackhole {machine.subnet}" in machine.ip("route"), lambda: machine.log)
    machine.ip("link", "del", "cni0")
    out = machine.ip("route", "get", str(machine.subnet.network_address + 9), check=False)
    assert "cni0" not in out
    assert "eth0" not in out


def test_dual_stack_with_nftables(network: Networks) -> None:
    net = network({**DUAL, "EnableNFTables": True, "Backend": VXLAN})
    machines = net.started(2)
    acquainted(machines)
    every_pair_pings(machines)
    listed = machines[0].exec("nft", "list", "ruleset")
    for table in ("ip flannel-ipv4", "ip6 flannel-ipv6"):
        assert f"table {table} {{" in listed
    assert f"ip saddr 10.77.0.0/16 ip daddr {machines[0].subnet}" in listed
    assert "FLANNEL" not in machines[0].exec("iptables-save")
    machines[0].exec("nft", "flush", "chain", "ip", "flannel-ipv4", "postrtg")
    until(8, lambda: machines[0].exec("nft", "list", "ruleset") == listed, lambda: machines[0].log)


@pytest.mark.parametrize("kind", ["vxlan", "udp"])
def test_every_python_of_machines(network: Networks, kind: str) -> None:
    net = network({"Network": "10.80.0.0/16", "Backend": {"Type": kind}})
    machines = []
    for python in supported().values():
        machines.append(net.machine())
        machines[-1].python = python
        machines[-1].start()
        machines[-1].bridge_up()
    machines += net.started(1)
    if kind == "vxlan":
        acquainted(machines)
    every_pair_pings(machines)
    assert all(machine.ready() for machine in machines)
