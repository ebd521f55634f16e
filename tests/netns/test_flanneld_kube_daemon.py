"""Daemons whose leases are nodes of a real API server, on machines of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flannel_lab import Lab, Machine, every_pair_pings, until
from kube_api import Api

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
# From a port in a namespace to the API server outside of it, by way of a socket in the file system.
_RELAY = """
import socket, sys, threading
def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for sock in (one, other):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def address(text):
    return text if "/" in text else ("127.0.0.1", int(text))
def make(text):
    return socket.socket(socket.AF_UNIX if "/" in text else socket.AF_INET)
here, there = sys.argv[1:]
listening = make(here)
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(address(here))
listening.listen(50)
while True:
    one, other = listening.accept()[0], make(there)
    try:
        other.connect(address(there))
    except OSError:
        one.close()
        continue
    threading.Thread(target=pump, args=(one, other), daemon=True).start()
    threading.Thread(target=pump, args=(other, one), daemon=True).start()
"""


@pytest.fixture
def machines(flannel_lab: Lab, api: Api, tmp_path: Path) -> Iterator[list[Machine]]:
    """Three machines, each a node, whose daemons are not started yet."""
    way = str(tmp_path / "api.sock")
    relays = [subprocess.Popen([sys.executable, "-c", _RELAY, way, str(api.port)])]
    made = [flannel_lab.machine() for _ in range(3)]
    config, kubeconfig = tmp_path / "net-conf.json", tmp_path / "kubeconfig"
    config.write_text(json.dumps(CONFIG))
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
        "contexts:\n- name: here\n  context: {cluster: one, user: me}\n"
        f"clusters:\n- name: one\n  cluster:\n    server: https://127.0.0.1:6443\n"
        f"    certificate-authority: {api.pki.ca}\n"
        "users:\n- name: me\n  user:\n    token: flannel-token\n"
    )
    for number, machine in enumerate(made, 1):
        api.make_node(f"machine{number}", f"10.244.{number}.0/24")
        command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-c", _RELAY, "6443", way]
        relays.append(subprocess.Popen(command))
        machine.environ = {"NODE_NAME": f"machine{number}"}
        machine.flags = ("-kube-subnet-mgr", f"-kubeconfig-file={kubeconfig}", f"-net-config-path={config}")
    yield made
    for number, machine in enumerate(made, 1):
        assert "Traceback" not in machine.log, machine.log
        flannel_lab.remove(machine)
        api.delete_node(f"machine{number}")
    for relay in relays:
        relay.kill()
        relay.wait(5)


def test_pods_reach_each_other_and_a_node_that_goes_is_forgotten(api: Api, machines: list[Machine]) -> None:
    for number, machine in enumerate(machines, 1):
        machine.start()
        machine.bridge_up()
        assert str(machine.subnet) == f"10.244.{number}.0/24"
    one, two, three = machines
    for machine in machines:
        for peer in machines:
            if peer is not machine:
                until(5, lambda m=machine, p=peer: m.knows(p), lambda m=machine: m.log)
    every_pair_pings(machines)
    until(5, lambda: (api.condition("machine1") or {}).get("reason") == "FlannelIsUp", lambda: one.log)
    # The MAC is what the node says, also when the device is gone: nobody has to learn another one.
    mac = one.mac
    one.stop()
    one.ip("link", "del", "flannel.1")
    one.start()
    assert one.mac == mac
    every_pair_pings(machines)
    # Without the API server the network stays, and what is broken is repaired.
    api.stop_api()
    one.ip("link", "del", "flannel.1")
    until(2, lambda: one.knows(two) and one.knows(three), lambda: one.log)
    every_pair_pings(machines)
    api.start_api()
    three.stop()
    subnet = str(three.subnet)
    api.delete_node("machine3")
    for machine in (one, two):
        until(30, lambda m=machine: subnet not in m.ip("route"), lambda m=machine: m.log)
    every_pair_pings([one, two])
    api.make_node("machine3", "10.244.3.0/24")
    three.start()
    until(5, lambda: one.knows(three), lambda: one.log)
    every_pair_pings(machines)


def test_an_address_that_an_operator_prescribes_is_announced_at_once(api: Api, machines: list[Machine]) -> None:
    one = machines[0]
    one.start()
    api.annotate("machine1", public_ip_overwrite="203.0.113.7")
    until(10, lambda: api.annotations("machine1")["public-ip"] == "203.0.113.7", lambda: one.log)
    api.annotate("machine1", public_ip_overwrite="not an address")
    until(10, lambda: "not an address" in one.log, lambda: one.log)
    assert one.process is not None
    assert one.process.poll() is None
    assert api.annotations("machine1")["public-ip"] == "203.0.113.7"
    assert one.ready()
