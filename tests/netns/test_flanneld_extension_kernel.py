"""The extension backend with commands that make a vxlan network, as the Go daemon's users have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flannel_lab import run, until

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = f"kwru{os.getpid()}x"
CONFIG = {
    "Network": "10.50.0.0/16",
    "Backend": {
        "Type": "extension",
        "PreStartupCommand": "IF=ext0; ip link del $IF 2>/dev/null; ip link add $IF type vxlan id 7 dstport 8472 "
        "nolearning && ip link set mtu 1450 dev $IF && cat /sys/class/net/$IF/address",
        "PostStartupCommand": "first=`echo $SUBNET | cut -d'/' -f 1`; ip addr add $first/32 dev ext0 && "
        "ip link set ext0 up",
        "SubnetAddCommand": "first=`echo $SUBNET | cut -d'/' -f 1`; read vtep; "
        "ip neigh replace $first lladdr $vtep dev ext0 nud permanent && "
        "bridge fdb append $vtep dev ext0 self dst $PUBLIC_IP && ip route replace $SUBNET via $first dev ext0 onlink",
        "SubnetRemoveCommand": "first=`echo $SUBNET | cut -d'/' -f 1`; read vtep; ip route del $SUBNET dev ext0; "
        "bridge fdb del $vtep dev ext0 self dst $PUBLIC_IP; ip neigh del $first dev ext0",
    },
}
DRIVER = """
import ipaddress, json, sys
from flanneld.backend.base import Existing, Underlay
from flanneld.backend.extension import ExtensionBackend
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Lease

def lease(number, data):
    subnet = ipaddress.ip_network(f"10.50.{number}.0/24")
    return Lease((subnet,), Attributes(f"192.0.2.{number}", "extension", data))

own = int(sys.argv[1])
backend = ExtensionBackend(parse_config(sys.argv[2]), Underlay("eth0", 1500, {4: f"192.0.2.{own}"}))
backend.prepare(Existing({}, {}, {4: f"192.0.2.{own}"}))
backend.start(lease(own, backend.data(4)))
print(json.dumps(backend.data(4)), flush=True)
for line in sys.stdin:
    peers = json.loads(line)
    if peers is not None:
        backend.update([lease(number, data) for number, data in peers])
    print(json.dumps(backend.trouble()), flush=True)
backend.close()
"""


class Machine:
    """A namespace in which the backend runs; `data` is what it announces."""

    def __init__(self, number: int) -> None:
        self.number, self.namespace = number, f"{NAME}{number}"
        words = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", DRIVER, str(number), json.dumps(CONFIG)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.data = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, peers: list[tuple[int, str]] | None = None) -> str:
        """Hand over the peers; returns the trouble."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(peers) + "\n")
        self.process.stdin.flush()
        return str(self.answer())

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.namespace, *words, check=False)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


@pytest.fixture
def pair() -> Iterator[list[Machine]]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    machines: list[Machine] = []
    names = [f"{NAME}{number}" for number in (1, 2)]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run(*f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}".split())
        for number, name in enumerate(names, start=1):
            run("ip", "-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            machines.append(Machine(number))
        yield machines
    finally:
        for machine in machines:
            machine.process.kill()
            machine.process.wait(10)
        for name in names:
            run("ip", "netns", "del", name, check=False)


def reached(sender: Machine, receiver: Machine) -> bool:
    """Send one packet from first address to first address through the network; tell whether it came."""
    receive = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); "
        f"s.bind(('10.50.{receiver.number}.0', 7000)); print('ready', flush=True); print(s.recv(9).decode())"
    )
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('10.50.{sender.number}.0', 0)); s.sendto(b'hello', ('10.50.{receiver.number}.0', 7000))"
    )
    words = ["ip", "netns", "exec", receiver.namespace, sys.executable, "-c", receive]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        run("ip", "netns", "exec", sender.namespace, sys.executable, "-c", send, check=False)
        return process.communicate(timeout=10)[0] == "hello\n"


def test_a_network_made_by_commands(pair: list[Machine]) -> None:
    one, two = pair
    for machine, peer in ((one, two), (two, one)):
        assert machine.data == json.loads(machine.ip("-j", "link", "show", "ext0"))[0]["address"]
        machine.ask([(peer.number, peer.data)])
    for machine in pair:
        until(10, lambda m=machine: not m.ask(), lambda m=machine: m.ask())
    assert "10.50.2.0/24 via 10.50.2.0 dev ext0 onlink" in " ".join(one.ip("route").split())
    assert reached(one, two)
    assert reached(two, one)
    one.stop()
    assert reached(two, one), "the end of the daemon interrupts nobody"
    two.ask([])
    until(5, lambda: "10.50.1.0" not in two.ip("route"), lambda: two.ip("route"))
    assert "PERMANENT" not in two.ip("neigh", "show", "dev", "ext0")
