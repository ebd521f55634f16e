"""The udp backend over real TUNs and sockets, with strict reverse path filters."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flannel_lab import Tools, run, until
from udp_lab import SOURCE, Node, introduce, nodes

from flanneld.udp import packet

OLDEST = "/root/.pyenv/versions/3.9.18/bin/python"
NEWEST = "/root/.pyenv/versions/3.13.0/bin/python"

PEER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
s.settimeout(10)
if len(sys.argv) > 4:
    s.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[3], int(sys.argv[2])))
print("bound", flush=True)
while True:
    print(s.recv(65536).hex(), flush=True)
"""
"""What a Go daemon is on the wire: a socket whose datagrams are raw packets. It sends one when it has one."""

SINK = """
import hashlib, socket, sys
listener = socket.create_server((sys.argv[1], 5001))
print("listening", flush=True)
connection = listener.accept()[0]
digest, buffer = hashlib.sha256(), bytearray(1 << 20)
while n := connection.recv_into(buffer):
    digest.update(memoryview(buffer)[:n])
print(digest.hexdigest(), flush=True)
"""

SENDER = """
import socket, sys
s = socket.create_connection((sys.argv[2], 5001), source_address=(sys.argv[1], 0), timeout=20)
block = bytes(range(256)) * 4096
for number in range(int(sys.argv[3])):
    s.sendall(number.to_bytes(4, "big") + block)
s.close()
"""

NO_CHECKSUMS = """
import array, fcntl, socket, struct
off = array.array("B", struct.pack("=II", 0x17, 0))  # ETHTOOL_STXCSUM
request = struct.pack("16sP16x", b"eth0", off.buffer_info()[0])
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8946, request)
"""


def content(blocks: int) -> str:
    digest = hashlib.sha256()
    block = bytes(range(256)) * 4096
    for number in range(blocks):
        digest.update(number.to_bytes(4, "big") + block)
    return digest.hexdigest()


def transfer(source: Node, target: Node, blocks: int) -> None:
    """Send that many MB over TCP; what arrives is what was sent."""
    sink = target.python(SINK, target.inner)
    try:
        assert sink.stdout is not None
        assert sink.stdout.readline() == "listening\n"
        source.exec(sys.executable, "-c", SENDER, source.inner, target.inner, str(blocks), timeout=60)
        assert sink.communicate(timeout=20)[0].strip() == content(blocks)
    finally:
        sink.kill()
        sink.wait()


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Iterator[list[Node]]:
    with nodes(3, tools, tmp_path_factory.mktemp("udp")) as made:
        for node in made:
            assert node.start() == "ready", node.log
        introduce(*made)
        yield made
        for node in made:
            assert "Traceback" not in node.log, node.log


@pytest.fixture
def pair(tmp_path: Path, tools: Tools) -> Iterator[list[Node]]:
    """Two machines whose backends the test starts."""
    with nodes(2, tools, tmp_path) as made:
        yield made
        for node in made:
            assert "Traceback" not in node.log, node.log


def every_pair_pings(every: list[Node]) -> None:
    for node in every:
        for peer in every:
            if peer is not node:
                out = node.ping(peer.inner)
                assert "1 received" in out, out + node.log + peer.log


def test_golden_state_on_both_ends(trio: list[Node]) -> None:
    for node in trio:
        assert "<POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1472" in node.ip("link", "show", "flannel0")
        assert "tun type tun pi off vnet_hdr off" in node.ip("-d", "link", "show", "flannel0")
        assert f"inet 10.9.{node.number}.0/32 scope global flannel0" in node.ip("addr", "show", "flannel0")
        assert "10.9.0.0/16 dev flannel0" in map(str.strip, node.ip("route").splitlines())
        assert f"{node.address}:8285" in node.exec("ss", "-Hlnu")


def test_every_pair_pings_with_one_hop_less_at_each_end(trio: list[Node]) -> None:
    every_pair_pings(trio)
    assert "ttl=62" in trio[0].ping(trio[1].inner)
    host = trio[0].exec("ping", "-c", "1", "-W", "1", trio[1].inner)
    assert "1 received" in host, "from the machine itself, with the TUN's address"


def test_packets_as_large_as_the_mtu_pass_and_larger_ones_are_told(trio: list[Node]) -> None:
    first, second = trio[0], trio[1]
    assert "1 received" in first.ping(second.inner, "-M", "do", "-s", str(1472 - 28))
    assert "1 received" in first.ping(second.inner, "-s", "5000"), "in fragments"
    too_large = first.exec("ping", "-c", "1", "-W", "1", "-M", "do", "-s", str(1472 - 27), second.inner, check=False)
    assert "0 received" in too_large


def test_tcp_arrives_as_it_was_sent_both_ways(trio: list[Node]) -> None:
    transfer(trio[0], trio[1], 30)
    transfer(trio[1], trio[0], 30)


@pytest.mark.parametrize("python", [OLDEST, NEWEST])
def test_without_offloads_of_the_kernel_and_on_other_pythons(pair: list[Node], python: str) -> None:
    if not Path(python).exists():
        pytest.skip(f"{python} is not here")
    assert pair[0].start({}, "plain", python=python) == "ready", pair[0].log
    assert pair[1].start(python=python) == "ready", pair[1].log
    introduce(*pair)
    every_pair_pings(pair)
    transfer(pair[0], pair[1], 10)
    transfer(pair[1], pair[0], 10)


def test_a_path_with_a_smaller_mtu_and_an_interface_without_checksums(pair: list[Node]) -> None:
    for node in pair:
        assert node.start() == "ready", node.log
    introduce(*pair)
    pair[0].ip("link", "set", "eth0", "mtu", "1400")  # the backend was not told: the datagrams are fragmented
    transfer(pair[0], pair[1], 5)
    pair[0].ip("link", "set", "eth0", "mtu", "1500")
    pair[0].exec(sys.executable, "-c", NO_CHECKSUMS)
    transfer(pair[0], pair[1], 5)


def test_an_address_that_nobody_has_is_told_to_the_sender(trio: list[Node]) -> None:
    started = time.monotonic()
    out = trio[0].ping("10.9.99.1", "-W", "5")
    assert "From 10.9.99.1 icmp_seq=1 Destination Net Unreachable" in out
    assert time.monotonic() - started < 2
    host = trio[0].exec("ping", "-n", "-c", "1", "-W", "5", "10.9.99.1", check=False)
    assert "Destination Net Unreachable" in host
    code = "import socket; socket.create_connection(('10.9.99.1', 80), 5)"
    refused = trio[0].exec(sys.executable, "-c", f"try:\n {code}\nexcept OSError as e: print(e)")
    assert "unreachable" in refused, "a connection fails at once"


@pytest.mark.parametrize(("ttl", "hop"), [(1, "10.9.2.0"), (2, "10.9.2.0")])
def test_both_ends_are_hops_that_traceroute_sees(trio: list[Node], ttl: int, hop: str) -> None:
    out = trio[0].ping(trio[1].inner, "-t", str(ttl))
    assert f"From {hop} icmp_seq=1 Time to live exceeded" in out, out
    assert "1 received" in trio[0].ping(trio[1].inner, "-t", "3")


def test_the_wire_is_the_go_daemons(pair: list[Node]) -> None:
    node, other = pair
    assert node.start() == "ready", node.log
    assert node.ask("leases", {other.subnet: other.address}) == ""
    # An echo request, as a Go daemon on the other machine sends it.
    echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"flannel!"
    echo = echo[:2] + struct.pack("!H", packet.checksum(echo)) + echo[4:]
    addresses = socket.inet_aton(other.inner) + socket.inet_aton(node.inner)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), 1, 0, 63, 1, 0) + addresses
    head = head[:10] + struct.pack("!H", packet.checksum(head)) + head[12:]
    peer = other.python(PEER, other.address, "8285", node.address, (head + echo).hex())
    try:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "bound\n"
        answer = bytes.fromhex(peer.stdout.readline())
    finally:
        peer.kill()
        peer.wait()
    assert packet.checksum(answer[:20]) == 0
    assert packet.checksum(answer[20:]) == 0
    assert (answer[0], answer[8], answer[12:20]) == (0x45, 63, addresses[4:] + addresses[:4])
    assert struct.unpack_from("!H", answer, 2)[0] == len(answer) == len(head + echo)
    assert answer[20:22] == b"\0\0", "an echo reply"
    assert answer[24:] == echo[4:]


def test_finished_tcp_segments_leave_the_machine(pair: list[Node]) -> None:
    # The interfaces here leave checksums to the receiver; a datagram must hold finished ones all the same.
    node, other = pair
    assert node.start() == "ready", node.log
    assert node.ask("leases", {other.subnet: other.address}) == ""
    peer = other.python(PEER, other.address, "8285", node.address)
    code = "import socket,sys; s=socket.socket(); s.settimeout(1); s.bind((sys.argv[1],0)); s.connect((sys.argv[2],80))"
    try:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "bound\n"
        node.exec(sys.executable, "-c", f"try:\n {code}\nexcept OSError: pass", node.inner, other.inner)
        segment = bytes.fromhex(peer.stdout.readline())
    finally:
        peer.kill()
        peer.wait()
    pseudo = segment[12:20] + struct.pack("!HH", 6, len(segment) - 20)
    assert packet.checksum(pseudo + segment[20:]) == 0


def test_noise_from_anybody_does_not_stop_it(trio: list[Node]) -> None:
    code = """
import os, random, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
r = random.Random(7)
for n in range(5000):
    noise = bytearray(os.urandom(r.choice([0, 1, 19, 20, 28, 60, 1472])))
    if len(noise) >= 20 and n % 2:
        noise[0], noise[2:4], noise[16:20] = 0x45, len(noise).to_bytes(2, "big"), socket.inet_aton("10.9.1.1")
    s.sendto(noise, (sys.argv[1], 8285))
"""
    trio[2].exec(sys.executable, "-c", code, trio[0].address)
    every_pair_pings(trio)
    assert trio[0].ask("trouble") == ""
    assert "Traceback" not in trio[0].log


def test_only_the_own_subnet_is_reached_through_the_port(pair: list[Node]) -> None:
    node, other = pair
    assert node.start() == "ready", node.log
    node.ip("addr", "add", "10.77.0.1/32", "dev", "lo")
    code = """
import socket, struct, sys
def sum16(d):
    return 0xffff - int.from_bytes(d, "big") % 0xffff
a = socket.inet_aton(sys.argv[2]) + socket.inet_aton(sys.argv[3])
udp = struct.pack("!HHHH", 9, 9999, 12, 0) + b"knock"[:4]
h = struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0, 9, 17, 0) + a
h = h[:10] + struct.pack("!H", sum16(h)) + h[12:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(h + udp, (sys.argv[1], 8285))
"""
    listen = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9999))
s.settimeout(1.5)
print("bound", flush=True)
try:
    print(s.recvfrom(99)[1][0], flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""
    # From an address that is in no lease: NAT looks like that.
    for target, heard in ((node.inner, "10.9.66.6"), ("10.77.0.1", "nothing")):
        listener = node.python(listen)
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "bound\n"
            other.exec(sys.executable, "-c", code, node.address, "10.9.66.6", target)
            assert listener.stdout.readline().strip() == heard
        finally:
            listener.kill()
            listener.wait()


def test_a_peer_that_is_down_and_comes_back(trio: list[Node]) -> None:
    node, peer = trio[0], trio[2]
    peer.ask("end")
    peer.stop()
    assert "flannel0" not in peer.ip("link"), "a TUN ends with its process"
    assert "0 received" in node.ping(peer.inner)
    peer.ip("link", "set", "eth0", "down")
    assert "0 received" in node.ping(peer.inner)
    peer.ip("link", "set", "eth0", "up")
    assert "1 received" in node.ping(trio[1].inner)
    assert peer.start() == "ready"
    assert "flannel0" in peer.ip("link"), "the name is free again"
    introduce(*trio)
    until(3, lambda: "1 received" in node.ping(peer.inner), lambda: node.log)


def test_a_deleted_device_is_opened_again(trio: list[Node]) -> None:
    node = trio[0]
    node.ip("link", "del", "flannel0")
    took = until(2, lambda: "1 received" in node.ping(trio[1].inner), lambda: node.log)
    assert took < 2
    assert "the device flannel0 is gone" in node.log
    assert "opened the device flannel0 again" in node.log
    assert node.ask("trouble") == ""
    every_pair_pings(trio)


def test_a_renamed_device_gets_its_name_back(trio: list[Node]) -> None:
    node = trio[1]
    node.ip("link", "set", "flannel0", "down")
    node.ip("link", "set", "flannel0", "name", "other0")
    until(3, lambda: "1 received" in node.ping(trio[0].inner), lambda: node.log)
    assert "it is called other0 now" in node.log
    assert "other0" not in node.ip("link")


def test_a_device_moved_to_another_namespace_is_replaced(trio: list[Node]) -> None:
    node, elsewhere = trio[1], f"{trio[1].namespace}z"
    run("ip", "netns", "add", elsewhere)
    try:
        node.ip("link", "set", "flannel0", "netns", elsewhere)
        until(4, lambda: "1 received" in node.ping(trio[0].inner), lambda: node.log)
        assert "the device flannel0 is gone: it is in another network namespace now" in node.log
        assert node.ask("trouble") == ""
        assert "flannel0" not in run("ip", "-n", elsewhere, "link")
        # Also where another device has got its name meanwhile.
        node.exec("sh", "-c", f"kill -STOP {node.process.pid}" if node.process else "false")
        node.ip("link", "set", "flannel0", "netns", elsewhere)
        node.ip("link", "add", "flannel0", "type", "bridge")
        node.exec("sh", "-c", f"kill -CONT {node.process.pid}" if node.process else "false")
        until(4, lambda: "a TUN device flannel0 cannot be opened" in node.ask("trouble"), lambda: node.log)
        node.ip("link", "del", "flannel0")
        until(4, lambda: "1 received" in node.ping(trio[0].inner), lambda: node.log)
    finally:
        run("ip", "netns", "del", elsewhere, check=False)


def test_a_name_that_is_taken_is_waited_for(pair: list[Node]) -> None:
    node = pair[0]
    for one in pair:
        assert one.start() == "ready", one.log
    introduce(*pair)
    node.ip("link", "set", "flannel0", "down")
    node.ip("link", "set", "flannel0", "name", "other0")
    node.ip("link", "add", "flannel0", "type", "bridge")
    until(3, lambda: "a TUN device flannel0 cannot be opened" in node.ask("trouble"), lambda: node.log)
    assert "another device of this name: remove it" in node.ask("trouble")
    node.ip("link", "del", "flannel0")
    until(4, lambda: "1 received" in node.ping(pair[1].inner), lambda: node.log)
    assert node.ask("trouble") == ""


def test_a_device_that_is_down_is_no_reason_to_spin(trio: list[Node]) -> None:
    node = trio[1]
    child = node.child()
    node.exec("sh", "-c", f"kill -STOP {node.process.pid}" if node.process else "false")
    try:
        node.ip("link", "set", "flannel0", "down")
        before = cpu(child)
        time.sleep(0.5)
        assert cpu(child) - before < 0.1
        trio[0].ping(node.inner)
    finally:
        node.exec("sh", "-c", f"kill -CONT {node.process.pid}" if node.process else "false")
    until(3, lambda: "1 received" in node.ping(trio[0].inner), lambda: node.log)


def test_a_killed_data_path_is_started_again_and_the_device_stays(trio: list[Node]) -> None:
    node = trio[0]
    before = node.ip("-o", "link", "show", "flannel0").split(":")[0]
    child = node.child()
    os.kill(child, signal.SIGKILL)
    until(3, lambda: "1 received" in node.ping(trio[1].inner), lambda: node.log)
    assert node.child() != child
    assert "has ended with status -9" in node.log
    assert node.ip("-o", "link", "show", "flannel0").split(":")[0] == before
    every_pair_pings(trio)


def test_a_data_path_that_hangs_is_replaced(pair: list[Node]) -> None:
    node = pair[0]
    for one in pair:
        assert one.start() == "ready", one.log
    introduce(*pair)
    child = node.child()
    os.kill(child, signal.SIGSTOP)
    for number in range(40):  # until it is clear that nobody reads
        many = {f"10.9.{n}.0/24": f"192.168.77.{100 + number}" for n in range(3, 255)}
        node.ask("leases", {pair[1].subnet: pair[1].address, **many})
    until(8, lambda: "1 received" in node.ping(pair[1].inner), lambda: node.log)
    assert node.child() != child


def test_the_data_path_has_no_secrets(pair: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLANNELD_ETCD_PASSWORD", "NOTIFY_SOCKET", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    assert pair[0].start() == "ready", pair[0].log
    environment = Path(f"/proc/{pair[0].child()}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hunter2" not in environment


def test_the_data_path_has_no_privileges(trio: list[Node]) -> None:
    status = Path(f"/proc/{trio[0].child()}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "CapEff:\t0000000000000000" in status


def test_from_a_zip_file(pair: list[Node], tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "flanneld"), "zip", SOURCE, "flanneld")
    for node in pair:
        assert node.start(source=Path(archive)) == "ready", node.log
    introduce(*pair)
    every_pair_pings(pair)
    assert archive in Path(f"/proc/{pair[0].child()}/cmdline").read_text()


def test_signals_for_the_group_leave_the_data_path_to_the_daemon(trio: list[Node]) -> None:
    child = trio[0].child()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(child, number)
    time.sleep(0.2)
    assert trio[0].child() == child
    every_pair_pings(trio)


def test_a_killed_daemon_takes_its_data_path_along(pair: list[Node]) -> None:
    node = pair[0]
    assert node.start() == "ready", node.log
    child = node.child()
    assert node.process is not None
    node.process.kill()
    node.stop()
    until(2, lambda: not Path(f"/proc/{child}").exists(), "the child has ended")
    assert "flannel0" not in node.ip("link")
    assert node.start() == "ready", node.log


def test_a_changed_address_is_followed(pair: list[Node]) -> None:
    for node in pair:
        assert node.start() == "ready", node.log
    introduce(*pair)
    first = pair[0]
    assert first.ask("follow", "192.168.77.101", 1400) == ""
    assert "192.168.77.101" in first.ask("trouble"), "the address is not there yet"
    assert "UDP port 8285 of 192.168.77.101 cannot be used: Cannot assign requested address" in first.log
    first.ip("addr", "flush", "dev", "eth0")
    first.ip("addr", "add", "192.168.77.101/24", "dev", "eth0")
    until(3, lambda: first.ask("trouble") == "", lambda: first.log)
    first.address = "192.168.77.101"
    introduce(*pair)
    every_pair_pings(pair)
    assert "mtu 1372" in first.ip("link", "show", "flannel0")


def test_another_port(pair: list[Node]) -> None:
    for node in pair:
        assert node.start({"Port": 9999}) == "ready", node.log
    introduce(*pair)
    every_pair_pings(pair)
    assert f"{pair[0].address}:9999" in pair[0].exec("ss", "-Hlnu")


def test_a_taken_port_names_its_owner(pair: list[Node]) -> None:
    node = pair[0]
    taker = node.python(PEER, node.address, "8285", "")
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "bound\n"
        said = node.start()
        assert "UDP port 8285 of 192.168.77.1 cannot be used: Address already in use" in said
        assert f"(pid {taker.pid}) has it: stop it" in said
    finally:
        taker.kill()
        taker.wait()


def test_what_a_firewall_refuses_is_said_once(pair: list[Node], tools: Tools) -> None:
    for node in pair:
        assert node.start() == "ready", node.log
    introduce(*pair)
    pair[0].exec("iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "8285", "-j", "DROP")
    ping = pair[0].popen(
        "ping",
        "-c",
        "150",
        "-i",
        "0.1",
        "-W",
        "1",
        "-I",
        pair[0].inner,
        pair[1].inner,
        env=tools.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        until(14, lambda: "packets are dropped (unsent: Operation not permitted)" in pair[0].log, lambda: pair[0].log)
    finally:
        ping.kill()
        ping.wait()
    assert len(re.findall("packets are dropped", pair[0].log)) == 1


FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
end = time.monotonic() + 2
while time.monotonic() < end:
    s.sendto(bytes(1400), (sys.argv[2], 9))
"""


def test_an_interface_that_is_too_slow_holds_nothing_up(pair: list[Node]) -> None:
    node, peer = pair
    for one in pair:
        assert one.start() == "ready", one.log
    introduce(*pair)
    node.exec("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "4kb", "limit", "10mb")
    child = node.child()
    flood = node.python(FLOOD, node.inner, peer.inner)
    try:
        before = cpu(child)
        flood.wait(10)
        assert cpu(child) - before < 1, "it waits for the interface"
    finally:
        flood.kill()
        flood.wait()
    assert node.ask("trouble") == ""
    node.exec("tc", "qdisc", "del", "dev", "eth0", "root")
    until(3, lambda: "1 received" in node.ping(peer.inner), lambda: node.log)
    assert node.child() == child
    until(12, lambda: "unsent: Resource temporarily unavailable" in node.log, lambda: node.log)


def test_an_idle_data_path_sleeps_and_is_small(trio: list[Node]) -> None:
    child = trio[0].child()
    before = cpu(child)
    time.sleep(1)
    assert cpu(child) - before < 0.02
    fields = Path(f"/proc/{child}/smaps_rollup").read_text()
    pss = int(re.findall(r"^Pss: +(\d+)", fields, re.MULTILINE)[0])
    assert pss < 9000, f"{pss} KB"


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", maxsplit=1)[-1].split()
    return (int(fields[11]) + int(fields[12])) / 100
