"""The daemon's speed and size, in namespaces with a real etcd: `make bench-flanneld`. Writes docs/benchmarks.md.

Every figure is a median of rounds, and what is compared is measured in pairs, one after the other. The figures of the
Go daemon (v0.20.2) were measured once on a machine of this kind; it is not run here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "unit"))

from debian_packages import unpacked
from flannel_lab import Lab, Machine, Network, Pki, Tools, lab, run, until

from kubewright.pyz import build_flanneld

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: make bench-flanneld -->", "<!-- end of figures of flanneld -->"
VXLAN = {"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.200.0.0", "Backend": {"Type": "vxlan"}}
_CLIENT = """
import base64, json, socket, sys, time
from flanneld.etcd.transport import Cluster
from flanneld.etcd.v3 import EtcdClient
from flanneld.options import EtcdOptions
from flanneld.net import wire
client = EtcdClient(Cluster(EtcdOptions((sys.argv[1],), *sys.argv[2:5])))
prefix, what, count = sys.argv[5], sys.argv[6], int(sys.argv[7])
def item(number, block):
    key = f"{prefix}/subnets/10.{block + (number >> 8)}.{number & 255}.0-24"
    mac = f"2a:00:00:{block:02x}:{number >> 8:02x}:{number & 255:02x}"
    value = {"PublicIP": f"192.168.{100 + (number >> 8)}.{number & 255}", "PublicIPv6": None,
             "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": mac}}
    return key, json.dumps(value, separators=(",", ":"))
def write(block, lease):
    for start in range(0, count, 100):
        puts = []
        for number in range(start, min(start + 100, count)):
            key, value = item(number, block)
            puts.append({"request_put": {"key": base64.b64encode(key.encode()).decode(),
                                         "value": base64.b64encode(value.encode()).decode(), "lease": str(lease)}})
        client._call("test", "/kv/txn", {"success": puts})
def routes(block):
    from flanneld.net.kernel import Kernel
    kernel = Kernel()
    index = socket.if_nametoindex("flannel.1")
    low, high = block, block + ((count - 1) >> 8)
    def have():
        return sum(low <= int(one.destination.split(".")[1]) <= high for one in kernel.routes(4, index))
    return have
lease = client.grant(86400)[0]
if what == "fill":
    write(0, lease)
elif what == "burst":
    have = routes(32)
    begun = time.monotonic()
    write(32, lease)
    while have() < count and time.monotonic() - begun < 30:
        time.sleep(0.005)
    print(time.monotonic() - begun)
elif what == "peers":
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    events.bind((0, 0x40))
    events.settimeout(10)
    client.get("warm")
    for number in range(count):
        key, value = item(number, 64)
        begun = time.monotonic()
        client.put(key, value, lease)
        wanted = f"10.64.{number}.0/24"
        found = False
        while not found:
            for message in wire.messages(events.recv(1 << 16)):
                if message.kind == wire.NEWROUTE:
                    route = wire.parse_route(message)
                    found |= route is not None and route.destination == wanted
        print(time.monotonic() - begun)
        time.sleep(0.05)
"""


def client(machine: Machine, net: Network, what: str, count: int) -> list[float]:
    """Run a part of the script above in a machine; what it printed."""
    pki = machine.lab.pki
    files = [machine.lab.etcd.url, str(pki.ca), str(pki.client), str(Pki.key(pki.client))]
    command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-c", _CLIENT, *files]
    return [float(line) for line in run(*command, net.prefix, what, str(count), timeout=120).split()]


def pss(machine: Machine) -> float:
    """Proportional set size of a daemon and its children in MB."""
    assert machine.process is not None
    total = 0
    for pid in family(machine.process.pid):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"Pss:\s+(\d+)", text)[1])  # type: ignore[index]
    return total / 1000


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def busy(machine: Machine) -> float:
    """Processor seconds of a daemon so far, threads and ended children included."""
    assert machine.process is not None
    total = 0.0
    for pid in family(machine.process.pid):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return total


def requests(net: Network) -> int:
    """Requests that etcd has served so far."""
    pki = net.lab.pki
    code = (
        "import ssl, sys, urllib.request as u; c = ssl.create_default_context(cafile=sys.argv[2]);"
        "c.load_cert_chain(sys.argv[3], sys.argv[4]);"
        "print(u.urlopen(sys.argv[1] + '/metrics', context=c).read().decode())"
    )
    words = [net.lab.etcd.url, str(pki.ca), str(pki.client), str(Pki.key(pki.client))]
    text = run("ip", "netns", "exec", net.lab.switch, sys.executable, "-c", code, *words)
    found = re.findall(r'grpc_server_started_total\{[^}]*grpc_service="etcdserverpb[^}]*\} (\S+)', text)
    return sum(int(float(one)) for one in found)


def small(made: Lab, rounds: int, idle: int) -> dict[str, float]:
    """Two machines: start, a new peer, memory, idle processor time."""
    net = Network(made, "small", VXLAN)
    one, _two = net.started(2)
    starts = []
    for _ in range(rounds):
        one.stop()
        starts.append(one.start())
    peers = client(one, net, "peers", rounds * 3)
    time.sleep(3)
    size, before = pss(one), busy(one)
    time.sleep(idle)
    used = (busy(one) - before) / idle * 100
    net.close()
    return {
        "start": statistics.median(starts) * 1000,
        "peer": statistics.median(peers) * 1000,
        "pss": size,
        "idle": used,
    }


def large(made: Lab, count: int, rounds: int) -> dict[str, float]:
    """`count` leases that are there at the start, then a burst of 1000 more."""
    net = Network(made, f"large{count}", VXLAN)
    one = net.started(1)[0]
    if count:
        client(one, net, "fill", count)
    times, asked, sizes, bursts = [], [], [], []
    for _ in range(rounds):
        one.stop()
        one.ip("link", "del", "flannel.1")
        before = requests(net)
        begun = time.monotonic()
        one.start()
        until(60, lambda: programmed(one) >= count, lambda: one.log)
        times.append(time.monotonic() - begun)
        asked.append(requests(net) - before)
        time.sleep(8)
        sizes.append(pss(one))
    if count == 1000:
        bursts = client(one, net, "burst", 1000)
    net.close()
    found = {"time": statistics.median(times), "requests": statistics.median(asked), "pss": statistics.median(sizes)}
    return {**found, "burst": statistics.median(bursts)} if bursts else found


def programmed(machine: Machine) -> int:
    return machine.ip("route", "show", "dev", "flannel.1", check=False).count(" onlink")


def iperf(machine: Machine, peer: Machine, source: str, target: str, seconds: int) -> float:
    """TCP throughput in Gbit/s from one namespace to another."""
    root = unpacked("iperf3", ("iperf3", "libiperf0", "libsctp1"))
    libraries = next((root / "usr/lib").glob("*-linux-gnu"))
    env = {**peer.lab.tools.env, "LD_LIBRARY_PATH": str(libraries)}
    program = str(root / "usr/bin/iperf3")
    server = subprocess.Popen(
        ["ip", "netns", "exec", peer.namespace, program, "-s", "-1", "-B", target], env=env, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(0.3)
        command = [
            "ip",
            "netns",
            "exec",
            machine.namespace,
            program,
            "-c",
            target,
            "-B",
            source,
            "-t",
            str(seconds),
            "-J",
        ]
        report: dict[str, Any] = json.loads(run(*command, env=env, timeout=seconds + 30))
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.terminate()
        server.wait(5)


def throughput(made: Lab, kind: str, rounds: int, seconds: int) -> dict[str, float]:
    """Gbit/s through a backend and by hand, in pairs; for udp the daemons' share of a core."""
    net = Network(made, f"tcp-{kind}", {"Network": "10.60.0.0/16", "Backend": {"Type": kind}})
    one, two = net.started(2)
    for machine, peer in ((one, two), (two, one)):
        until(5, lambda m=machine, p=peer: " 0% packet loss" in m.pings(m.gateway, p.gateway), one.log)
    by_hand: Callable[[], float] = _hand_made_vxlan(one, two, seconds) if kind == "vxlan" else _plain(one, two, seconds)
    ours, theirs, shares = [], [], []
    for number in range(rounds):
        for which in ("ours", "hand") if number % 2 else ("hand", "ours"):
            if which == "hand":
                theirs.append(by_hand())
                continue
            before, begun = busy(one) + busy(two), time.monotonic()
            ours.append(iperf(one, two, one.gateway, two.gateway, seconds))
            shares.append((busy(one) + busy(two) - before) / (time.monotonic() - begun))
    net.close()
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    return {"gbit": statistics.median(ours), "ratio": ratio, "cores": statistics.median(shares)}


def _plain(one: Machine, two: Machine, seconds: int) -> Callable[[], float]:
    return lambda: iperf(one, two, one.address, two.address, seconds)


def _hand_made_vxlan(one: Machine, two: Machine, seconds: int) -> Callable[[], float]:
    for machine, peer, own, other in ((one, two, "10.61.0.1", "10.61.0.2"), (two, one, "10.61.0.2", "10.61.0.1")):
        del other
        words = ["type", "vxlan", "id", "99", "remote", peer.address, "local", machine.address, "dev", "eth0"]
        machine.ip("link", "add", "hand0", "mtu", "1450", *words, "dstport", "4799")
        machine.ip("addr", "add", f"{own}/24", "dev", "hand0")
        machine.ip("link", "set", "hand0", "up")
    return lambda: iperf(one, two, "10.61.0.1", "10.61.0.2", seconds)


def table(rounds: int, idle: int, seconds: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tools = Tools(place)
        pyz = build_flanneld(place / "flanneld.pyz")
        with lab(place, tools, pyz) as made:
            report("two machines")
            two = small(made, rounds, idle)
            report("1000 leases")
            thousand = large(made, 1000, 3)
            report("5000 leases")
            many = large(made, 5000, 3)
            report("throughput")
            speed = {kind: throughput(made, kind, 5, seconds) for kind in ("vxlan", "host-gw", "udp")}
    rows = [
        ("start to subnet.env (vxlan, masquerading), ms", "200", f"{two['start']:.0f}", "60"),
        ("a peer's key written to its route present, ms", "10", f"{two['peer']:.1f}", "5.0"),
        ("PSS with two machines, MB", "22", f"{two['pss']:.1f}", "20"),
        ("idle, masquerading on, % of a core", "0.2", f"{two['idle']:.2f}", "0.7"),
        ("1000 leases at the start to all programmed, s", "", f"{thousand['time']:.2f}", "1.2"),
        ("5000 leases at the start to all programmed, s", "2", f"{many['time']:.2f}", "5.6"),
        ("PSS with 5000 leases, MB", "35", f"{many['pss']:.1f}", "39"),
        ("burst of 1000 new leases, s", "1", f"{thousand['burst']:.2f}", "never all"),
        (
            "etcd requests at a start, with 1000 and with 5000 leases",
            "equal",
            f"{thousand['requests']:.0f}, {many['requests']:.0f}",
            "2009, 10009",
        ),
        ("TCP over udp, Gbit/s", "0.3", f"{speed['udp']['gbit']:.2f}", "0.29"),
        ("TCP over udp, cores used by both daemons", "", f"{speed['udp']['cores']:.2f}", "0.67 by one"),
        ("TCP over vxlan, against a vxlan device made by hand", "1", f"{speed['vxlan']['ratio']:.2f}", ""),
        ("TCP over host-gw, against the machines' own addresses", "1", f"{speed['host-gw']['ratio']:.2f}", ""),
    ]
    lines = [
        BEGIN,
        "",
        f"{os.cpu_count()} cores, {date.today()}, `make bench-flanneld`"
        f" (`--rounds {rounds} --idle {idle} --seconds {seconds}`)",
        "",
        "| | target | flanneld | Go, v0.20.2 |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        END,
    ]
    return "\n".join(lines)


def report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="starts")
    parser.add_argument("--idle", type=int, default=60, help="seconds of idling")
    parser.add_argument("--seconds", type=int, default=4, help="seconds of each transfer")
    parser.add_argument("--print", action="store_true", help="print only, leave the document")
    options = parser.parse_args()
    found = table(options.rounds, options.idle, options.seconds)
    report(found)
    if not options.print:
        text = DOCUMENT.read_text()
        before, rest = text.split(BEGIN)
        DOCUMENT.write_text(before + found + rest.split(END)[1])


if __name__ == "__main__":
    main()
