"""status, explain, check and cleanup against real kernels: machines are namespaces on one bridge, and what serves
their state is `people_daemon.py`, which builds an overlay once and repairs nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flannel_lab import Tools, run, until

from flanneld import record

HERE = Path(__file__).parent
VXLAN = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
HOST_GW = {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}
BOTH = {**VXLAN, "EnableIPv6": True, "IPv6Network": "fc00::/48"}


class Machine:
    """A namespace with eth0 on the bridge, and the stand-in for a daemon in it."""

    def __init__(self, net: Net, number: int) -> None:
        self.net, self.number = net, number
        self.namespace = f"{net.name}-m{number}"
        self.address = f"192.168.60.{number}"
        self.directory = net.directory / f"m{number}"
        self.directory.mkdir()
        self.subnet_file = self.directory / "subnet.env"
        self.process: subprocess.Popen[bytes] | None = None
        run("ip", "netns", "add", self.namespace)
        port = ["netns", net.switch, "type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        run("ip", "link", "add", f"v{number}", *port)
        run("ip", "-n", net.switch, "link", "set", f"v{number}", "master", "br0", "up")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("addr", "add", f"fd60::{number}/64", "dev", "eth0", "nodad")
        self.ip("route", "add", "default", "via", "192.168.60.254")
        self.ip("-6", "route", "add", "default", "via", "fd60::fe")
        self.exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def exec(self, *command: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", self.namespace, *command, env=self.net.env, check=check)

    def ip(self, *words: str, check: bool = True) -> str:
        return run("ip", "-n", self.namespace, *words, check=check)

    def start(self, config: dict[str, Any], leases: dict[str, Any]) -> None:
        own = next(key for key, value in leases.items() if value["PublicIP"] == self.address)
        command = ["ip", "netns", "exec", self.namespace, sys.executable, str(HERE / "people_daemon.py")]
        command += [json.dumps(config), own, json.dumps(leases), str(self.subnet_file)]
        self.process = subprocess.Popen(command, env=self.net.env, stderr=subprocess.DEVNULL)
        until(10, self.subnet_file.with_suffix(".sock").exists, f"{self.namespace} answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def flanneld(self, *words: str, status: int = 0) -> str:
        """Run a command beside the daemon; it must end with this status."""
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "flanneld", *words]
        command.append(f"-subnet-file={self.subnet_file}")
        done = subprocess.run(command, capture_output=True, text=True, env=self.net.env, timeout=60, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.flanneld(*words, "-json", status=status))


class Net:
    """A bridge, and machines on it."""

    def __init__(self, directory: Path, tools: Tools) -> None:
        self.name = f"people{os.getpid()}"
        self.switch = f"{self.name}-sw"
        self.directory = directory
        self.env = {**tools.env, "PYTHONPATH": str(HERE.parent.parent / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.machines: list[Machine] = []

    def open(self, count: int) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "address", "02:00:00:00:fe:01", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            self.machines.append(Machine(self, number))

    def start(self, config: dict[str, Any]) -> list[Machine]:
        found = leases(config, len(self.machines))
        for machine in self.machines:
            machine.start(config, found)
        return self.machines

    def close(self) -> None:
        for machine in self.machines:
            machine.stop()
        for name in run("ip", "netns", "list").split():
            if name.startswith(f"{self.name}-"):
                run("ip", "netns", "del", name, check=False)


def leases(config: dict[str, Any], count: int) -> dict[str, Any]:
    """Leases of this many machines, 10.5.N.0/24 each, and one of a machine that is not there: 10.5.99.0/24."""
    found: dict[str, Any] = {}
    kind = config["Backend"]["Type"]
    for number in [*range(1, count + 1), 99]:
        value: dict[str, Any] = {"PublicIP": f"192.168.60.{number}", "BackendType": kind}
        key = f"10.5.{number}.0-24"
        data = {"VNI": 1, "VtepMAC": f"2a:00:00:00:00:{number:02x}"}
        if kind == "vxlan":
            value["BackendData"] = data
        if config.get("EnableIPv6"):
            key += f"&fc00:0:0:{number:x}::-64"
            value["PublicIPv6"] = f"fd60::{number:x}"
            value["BackendV6Data"] = {**data, "VtepMAC": f"2a:00:00:00:06:{number:02x}"}
        found[key] = value
    return found


@pytest.fixture
def net(tmp_path: Path, tools: Tools) -> Iterator[Net]:
    made = Net(tmp_path, tools)
    try:
        made.open(2)
        yield made
    finally:
        made.close()


def test_status(net: Net) -> None:
    machine, _ = net.start(VXLAN)
    text = machine.flanneld("status")
    assert "kernel     as it should be" in text
    assert "10.5.2.0/24   192.168.60.2   flannel.1 2a:00:00:00:00:02  ok" in text
    machine.ip("route", "del", "10.5.2.0/24")
    machine.ip("neigh", "add", "10.5.7.0", "lladdr", "02:00:00:00:00:07", "dev", "flannel.1", "nud", "permanent")
    found = machine.json("status", status=1)
    assert found["differences"] == [
        "route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink is missing",
        "neighbour 10.5.7.0 at 02:00:00:00:00:07 on flannel.1 does not belong there",
    ]
    assert found["peers"][0]["differences"] == found["differences"][:1]
    machine.stop()
    text = machine.flanneld("status", status=3)
    assert "Is it running?" in text
    assert "10.5.1.0/24 of 10.5.0.0/16, MTU 1450" in text
    assert "flannel.1 is there: vxlan, up, MTU 1450, 10.5.1.0/32" in text
    assert machine.json("status", status=3)["running"] is False


def test_status_for_somebody_who_is_not_root(net: Net) -> None:
    machine = net.machines[0]
    # pytest's own directories are closed to others, who would not even see the socket.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        machine.subnet_file = Path(directory) / "subnet.env"
        machine.start(VXLAN, leases(VXLAN, 1))
        source = HERE.parent.parent / "src"
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import flanneld.cli, flanneld.status, flanneld.health;"
            "import flanneld.outputs; os.setgid(65534); os.setuid(65534);"
            "sys.exit(flanneld.cli.main(['flanneld', 'status', '-subnet-file', sys.argv[2]], {}))"
        )
        command = [
            "ip",
            "netns",
            "exec",
            machine.namespace,
            sys.executable,
            "-c",
            code,
            str(source),
            str(machine.subnet_file),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    assert "only root may ask flanneld" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_from_another_network_says_so(net: Net) -> None:
    machine, other = net.start(VXLAN)
    other.subnet_file = machine.subnet_file
    assert "runs in another network namespace" in other.flanneld("status", status=1)


def test_explain(net: Net) -> None:
    machine, peer = net.start(VXLAN)
    assert machine.flanneld("explain", "10.5.2.0").endswith("Reachable.\n")
    found = machine.json("explain", "10.5.2.9", status=1)
    assert "reached through the overlay, but 10.5.2.9 does not answer" in found["verdict"]
    peer.ip("link", "add", "cni0", "type", "bridge")
    peer.ip("addr", "add", "10.5.2.9/24", "dev", "cni0")
    peer.ip("link", "set", "cni0", "up")
    assert machine.flanneld("explain", "10.5.2.9").endswith("Reachable.\n")
    assert "It is this machine's own, on cni0." in peer.flanneld("explain", "10.5.2.9")
    assert "nobody on cni0 has this address now" in peer.flanneld("explain", "10.5.2.77", status=1)
    assert "leased to nobody" in machine.flanneld("explain", "10.5.50.1", status=1)
    assert "neither the overlay nor the machine 192.168.60.99 answers" in machine.flanneld(
        "explain", "10.5.99.1", status=1
    )
    assert "It is no pod's address" in machine.flanneld("explain", "192.0.2.1", status=1)
    machine.ip("neigh", "del", "10.5.2.0", "dev", "flannel.1")
    found = machine.json("explain", "10.5.2.9", status=1)
    assert {one["step"]: one["wrong"] for one in found["steps"]}["neighbour"] == "is missing"


def test_explain_an_overlay_that_a_firewall_cuts(net: Net) -> None:
    machine, peer = net.start(VXLAN)
    peer.exec("iptables", "-I", "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP")
    verdict = machine.json("explain", "10.5.2.9", status=1)["verdict"]
    assert verdict == (
        "Not reachable: the machine 192.168.60.2 answers, but the overlay does not. Is UDP port 8472 allowed between"
        " the machines, both ways, and does flanneld run there?"
    )
    peer.exec("iptables", "-R", "INPUT", "1", "-p", "udp", "-j", "DROP")
    assert "neither the overlay nor the machine" in machine.json("explain", "10.5.2.9", status=1)["verdict"]
    machine.exec("iptables", "-A", "OUTPUT", "-d", "192.168.60.2", "-p", "udp", "-j", "DROP")
    steps = {one["step"]: one["wrong"] for one in machine.json("explain", "10.5.2.9", status=1)["steps"]}
    assert steps["machine"] == "this machine's own firewall drops it"


def test_explain_ipv6(net: Net) -> None:
    machine, _ = net.start(BOTH)
    until(5, lambda: "tentative" not in machine.ip("-6", "addr"), "addresses are usable")
    found = machine.json("explain", "fc00:0:0:2::")
    assert found["verdict"] == "Reachable."
    steps = {one["step"]: one["seen"] for one in found["steps"]}
    assert steps["forwarding"] == "2a:00:00:00:06:02 to fd60::2"
    assert "fd60::2 answers" in steps["machine"]
    assert "leased to nobody" in machine.flanneld("explain", "fc00:0:0:77::1", status=1)
    assert machine.json("status")["differences"] == []


def test_explain_host_gw(net: Net) -> None:
    machine, peer = net.start(HOST_GW)
    verdict = machine.json("explain", "10.5.2.9", status=1)["verdict"]
    assert "10.5.2.1 behind it does not" in verdict
    peer.ip("link", "add", "cni0", "type", "bridge")
    peer.ip("addr", "add", "10.5.2.1/24", "dev", "cni0")
    peer.ip("link", "set", "cni0", "up")
    found = machine.json("explain", "10.5.2.1")
    assert found["verdict"] == "Reachable."
    assert [one["step"] for one in found["steps"]] == ["route", "way", "overlay", "machine"]


def check(machine: Machine, *words: str, status: int) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for one in machine.json("check", *words, status=status)["findings"]:
        found.setdefault(one["what"], []).append(one)
    return found


def test_check(net: Net) -> None:
    machine, peer = net.start(VXLAN)
    found = check(machine, status=0)
    assert found["device"][0]["level"] == "ok"
    assert found["UDP 8472"][0]["seen"] == "held by flannel.1"
    assert found["path MTU"][0]["seen"] == "packets of 1500 octets arrive whole"
    assert [(one["level"], one["seen"]) for one in found["peers"]] == [
        ("ok", "1 of 2 answer through the overlay"),
        ("warning", "192.168.60.99 does not answer through the overlay (10.5.99.0), nor directly"),
    ]
    assert "flannelchk" not in machine.ip("link")
    machine.exec("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=1")
    machine.exec("iptables", "-P", "FORWARD", "DROP")
    peer.exec("iptables", "-I", "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP")
    found = check(machine, status=1)
    assert found["forwarding"][0]["level"] == "FAILED"
    assert found["peers"][0]["level"] == "FAILED"
    assert found["peers"][0]["todo"] == "allow UDP port 8472 between the machines, both ways"
    assert any("FORWARD drops" in one["seen"] for one in found["iptables"])
    text = machine.flanneld("check", status=1)
    assert "vxlan does not work here as it is" in text


def test_check_finds_a_way_that_is_narrower(net: Net) -> None:
    machine, peer = net.start(VXLAN)
    net_switch = net.switch
    # The bridge's port to the peer takes no packet of 1500: it vanishes, as in a tunnel whose ICMP is filtered.
    run("ip", "-n", net_switch, "link", "set", "v2", "mtu", "1400")
    found = check(machine, status=1)
    assert found["path MTU"][0]["seen"] == "packets of 1500 octets do not reach 192.168.60.2 and vanish on the way"
    # A route's MTU is known to the kernel, which says how large packets may be.
    machine.ip("route", "add", "192.168.60.2/32", "dev", "eth0", "mtu", "lock", "1400")
    found = check(machine, status=1)
    assert found["path MTU"][0]["seen"] == "packets of 1500 octets do not reach 192.168.60.2, only up to 1400"
    assert peer.address in found["path MTU"][0]["seen"]


def test_check_without_a_daemon(net: Net) -> None:
    machine = net.machines[0]
    found = check(machine, "-backend=vxlan", status=0)
    assert found["interface"][0]["seen"].startswith("eth0 with 192.168.60.1, MTU 1500")
    assert found["peers"][0]["level"] == "skipped"
    assert found["UDP 8472"][0]["seen"] == "free"
    config = machine.directory / "config"
    config.write_text(json.dumps({"Network": "192.168.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}))
    found = check(machine, f"-config={config}", status=1)
    assert found["MTU"][0]["level"] == "FAILED"
    assert found["device"][0]["level"] == "ok", "the MTU is not the device's fault"
    assert "own address 192.168.60.1/24 of eth0 lies within the pod network" in found["routes"][0]["seen"]
    code = "import socket, time; s = socket.socket(2, 2); s.bind(('0.0.0.0', 8472)); time.sleep(30)"
    holder = subprocess.Popen(["ip", "netns", "exec", machine.namespace, sys.executable, "-c", code])
    try:
        until(5, lambda: ":2118" in machine.exec("cat", "/proc/net/udp"), "the port is taken")
        found = check(machine, "-backend=vxlan", status=1)
    finally:
        holder.kill()
        holder.wait(10)
    assert found["UDP 8472"][0]["seen"].endswith(f"(pid {holder.pid})")
    assert "in use" in found["device"][0]["seen"]
    found = check(machine, "-backend=vxlan", "-iface=eth7", status=1)
    assert found["interface"][0]["seen"] == "no interface matches eth7"
    found = check(machine, "-backend=host-gw", "-public-ip=192.0.2.1", "-iface=eth0", status=1)
    assert "NAT" in found["backend"][0]["todo"]


def test_cleanup(net: Net) -> None:
    machine, _ = net.start(VXLAN)
    assert "stop it first" in machine.flanneld("cleanup", status=1)
    assert "flannel.1" in machine.ip("link")
    machine.ip("route", "add", "10.5.9.0/24", "via", "192.168.60.9")
    machine.ip("route", "add", "10.9.9.0/24", "via", "192.168.60.9")
    machine.ip("route", "add", "10.5.8.0/24", "via", "192.168.60.9")
    record.path(machine.subnet_file).write_text("10.5.9.0/24 192.168.60.9\n")
    machine.ip("link", "add", "flannel.7", "type", "vxlan", "id", "7", "dstport", "4789")
    masquerade, forward = (f"-m comment --comment 'flanneld {word}' -j" for word in ("masq", "forward"))
    go_rules = [
        "-t nat -N FLANNEL-POSTRTG",
        f"-t nat -A POSTROUTING {masquerade} FLANNEL-POSTRTG",
        f"-t nat -A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 {masquerade} RETURN",
        "-N FLANNEL-FWD",
        f"-A FORWARD {forward} FLANNEL-FWD",
        f"-A FLANNEL-FWD -s 10.5.0.0/16 {forward} ACCEPT",
        "-A FORWARD -s 192.0.2.0/24 -j ACCEPT",
    ]
    for rule in go_rules:
        machine.exec("iptables", *shlex.split(rule))
    dry = machine.flanneld("cleanup", "-dry-run")
    assert "would remove device flannel.1" in dry
    assert "would remove route 10.5.9.0/24 via 192.168.60.9 dev eth0" in dry
    assert "traffic rules of iptables" in dry
    assert "FLANNEL-FWD" in machine.exec("iptables-save")
    machine.stop()
    text = machine.flanneld("cleanup")
    assert "removed blackhole route 10.5.1.0/24" in text
    assert f"removed {machine.subnet_file}" in text
    assert "left: flannel.7" in text
    assert "The lease in etcd stays" in text
    assert "left: route 10.5.8.0/24 via 192.168.60.9 dev eth0, by whomever it was made" in text
    machine.ip("route", "del", "10.5.8.0/24")
    assert "10.5." not in machine.ip("route")
    assert "10.9.9.0/24" in machine.ip("route"), "foreign routes stay"
    saved = machine.exec("iptables-save")
    assert "FLANNEL" not in saved
    assert "192.0.2.0/24" in saved, "foreign rules stay"
    assert "flannel.1" not in machine.ip("link")
    assert list(machine.directory.iterdir()) == []
    assert "nothing else of flannel is left" in machine.flanneld("cleanup")
    assert "removed device flannel.7" in machine.flanneld("cleanup", "-all")
    assert machine.flanneld("cleanup", "-all") == "nothing of flannel is left on this machine\n"


def test_cleanup_of_a_dual_stack_machine_while_it_runs(net: Net) -> None:
    machine, _ = net.start(BOTH)
    text = machine.flanneld("cleanup", "-force")
    assert "device flannel.1" in text
    assert "device flannel-v6.1" in text
    assert "blackhole route fc00:0:0:1::/64" in text
    assert "flannel" not in machine.ip("link")
    assert "fc00" not in machine.ip("-6", "route")


def test_cleanup_sees_a_process_of_a_go_daemon(net: Net) -> None:
    machine = net.machines[0]
    code = "import time; open('/proc/self/comm', 'w').write('flanneld'); print('x', flush=True); time.sleep(30)"
    command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            assert f"runs in this network (pid {other.pid})" in machine.flanneld("cleanup", status=1)
            net.machines[1].flanneld("cleanup")
        finally:
            other.kill()
