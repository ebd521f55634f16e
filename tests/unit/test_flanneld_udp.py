"""The data path of the udp backend: packets, peers, and the pump over socket pairs instead of a TUN."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.backend.base import Underlay
from flanneld.backend.udp import UdpBackend
from flanneld.dataplane import Desired, Route, Tun
from flanneld.errors import ConfigError, NetworkError
from flanneld.subnet.config import NetworkConfig, parse_config
from flanneld.subnet.lease import Attributes, Lease
from flanneld.udp import packet, port
from flanneld.udp.child import MESSAGE, peers_messages
from flanneld.udp.peers import Peers, prefix
from flanneld.udp.pump import Limit, Pump, TunLostError


def reference(data: bytes) -> int:
    """RFC 1071 as it is written there: word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ip(
    source: str = "10.9.1.1",
    target: str = "10.9.2.1",
    payload: bytes = b"payload!",
    *,
    ttl: int = 64,
    protocol: int = 17,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    length = 20 + len(options)
    parts = [0x40 | length // 4, 0, length + len(payload), 7, fragment, ttl, protocol]
    addresses = socket.inet_aton(source) + socket.inet_aton(target) + options
    check = reference(struct.pack("!BBHHHBBH", *parts, 0) + addresses)
    return struct.pack("!BBHHHBBH", *parts, check) + addresses + payload


@given(st.binary(max_size=3000))
def test_checksum_is_that_of_the_rfc(data: bytes) -> None:
    assert packet.checksum(data) == reference(data)
    assert packet.checksum(b"\0" * len(data)) == 0xFFFF


@given(st.binary(min_size=20, max_size=20), st.integers(1, 255))
def test_one_hop_less_equals_a_full_recomputation(noise: bytes, ttl: int) -> None:
    before = bytearray(noise)
    before[0], before[8], before[10:12] = 0x45, ttl, b"\0\0"
    check = packet.one_hop_less(reference(bytes(before)))
    before[8] -= 1
    assert check == reference(bytes(before))


@given(st.integers(0, 0xFFFF))
def test_one_hop_less_stays_within_sixteen_bits(check: int) -> None:
    assert 0 <= packet.one_hop_less(check) <= 0xFFFF


@given(st.binary(min_size=8, max_size=1400), st.sampled_from([b"", b"\1" * 4, b"\1" * 40]))
def test_icmp_errors_are_well_formed_and_quote_the_packet(payload: bytes, options: bytes) -> None:
    original = ip(payload=payload, options=options)
    answer = packet.icmp_error(packet.UNREACHABLE, b"\x0a\x09\x02\x01", original)
    assert len(answer) <= 576
    assert struct.unpack_from("!H", answer, 2)[0] == len(answer)
    assert reference(answer[:20]) == 0
    assert reference(answer[20:]) == 0
    assert (answer[9], answer[12:16], answer[16:20]) == (1, b"\x0a\x09\x02\x01", original[12:16])
    assert answer[20:22] == b"\3\0"
    assert original.startswith(answer[28:])
    assert len(answer[28:]) >= 20 + len(options) + 8, "enough for the sender's transport"


@pytest.mark.parametrize(
    "original",
    [
        ip(protocol=1, payload=b"\3\0" + b"\0" * 30),  # an ICMP error
        ip(protocol=1, payload=b""),  # ICMP without a type
        ip(fragment=5),
        ip(source="224.0.0.1"),
        ip(source="0.0.0.0"),  # noqa: S104 - no socket is bound
        ip(source="127.0.0.1"),
        ip(target="239.1.1.1"),
        ip(target="255.255.255.255"),
        b"",
        ip()[:19],
    ],
)
def test_what_icmp_never_answers(original: bytes) -> None:
    assert packet.icmp_error(packet.UNREACHABLE, b"\x0a\x09\x02\x01", original) == b""


def test_icmp_answers_a_ping_and_a_first_fragment() -> None:
    for original in (ip(protocol=1, payload=b"\x08\0" + b"\0" * 30), ip(fragment=0x2000)):
        assert packet.icmp_error(packet.UNREACHABLE, b"\x0a\x09\x02\x01", original)


@given(st.integers(0, 255), st.binary(max_size=100))
def test_icmp_of_anything_raises_nothing(kind: int, data: bytes) -> None:
    packet.icmp_error(kind, b"\x0a\x09\x02\x01", data)


networks = st.builds(
    lambda number, length: ipaddress.IPv4Network((number, length), strict=False),
    st.integers(0x0A090000, 0x0A09FFFF),
    st.integers(14, 31),
)


@given(st.dictionaries(networks, st.ip_addresses(v=4).map(str), max_size=20), st.data())
def test_peers_are_found_by_the_longest_prefix(leases: dict[ipaddress.IPv4Network, str], data: st.DataObject) -> None:
    peers = Peers()
    peers.change({str(subnet): (address, 8285) for subnet, address in leases.items()}, [])
    gone = data.draw(st.lists(st.sampled_from(sorted(leases)), unique=True)) if leases else []
    peers.change({}, [str(subnet) for subnet in gone])
    for number in data.draw(st.lists(st.integers(0x0A090000, 0x0A09FFFF), min_size=1, max_size=20)):
        there = [one for one in leases if one not in gone and ipaddress.IPv4Address(number) in one]
        best = max(there, key=lambda one: one.prefixlen, default=None)
        assert peers.find(number) == ((leases[best], 8285) if best else None)
        assert peers.first(number) == (int(best.network_address) if best else None)
        assert peers.answers[number] == peers.find(number)


def test_a_change_of_peers_is_seen_behind_the_remembered_answers() -> None:
    peers = Peers()
    assert peers.find(0x0A090201) is None
    peers.change({"10.9.2.0/24": ("192.168.77.2", 8285)}, [])
    assert peers.find(0x0A090201) == ("192.168.77.2", 8285)
    peers.change({"10.9.2.0/24": ("192.168.77.3", 8285)}, ["10.9.2.0/24", "10.9.7.0/24"])
    assert peers.find(0x0A090201) == ("192.168.77.3", 8285)


def test_remembered_answers_do_not_fill_the_memory() -> None:
    peers = Peers()
    for number in range(20000):
        peers.find(number)
    assert len(peers.answers) <= 4096


def test_messages_of_many_peers_are_small_enough() -> None:
    there = {f"10.{n >> 8}.{n & 255}.0/24": "192.168.100.100" for n in range(5000)}
    messages = list(peers_messages(8285, there, ["255.255.255.0/24"] * 700))
    assert max(map(len, messages)) < MESSAGE
    lines = [line for message in messages for line in message.split("\n")[1:]]
    assert len(lines) == 5700
    assert lines[0][0] == "-", "a subnet that is both gone and there ends as there"


def test_the_limit_lets_a_burst_pass_and_then_a_rate() -> None:
    limit = Limit(3, 2)
    assert [limit.permits(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [limit.permits(101.0) for _ in range(3)] == [True, True, False]


class Rig:
    """A pump whose TUN is a socket pair: packets keep their borders there as in a TUN."""

    def __init__(self, *, gather: bool) -> None:
        self.pump = Pump()
        self.tun, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inner = inner
        inner.setblocking(False)
        self.tun.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.pump.tun = inner.fileno()
        self.wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.wire.bind(("127.0.0.1", 0))
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.bind(("127.0.0.1", 0))
        self.address = own.getsockname()
        self.pump.use_socket(own, gather=gather)
        self.pump.own(*prefix("10.9.1.0/24"))
        self.pump.peers.change({"10.9.2.0/24": self.wire.getsockname()}, [])
        for sock in (self.tun, self.wire):
            sock.settimeout(2)

    def out(self, *packets: bytes) -> list[bytes]:
        """Have packets of the TUN sent; returns what arrived on the wire."""
        for one in packets:
            self.tun.send(one)
        self.pump.send()
        return self.pending(self.wire)

    def into(self, *datagrams: bytes) -> list[bytes]:
        """Have datagrams received; returns what arrived in the TUN."""
        for one in datagrams:
            self.wire.sendto(one, self.address)
        self.pump.receive()
        return self.pending(self.tun)

    @staticmethod
    def pending(sock: socket.socket) -> list[bytes]:
        found = []
        while select.select([sock], [], [], 0.02)[0]:
            found.append(sock.recv(65536))
        return found

    def close(self) -> None:
        for sock in (self.tun, self.inner, self.wire, self.pump.socket):
            assert sock is not None
            sock.close()


@pytest.fixture(params=[True, False], ids=["gathering", "plain"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(gather=request.param)
    yield made
    made.close()


def hop(original: bytes) -> bytes:
    """The packet after one more hop, made from its parts."""
    lower = bytearray(original)
    lower[8] -= 1
    lower[10:12] = b"\0\0"
    lower[10:12] = reference(bytes(lower[: (lower[0] & 15) * 4])).to_bytes(2, "big")
    return bytes(lower)


def test_a_datagram_is_one_packet_with_one_hop_less(rig: Rig) -> None:
    sizes = [1472, 1472, 1472, 300, 1472, 40, 40, 40, 1000, 20, 1472]
    packets = [ip(payload=os.urandom(size - 20)) for size in sizes]
    assert rig.out(*packets) == [hop(one) for one in packets]
    assert rig.pump.counts == {"sent": len(sizes)}


def test_more_than_a_system_call_takes_leaves_in_order(rig: Rig) -> None:
    packets = [ip(payload=number.to_bytes(4, "big") * 350) for number in range(100)]
    assert rig.out(*packets[:50]) + rig.out(*packets[50:]) == [hop(one) for one in packets]


def test_each_machine_gets_its_own(rig: Rig) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        rig.pump.peers.change({"10.9.3.0/24": other.getsockname()}, [])
        mixed = [ip(target=f"10.9.{2 + number % 2}.1", payload=bytes([number]) * 100) for number in range(20)]
        assert rig.out(*mixed) == [hop(one) for one in mixed[::2]]
        assert rig.pending(other) == [hop(one) for one in mixed[1::2]]


def test_received_packets_reach_the_tun(rig: Rig) -> None:
    packets = [ip("10.9.2.1", "10.9.1.7", os.urandom(size)) for size in (1452, 1452, 0, 8, 1452)]
    assert rig.into(*packets) == [hop(one) for one in packets]
    assert rig.pump.counts["received"] == len(packets)


def test_what_is_not_a_packet_for_us_is_counted_and_dropped(rig: Rig) -> None:
    good = ip("10.9.2.1", "10.9.1.7")
    bad = [
        b"",
        b"E",
        good[:19],
        b"\x60" + good[1:],  # IPv6
        b"\x44" + good[1:],  # a header too short
        b"\x4f" + good[1:],  # a header longer than the packet
        good[:-1],  # cut off
    ]
    assert rig.into(*bad) == []
    assert rig.pump.counts["malformed"] == len(bad)
    assert rig.into(ip("10.9.2.1", "10.9.3.1"), ip("10.9.2.1", "192.168.1.1")) == []
    assert rig.pump.counts["stray"] == 2
    assert rig.into(good + b"trailer") == [hop(good)]


def test_a_packet_that_nobody_takes_is_answered_from_where_it_went(rig: Rig) -> None:
    lost = ip(target="10.9.99.1")
    assert rig.out(lost) == []
    (answer,) = rig.pending(rig.tun)
    assert answer == packet.icmp_error(packet.UNREACHABLE, socket.inet_aton("10.9.99.1"), lost)
    rig.out(*[lost] * 100)
    assert len(rig.pending(rig.tun)) < 30, "errors are limited"
    assert rig.pump.counts == {"unroutable": 101}


def test_a_packet_without_hops_left_is_answered_at_both_ends(rig: Rig) -> None:
    assert rig.out(ip(ttl=1)) == []
    (answer,) = rig.pending(rig.tun)
    assert (answer[12:16], answer[20:22]) == (socket.inet_aton("10.9.2.0"), b"\x0b\0")
    assert rig.into(ip("10.9.2.1", "10.9.1.7", ttl=1)) == []
    (answer,) = rig.pending(rig.wire)
    assert (answer[12:16], answer[16:20]) == (socket.inet_aton("10.9.1.0"), socket.inet_aton("10.9.2.1"))
    assert rig.pump.counts == {"expired": 2, "received": 0, "sent": 1}


def test_other_protocols_of_the_kernel_are_left_alone(rig: Rig) -> None:
    solicitation = b"\x60" + b"\0" * 47
    assert rig.out(ip(), solicitation, ip(payload=b"second")) == [hop(ip()), hop(ip(payload=b"second"))]


def test_a_lost_tun_is_told(rig: Rig) -> None:
    spare = os.open("/dev/null", os.O_WRONLY)
    rig.pump.tun = spare
    with pytest.raises(TunLostError):
        rig.pump.send()
    os.close(spare)


def test_what_the_kernel_refuses_to_send_is_counted(rig: Rig) -> None:
    rig.pump.peers.change({"10.9.2.0/24": ("255.255.255.255", 8285)}, [])
    assert rig.out(ip(), ip()) == []
    assert rig.pump.counts == {"unsent": 2}
    assert rig.pump.refused


@pytest.mark.parametrize("gather", [True, False])
@given(data=st.lists(st.one_of(st.binary(max_size=200), st.builds(lambda n: ip()[:n], st.integers(0, 28))), max_size=5))
def test_received_noise_raises_nothing(gather: bool, data: list[bytes]) -> None:
    made = Rig(gather=gather)
    with contextlib.closing(made):
        made.into(*data)
        made.pump.own(*prefix("0.0.0.0/0"))  # everything goes on to the checks behind
        made.into(*data)
        assert sum(made.pump.counts.values()) >= 2 * len(data)


def config(text: str = '{"Network": "10.9.0.0/16"}') -> NetworkConfig:
    return parse_config(text)


UNDERLAY = Underlay("eth0", 1500, {4: "192.168.77.1"})
OWN = Lease((ipaddress.IPv4Network("10.9.1.0/24"),), Attributes("192.168.77.1"))


def test_the_backend_announces_nothing_and_wants_nothing_before_its_tun_is_there() -> None:
    backend = UdpBackend(config(), UNDERLAY)
    assert (backend.type, backend.announced, backend.data(4), backend.mtu) == ("udp", "", None, 1472)
    assert backend.desired(OWN, []).devices == ()


def test_the_overlay_is_one_device_one_address_and_one_route(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = UdpBackend(config(), UNDERLAY)
    monkeypatch.setattr(backend, "_name", "flannel0")
    assert backend.desired(OWN, [OWN]) == Desired(
        backend.ownership(),
        (Tun("flannel0", 1472),),
        {"flannel0": frozenset({"10.9.1.0/32"})},
        routes={"10.9.0.0/16": Route("10.9.0.0/16", "flannel0")},
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48"}', "IPv4 only"),
        ('{"Network": "10.9.0.0/16", "Backend": {"Type": "udp", "Port": 0}}', "Port is 0"),
        ('{"Network": "10.9.0.0/16", "Backend": {"Type": "udp", "Port": "8285"}}', 'Port is "8285"'),
    ],
)
def test_settings_that_will_not_do(text: str, shown: str) -> None:
    with pytest.raises(ConfigError, match=shown):
        UdpBackend(config(text), UNDERLAY)


@pytest.mark.parametrize("underlay", [UNDERLAY._replace(addresses={}), UNDERLAY._replace(mtu=90)])
def test_interfaces_that_will_not_do(underlay: Underlay) -> None:
    with pytest.raises(NetworkError, match="interface eth0 has"):
        UdpBackend(config(json.dumps({"Network": "10.9.0.0/16"})), underlay)


def test_leases_are_judged_anew_with_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = UdpBackend(config(), UNDERLAY)
    monkeypatch.setattr(backend, "_lease", OWN)
    leases = [Lease((ipaddress.IPv4Network("10.9.2.0/24"),), Attributes("192.168.77.2"))]
    backend.update(leases)
    monkeypatch.setattr(backend, "_unfit", lambda *_: "the network has changed")
    backend.update(leases)
    assert backend.ignored == {}
    backend.follow(backend.config, UNDERLAY)
    backend.update(leases)
    assert set(backend.ignored) == {"10.9.2.0/24"}


def test_without_descriptors_left_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = UdpBackend(config(), UNDERLAY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(backend, "_name", "flannel9")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        backend._repair()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert backend.trouble().count("Too many open files") == 3


def test_a_taken_port_names_who_has_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=rf"\(pid {os.getpid()}\) has it: stop it") as caught:
            port.bind("127.0.0.1", number)
        assert f"UDP port {number} of 127.0.0.1" in str(caught.value)
    port.bind("127.0.0.1", number).close()


def test_a_port_taken_on_all_addresses_names_who_has_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        with pytest.raises(NetworkError, match=rf"\(pid {os.getpid()}\) has it: stop it"):
            port.bind("127.0.0.1", taken.getsockname()[1])
