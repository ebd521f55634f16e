"""What goes wrong around a daemon: it says so once, keeps the network, and heals."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from flannel_lab import ETCD_ADDRESS, Machine, Network, every_pair_pings, run, until
from test_flanneld_backends import acquainted

Networks = Callable[[dict[str, Any]], Network]
CONFIG = {"Network": "10.81.0.0/16", "Backend": {"Type": "vxlan"}}


def said(machine: Machine, words: str, seconds: float = 10) -> None:
    until(seconds, lambda: words in machine.log, lambda: f"{words!r} is said by\n{machine.log}")


def key_of(net: Network, name: str) -> str:
    return f"{net.prefix}/subnets/{name}"


def test_eight_that_start_at_once_are_a_full_mesh(network: Networks) -> None:
    net = network(CONFIG)
    machines = [net.machine() for _ in range(8)]
    for machine in machines:
        machine.start(wait=False)
    for machine in machines:
        until(30, machine.subnet_file.exists, lambda m=machine: m.log)
        machine.bridge_up()
    assert len({machine.subnet for machine in machines}) == 8
    acquainted(machines)
    every_pair_pings(machines)


def test_no_configuration_is_said_once_and_waited_for(network: Networks) -> None:
    net = network(CONFIG)
    net.prefix = f"{net.prefix}-other"
    machine = net.machine()
    machine.start(wait=False)
    said(machine, f"etcd has no key {net.prefix}/config")
    time.sleep(3)
    assert machine.log.count("etcd has no key") == 1
    for text, words in (
        ("not json", "is not JSON"),
        ('{"Network":"10.81.0.0/30"}', "too small"),
        ('{"Network":"10.81.0.0/16","Backend":{"Type":"vxlam"}}', "did you mean 'vxlan'"),
        ('{"Network":"10.81.0.0/16","Backend":{"Type":"vxlan","VNI":"one"}}', 'VNI is "one"'),
    ):
        net.lab.etcd.client("put", f"{net.prefix}/config", text)
        said(machine, words)
    assert machine.process is not None
    assert machine.process.poll() is None
    net.configure(CONFIG)
    until(10, machine.subnet_file.exists, lambda: machine.log)


def test_a_full_network_is_waited_for(network: Networks) -> None:
    net = network({"Network": "10.82.0.0/28", "Backend": {"Type": "vxlan"}})
    machines = net.started(3)
    late = net.machine()
    late.start(wait=False)
    said(late, "are leased")
    time.sleep(2)
    assert late.log.count("are leased") == 1
    machines[0].stop()
    key = key_of(net, machines[0].key)
    net.lab.etcd.client("delete", key, net.lab.etcd.client("get", key)[2])
    until(10, late.subnet_file.exists, lambda: late.log)
    assert late.subnet == machines[0].subnet
    later = net.machine()
    later.start(wait=False)
    said(later, "are leased")
    net.configure({"Network": "10.82.0.0/24", "SubnetLen": 30, "Backend": {"Type": "vxlan"}})
    until(15, later.subnet_file.exists, lambda: later.log)


def test_lost_files_come_back(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.started(1)[0]
    before = machine.subnet_file.read_text()
    socket = machine.subnet_file.with_suffix(".sock")
    for path in (machine.subnet_file, machine.directory / "10-flannel.conflist", socket):
        path.unlink()
    until(15, machine.subnet_file.exists, lambda: machine.log)
    assert machine.subnet_file.read_text() == before
    assert (machine.directory / "10-flannel.conflist").exists()
    until(2, socket.exists, lambda: machine.log)


def test_an_interface_that_takes_over_the_default_route(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    second = f"kw{one.number}"
    peer = ["peer", "name", "eth1", "netns", one.namespace]
    run("ip", "link", "add", second, "netns", net.lab.switch, "type", "veth", *peer)
    run("ip", "-n", net.lab.switch, "link", "set", second, "master", "br0", "up")
    one.ip("link", "set", "eth0", "down")
    time.sleep(1.5)
    one.ip("link", "set", "eth1", "up")
    one.ip("addr", "add", "192.168.60.202/24", "dev", "eth1")
    one.ip("route", "replace", "default", "via", ETCD_ADDRESS, "dev", "eth1")
    one.address = "192.168.60.202"
    until(15, lambda: json.loads(net.keys()[one.key])["PublicIP"] == one.address, lambda: one.log)
    until(5, lambda: two.knows(one) and one.knows(two), lambda: one.log)
    every_pair_pings([one, two])


def test_a_reservation_stays_one(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.machine()
    net.lab.etcd.client("put", key_of(net, "10.81.200.0-24"), json.dumps({"PublicIP": machine.address}))
    machine.start()
    assert str(machine.subnet) == "10.81.200.0/24"
    held = net.lab.etcd.client("get", key_of(net, "10.81.200.0-24"))
    assert held[3] == 0, "no etcd lease"
    assert json.loads(held[1])["BackendType"] == "vxlan"


def test_a_lease_that_expires_takes_its_entries_along(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.started(1)[0]
    lease = net.lab.etcd.client("grant", 2)[0]
    value = {"PublicIP": "192.168.60.77", "BackendType": "vxlan", "BackendData": {"VtepMAC": "2a:00:00:00:00:77"}}
    net.lab.etcd.client("put", key_of(net, "10.81.77.0-24"), json.dumps(value), lease)
    until(3, lambda: "10.81.77.0/24" in machine.ip("route"), lambda: machine.log)
    until(10, lambda: "10.81.77.0/24" not in machine.ip("route"), lambda: machine.log)
    assert "2a:00:00:00:00:77" not in machine.fdb()
    assert "10.81.77.0" not in machine.ip("neigh")


def test_foreign_and_corrupt_entries_are_named_once_and_counted(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.started(1)[0]
    put = net.lab.etcd.client
    put("put", key_of(net, "nonsense"), "{}")
    put("put", key_of(net, "10.81.5.0-24"), "\x00 not json")
    put("put", key_of(net, "10.81.6.0-24"), json.dumps({"PublicIP": "192.168.60.6", "BackendType": "host-gw"}))
    put(
        "put",
        key_of(net, str(machine.subnet.network_address + 0).replace("/", "-") + "-25"),
        json.dumps({"PublicIP": "192.168.60.9"}),
    )
    for words in ("nonsense", "10.81.5.0-24", "its backend is host-gw", "it overlaps the own subnet"):
        said(machine, words)
    until(5, lambda: machine.figure("flannel_leases_ignored") >= 2, lambda: machine.health("/metrics"))
    put("put", key_of(net, "10.81.5.0-24"), "\x00 not json")
    time.sleep(1)
    assert machine.log.count("10.81.5.0-24") == 1
    assert machine.ready()


def test_a_peer_that_announces_our_subnet_is_overruled(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    value = json.loads(net.keys()[one.key])
    net.lab.etcd.client(
        "put", key_of(net, one.key), json.dumps({**value, "BackendData": {"VtepMAC": "2a:00:00:00:00:66"}})
    )
    until(10, lambda: json.loads(net.keys()[one.key]) == value, lambda: one.log)
    until(3, lambda: two.knows(one), lambda: two.log)
    every_pair_pings([one, two])


def test_a_route_in_the_way_is_named_and_left_alone(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    two.stop()
    key = key_of(net, two.key)
    net.lab.etcd.client("delete", key, net.lab.etcd.client("get", key)[2])
    until(5, lambda: str(two.subnet) not in one.ip("route"), lambda: one.log)
    one.ip("route", "add", str(two.subnet), "via", ETCD_ADDRESS, "proto", "static")
    two.start()
    said(one, f"this machine has another route to {two.subnet}, via {ETCD_ADDRESS} dev eth0")
    assert not one.ready()
    assert "in the way" in one.health("/readyz")
    time.sleep(3)
    assert one.log.count("another route") == 1
    one.ip("route", "del", str(two.subnet))
    until(5, one.ready, lambda: one.log)
    every_pair_pings([one, two])


def test_flushed_entries_come_back_within_two_seconds(network: Networks) -> None:
    net = network(CONFIG)
    machines = net.started(3)
    one, *peers = machines
    acquainted(machines)
    for words in (
        ("route", "flush", "dev", "flannel.1"),
        ("neigh", "flush", "dev", "flannel.1", "nud", "permanent"),
        ("addr", "flush", "dev", "flannel.1"),
        ("link", "set", "flannel.1", "mtu", "1300"),
    ):
        one.ip(*words)
        until(
            2,
            lambda: all(one.knows(peer) for peer in peers) and "mtu 1450" in one.ip("link", "show", "flannel.1"),
            lambda: one.log,
        )
    for peer in peers:
        one.exec("bridge", "fdb", "del", peer.mac, "dev", "flannel.1", "dst", peer.address)
    until(2, lambda: all(one.knows(peer) for peer in peers), lambda: one.log)
    every_pair_pings(machines)
    assert one.figure("flannel_drift_repaired_total") > 5


def test_a_flap_of_the_interface_itself(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    one.ip("link", "set", "eth0", "down")
    time.sleep(0.5)
    one.ip("link", "set", "eth0", "up")
    one.ip("route", "replace", "default", "via", ETCD_ADDRESS)
    until(2, lambda: one.knows(two), lambda: one.log)
    until(10, lambda: " 0% packet loss" in one.pings(one.gateway, two.gateway), lambda: one.log)


def test_a_changed_address_and_mtu_are_followed(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    subnet, mac = one.subnet, one.mac
    one.ip("addr", "add", "192.168.60.201/24", "dev", "eth0")
    one.ip("addr", "del", f"{one.address}/24", "dev", "eth0")
    one.ip("addr", "add", "192.168.60.201/24", "dev", "eth0", check=False)  # it was a secondary one
    one.ip("route", "replace", "default", "via", ETCD_ADDRESS)
    one.address = "192.168.60.201"
    until(5, lambda: json.loads(net.keys()[one.key])["PublicIP"] == one.address, lambda: one.log)
    until(5, lambda: two.knows(one), lambda: two.log)
    assert (one.subnet, one.mac) == (subnet, mac), "the lease moves with the machine"
    until(5, lambda: one.knows(two), lambda: one.log)
    every_pair_pings([one, two])
    for machine in (one, two):
        machine.ip("link", "set", "eth0", "mtu", "1400")
        until(5, lambda m=machine: m.env["FLANNEL_MTU"] == "1350", lambda m=machine: m.log)
        assert "mtu 1350" in machine.ip("link", "show", "flannel.1")
    every_pair_pings([one, two])


def test_the_network_is_expanded_while_daemons_run(network: Networks) -> None:
    net = network({"Network": "10.84.0.0/22", "SubnetLen": 24, "SubnetMax": "10.84.1.0", "Backend": {"Type": "vxlan"}})
    one = net.started(1)[0]
    assert str(one.subnet) == "10.84.1.0/24"
    net.configure({"Network": "10.84.0.0/16", "SubnetLen": 24, "SubnetMin": "10.84.9.0", "Backend": {"Type": "vxlan"}})
    said(one, "changed to 10.84.0.0/16 and is taken over")
    said(one, "is not one that the configuration permits")
    until(5, lambda: one.env["FLANNEL_NETWORK"] == "10.84.0.0/16", lambda: one.log)
    until(5, lambda: "-s 10.84.0.0/16 " in one.exec("iptables-save", "-t", "nat"), lambda: one.log)
    assert "10.84.0.0/22" not in one.exec("iptables-save")
    assert str(one.subnet) == "10.84.1.0/24"
    two = net.machine()
    two.start()
    two.bridge_up()
    assert two.subnet.network_address.packed[2] >= 9
    acquainted([one, two])
    every_pair_pings([one, two])
    for change, words in (
        ({"Network": "10.90.0.0/16", "SubnetLen": 24}, "does not contain the present one, 10.84.0.0/16"),
        ({"Network": "10.84.0.0/16", "SubnetLen": 25}, "SubnetLen is 25 instead of 24"),
        ({"Network": "10.84.0.0/16", "Backend": {"Type": "host-gw"}}, "the backend is host-gw instead of vxlan"),
        ({"Network": "10.84.0.0/16", "Backend": {"Type": "vxlan", "VNI": 9}}, "vni is 9"),
    ):
        net.configure({"Backend": {"Type": "vxlan"}, **change})
        said(one, words)
    assert one.env["FLANNEL_NETWORK"] == "10.84.0.0/16"
    every_pair_pings([one, two])
    assert one.ready()


def test_compaction_while_cut_off(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    net.lab.etcd.client("put", key_of(net, two.key), net.keys()[two.key])
    one.exec("ip", "link", "set", "eth0", "down")
    three = net.machine()
    three.start()
    three.bridge_up()
    for number in range(20):
        net.lab.etcd.client("put", f"{net.prefix}-noise", str(number))
    revision = net.lab.etcd.client("get", f"{net.prefix}-noise")[2]
    net.lab.etcd.request("/v3/kv/compaction", {"revision": str(revision), "physical": True})
    one.exec("ip", "link", "set", "eth0", "up")
    one.ip("route", "replace", "default", "via", ETCD_ADDRESS)
    until(30, lambda: one.knows(three), lambda: one.log)
    every_pair_pings([one, two, three])


def test_an_interface_without_an_address_is_waited_for(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.machine("-iface=late0")
    machine.ip("link", "add", "late0", "type", "veth", "peer", "name", "late1")
    machine.ip("link", "set", "late0", "up")
    machine.start(wait=False)
    said(machine, "interface late0 has no IPv4 address")
    machine.ip("addr", "add", "192.168.99.1/24", "dev", "late0")
    until(10, machine.subnet_file.exists, lambda: machine.log)
    assert json.loads(net.keys()[machine.key])["PublicIP"] == "192.168.99.1"


def test_without_permission_it_says_what_is_missing(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.machine()
    machine.wrapper = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    machine.start(wait=False)
    said(machine, "NET_ADMIN")
    assert machine.log.count("NET_ADMIN") <= 2
    assert not machine.subnet_file.exists()


def test_the_files_cannot_be_written(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.machine()
    blocker = machine.directory / "not-a-directory"
    blocker.write_text("")
    machine.flags = (f"-subnet-file={blocker}/subnet.env",)
    machine.start(wait=False)
    said(machine, f"{blocker}/subnet.env cannot be written")
    time.sleep(2)
    assert machine.log.count("cannot be written") == 1
    assert not machine.ready()
    assert machine.process is not None
    assert machine.process.poll() is None


@pytest.mark.parametrize(
    ("backend", "subnet", "value", "words"),
    [
        ("vxlan", "10.81.9.0-24", {"BackendData": {"VtepMAC": "01:00:5e:00:00:01"}}, "no usable VtepMAC"),
        ("host-gw", "10.81.9.0-24", {"PublicIP": "192.168.60.255"}, "the broadcast address of 192.168.60.0/24"),
        ("host-gw", "10.81.9.0-24", {"PublicIP": "own"}, "this machine's own address"),
        ("vxlan", "192.168.60.0-24", {"BackendData": {"VtepMAC": "2a:00:00:00:00:99"}}, "outside of the network"),
    ],
)
def test_one_bad_lease_makes_nobody_unready(
    network: Networks, backend: str, subnet: str, value: dict[str, Any], words: str
) -> None:
    net = network({**CONFIG, "Backend": {"Type": backend}})
    machine = net.machine()
    value = {"PublicIP": "192.168.60.99", "BackendType": backend, **value}
    machine.start()
    if value["PublicIP"] == "own":
        value["PublicIP"] = machine.address
    net.lab.etcd.client("put", key_of(net, subnet), json.dumps(value))
    said(machine, words)
    time.sleep(1)
    assert machine.ready()
    machine.stop()
    machine.start()
    assert machine.log.count(words) == 2, "once in each run"


def test_routes_made_by_hand_stay(network: Networks) -> None:
    """Of the form and protocol of host-gw's: to a reservation, to nobody's subnet, with another metric."""
    net = network(CONFIG)
    net.lab.etcd.client("put", key_of(net, "10.81.200.0-24"), json.dumps({"PublicIP": "192.168.60.77"}))
    one, two = net.started(2)
    routes = ["10.81.200.0/24 via 192.168.60.77", "10.81.201.0/24 via 192.168.60.254"]
    for route in (*routes, f"{two.subnet} via 192.168.60.77 metric 100"):
        one.ip("route", "add", *route.split())
    time.sleep(1)
    assert one.ready()
    one.stop()
    one.start()
    said(one, "ip route del 10.81.201.0/24 via 192.168.60.254 dev eth0")
    there = one.ip("route")
    assert all(f"{route} dev eth0" in there for route in routes)
    assert f"{two.subnet} via 192.168.60.77 dev eth0 metric 100" in there
    assert "does not last" not in one.log
    acquainted([one, two])
    every_pair_pings([one, two])


def test_a_renamed_interface_costs_nothing(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    index = json.loads(one.ip("-j", "link", "show", "flannel.1"))[0]["ifindex"]
    one.ip("link", "set", "eth0", "down")
    one.ip("link", "set", "eth0", "name", "ens9")
    one.ip("link", "set", "ens9", "up")
    one.ip("route", "replace", "default", "via", ETCD_ADDRESS)
    time.sleep(2)
    one.ip("route", "del", str(two.subnet))
    until(5, lambda: one.knows(two), lambda: one.log)
    assert json.loads(one.ip("-j", "link", "show", "flannel.1"))[0]["ifindex"] == index
    every_pair_pings([one, two])
    assert "remove flannel.1" not in one.log


def test_what_undoes_repairs_all_the_time_is_trouble_and_does_not_flood(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    lines = one.log.count("\n")
    script = f"while :; do ip route del {two.subnet} 2>/dev/null; sleep 0.02; done"
    with subprocess.Popen(["ip", "netns", "exec", one.namespace, "sh", "-c", script]) as fight:
        try:
            said(one, "does not last: something else undoes it", 20)
            until(3, lambda: not one.ready(), lambda: one.log)
            time.sleep(3)
        finally:
            fight.kill()
    assert one.log.count("\n") - lines < 25, one.log
    until(3, lambda: one.knows(two), lambda: one.log)


def test_two_daemons_with_one_vni_share_the_device(network: Networks) -> None:
    net, other = network(CONFIG), network({**CONFIG, "Network": "10.83.0.0/16"})
    first = net.started(2)
    second = [other.machine("-iptables-forward-rules=false", beside=machine) for machine in first]
    for machine in second:
        machine.start()
        machine.bridge_up("cni1")
    acquainted(first)
    acquainted(second)
    time.sleep(1)
    lines = [machine.log.count("\n") for machine in (*first, *second)]
    time.sleep(3)
    assert [machine.log.count("\n") for machine in (*first, *second)] == lines
    every_pair_pings(first)
    every_pair_pings(second)


def test_an_interface_that_is_gone_is_named(network: Networks) -> None:
    net = network({**CONFIG, "Backend": {"Type": "host-gw"}})
    one, _ = net.started(2)
    one.ip("link", "del", "eth0")
    said(one, "the interface eth0 is not there")
    assert "does not last" not in one.log


def test_an_mtu_larger_than_the_interface_is_named_and_not_used(network: Networks) -> None:
    net = network({**CONFIG, "Backend": {"Type": "vxlan", "MTU": 9000}})
    machine = net.started(1)[0]
    assert machine.log.count("Backend.MTU is 9000, more than the 1500 of eth0") == 1
    assert machine.env["FLANNEL_MTU"] == "1450"


def test_ipv6_switched_off_on_the_own_device_is_switched_on(network: Networks) -> None:
    net = network({**CONFIG, "EnableIPv6": True, "IPv6Network": "fd81::/48"})
    machine = net.started(1)[0]
    first = str(machine.subnet6.network_address)
    machine.exec("sysctl", "-qw", "net.ipv6.conf.flannel-v6/1.disable_ipv6=1")
    until(3, lambda: f"{first}/128" in machine.ip("addr", "show", "flannel-v6.1"), lambda: machine.log)
    until(3, machine.ready, lambda: machine.log)


def test_a_device_in_another_namespace_is_hinted_at(network: Networks) -> None:
    net = network(CONFIG)
    machine = net.started(1)[0]
    away = f"{machine.namespace}-z"
    run("ip", "netns", "add", away)
    try:
        machine.ip("link", "set", "flannel.1", "netns", away)
        said(machine, "or it was moved to another network namespace")
    finally:
        run("ip", "netns", "del", away)
    until(15, machine.ready, lambda: machine.log)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_a_long_outage_of_etcd_is_quiet(network: Networks, backend: str) -> None:
    net = network({**CONFIG, "Backend": {"Type": backend}})
    machines = net.started(2)
    acquainted(machines)
    before = [cpu(machine) for machine in machines]
    lines = [machine.log.count("\n") for machine in machines]
    net.lab.etcd.stop()
    try:
        begun = time.monotonic()
        every_pair_pings(machines)
        time.sleep(max(0.0, 30 - (time.monotonic() - begun)))
        every_pair_pings(machines)
        used = [cpu(machine) - old for machine, old in zip(machines, before, strict=True)]
        assert max(used) < 0.6, f"seconds of CPU in 30: {used}"
        assert all(machine.log.count("\n") - old < 12 for machine, old in zip(machines, lines, strict=True))
    finally:
        net.lab.etcd.start()
    newcomer = net.machine()
    newcomer.start()
    newcomer.bridge_up()
    acquainted([*machines, newcomer])
    every_pair_pings([*machines, newcomer])


def cpu(machine: Machine) -> float:
    assert machine.process is not None
    with open(f"/proc/{machine.process.pid}/stat") as file:  # noqa: PTH123 - a file of the kernel's
        fields = file.read().rsplit(")", maxsplit=1)[-1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_routes_of_host_gw_are_known_by_their_record(network: Networks) -> None:
    net = network({**CONFIG, "Backend": {"Type": "host-gw"}})
    one, two, three = net.started(3)
    acquainted([one, two, three])
    until(5, lambda: str(three.subnet) in (one.directory / "subnet.routes").read_text(), lambda: one.log)
    one.ip("route", "add", "10.81.201.0/24", "via", "192.168.60.254")
    one.stop()
    stale = str(three.subnet)
    three.stop()
    key = key_of(net, three.key)
    net.lab.etcd.client("delete", key, net.lab.etcd.client("get", key)[2])
    one.start()
    until(3, lambda: stale not in one.ip("route"), lambda: one.log)
    assert "10.81.201.0/24" in one.ip("route")
    assert one.log.count("of its own within") == 1


def test_another_name_and_more_addresses_of_the_interface(network: Networks) -> None:
    net = network(CONFIG)
    one, two = net.started(2)
    acquainted([one, two])
    one.ip("link", "set", "eth0", "name", "ens9")
    said(one, "the machine's interface is ens9")
    time.sleep(1)
    until(3, one.ready, lambda: one.log)
    every_pair_pings([one, two])
    one.ip("addr", "add", "192.168.60.222/32", "dev", "ens9")
    time.sleep(1)
    assert "192.168.60.222" not in one.log
