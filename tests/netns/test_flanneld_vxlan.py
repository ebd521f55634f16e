"""Three flanneld processes over a real etcd with TLS: what the kernel gets, and what survives."""

from __future__ import annotations

import json
import signal
import subprocess
import time

from flannel_lab import Lab, Machine, every_pair_pings, until


def test_the_device_is_the_one_the_go_daemon_makes(trio: list[Machine]) -> None:
    machine = trio[0]
    link = json.loads(machine.ip("-j", "-d", "link", "show", "flannel.1"))[0]
    data = link["linkinfo"]["info_data"]
    assert (link["mtu"], link["operstate"], link["linkinfo"]["info_kind"]) == (1450, "UNKNOWN", "vxlan")
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert (data["id"], data["local"], data["link"], data["port"]) == (1, machine.address, "eth0", 8472)
    assert (data["learning"], data["ageing"], data["udp_csum"]) == (False, 300, True)
    assert "group" not in data
    assert int(link["address"][:2], 16) & 3 == 2, "locally administered, unicast"
    assert f"inet {machine.subnet.network_address}/32 scope global flannel.1" in machine.ip("addr", "show", "flannel.1")
    accept = machine.exec("cat", "/proc/sys/net/ipv6/conf/flannel.1/accept_ra", check=False)
    assert accept.strip() in {"0", ""}


def test_every_peer_has_route_neighbour_and_forwarding_entry(trio: list[Machine]) -> None:
    machine, peer = trio[0], trio[1]
    first = peer.subnet.network_address
    assert f"{peer.subnet} via {first} dev flannel.1 onlink" in machine.ip("route")
    assert f"{first} lladdr {peer.mac} PERMANENT" in machine.ip("neigh", "show", "dev", "flannel.1")
    assert f"{peer.mac} dst {peer.address} self permanent" in machine.fdb()
    assert len(machine.fdb().splitlines()) == 2
    every_pair_pings(trio)


def test_the_key_is_byte_for_byte_the_go_daemons(flannel_lab: Lab, trio: list[Machine]) -> None:
    machine = trio[2]
    assert flannel_lab.etcd.keys()[machine.key] == (
        f'{{"PublicIP":"{machine.address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{machine.mac}"}}}}'
    )


def test_files_for_docker_and_cni(trio: list[Machine]) -> None:
    machine = trio[0]
    first = machine.subnet.network_address + 1
    assert machine.subnet_file.read_text() == (
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={first}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert machine.subnet_file.stat().st_mode & 0o777 == 0o644
    bridge = json.loads((machine.directory / "10-flannel.conflist").read_text())["plugins"][0]
    assert bridge["ipam"]["ranges"] == [[{"subnet": str(machine.subnet)}]]
    assert (bridge["ipMasq"], bridge["mtu"]) == (False, 1450)


def test_health(trio: list[Machine]) -> None:
    assert trio[0].health("/readyz") == "200 flanneld is ready"
    assert trio[0].health("/healthz") == "200 flanneld is running"
    assert trio[0].figure("flannel_leases") == 3
    assert trio[0].figure("flannel_peers_programmed") == 2


def test_a_deleted_device_is_repaired(trio: list[Machine]) -> None:
    machine = trio[0]
    mac = machine.mac
    machine.ip("link", "del", "flannel.1")
    took = until(2, lambda: all(machine.knows(peer) for peer in trio[1:]), lambda: machine.log)
    assert machine.mac == mac, "peers keep the MAC they were told"
    assert took < 2
    every_pair_pings(trio)


def test_a_changed_mac_is_set_back(trio: list[Machine]) -> None:
    machine = trio[1]
    mac = machine.mac
    machine.ip("link", "set", "flannel.1", "address", "02:00:00:00:00:77")
    until(2, lambda: machine.mac == mac and machine.knows(trio[0]) and machine.knows(trio[2]), lambda: machine.log)
    every_pair_pings(trio)


def test_lost_entries_come_back_and_foreign_ones_stay(trio: list[Machine]) -> None:
    machine, peer = trio[0], trio[1]
    machine.ip("route", "add", "172.31.0.0/16", "dev", "flannel.1")
    machine.ip("addr", "add", "172.30.0.1/32", "dev", "flannel.1")
    machine.ip("route", "del", str(peer.subnet))
    machine.ip("neigh", "del", str(peer.subnet.network_address), "dev", "flannel.1")
    machine.ip("addr", "add", "10.244.255.1/32", "dev", "flannel.1")
    until(2, lambda: machine.knows(peer), lambda: machine.log)
    until(2, lambda: "10.244.255.1" not in machine.ip("addr"), "an address within the network is removed")
    assert "172.31.0.0/16" in machine.ip("route")
    assert "172.30.0.1" in machine.ip("addr")
    machine.ip("addr", "del", "172.30.0.1/32", "dev", "flannel.1")
    machine.ip("route", "del", "172.31.0.0/16")


def test_a_link_flap_of_the_device_is_repaired(trio: list[Machine]) -> None:
    machine = trio[0]
    machine.ip("link", "set", "flannel.1", "down")
    until(2, lambda: all(machine.knows(peer) for peer in trio[1:]), lambda: machine.log)
    every_pair_pings(trio)


def test_the_own_key_is_written_anew_when_deleted(flannel_lab: Lab, trio: list[Machine]) -> None:
    machine = trio[1]
    value = flannel_lab.etcd.keys()[machine.key]
    flannel_lab.etcd.delete(machine.key)
    until(5, lambda: flannel_lab.etcd.keys().get(machine.key) == value, lambda: machine.log)
    until(3, lambda: all(peer.knows(machine) for peer in (trio[0], trio[2])), "peers have it again")
    assert machine.process is not None
    assert machine.process.poll() is None


def test_a_restart_loses_no_ping_and_keeps_everything(trio: list[Machine]) -> None:
    machine, peer = trio[0], trio[1]
    source, target = (str(one.subnet.network_address + 1) for one in (machine, peer))
    subnet, mac = machine.subnet, machine.mac
    command = [
        "ip",
        "netns",
        "exec",
        machine.namespace,
        "ping",
        "-i",
        "0.02",
        "-c",
        "120",
        "-W",
        "1",
        "-I",
        source,
        target,
    ]
    ping = subprocess.Popen(command, env=machine.lab.tools.env, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    assert machine.stop() == 0
    assert "flannel.1" in machine.ip("route"), "the overlay stays when the daemon ends"
    took = machine.start()
    out, _ = ping.communicate(timeout=20)
    assert "120 packets transmitted, 120 received" in out, out
    assert (machine.subnet, machine.mac) == (subnet, mac)
    assert took < 2


def test_a_kill_is_survived_and_a_changed_lease_is_followed(trio: list[Machine]) -> None:
    machine = trio[2]
    machine.stop(signal.SIGKILL)
    machine.ip("link", "del", "flannel.1")
    machine.ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "eth0")
    machine.start()
    assert "remove flannel.1: its" in machine.log
    for peer in trio[:2]:
        until(3, lambda p=peer: f"{machine.mac} dst {machine.address} self" in p.fdb(), lambda p=peer: p.log)
    every_pair_pings(trio)


def test_a_departed_peer_is_removed(flannel_lab: Lab, trio: list[Machine]) -> None:
    machine = trio[2]
    key, mac, subnet = machine.key, machine.mac, str(machine.subnet)
    assert machine.stop() == 0
    assert flannel_lab.etcd.keys().get(key), "the lease outlives the daemon"
    flannel_lab.etcd.delete(key)
    for peer in trio[:2]:
        until(3, lambda p=peer: mac not in p.fdb() and subnet not in p.ip("route"), lambda p=peer: p.log)
        assert subnet.split("/", maxsplit=1)[0] not in peer.ip("neigh")
    machine.start()
    assert str(machine.subnet) == subnet, "the previous subnet of subnet.env, as it is free"
    until(5, lambda: all(peer.knows(machine) for peer in trio[:2]), "back")


def test_an_outage_of_etcd_leaves_the_network_alone(flannel_lab: Lab, trio: list[Machine]) -> None:
    before = [_cpu(machine) for machine in trio]
    flannel_lab.etcd.stop()
    time.sleep(5)
    every_pair_pings(trio)
    trio[0].ip("link", "del", "flannel.1")
    until(2, lambda: trio[0].knows(trio[1]), "repairs work without etcd")
    used = [_cpu(machine) - old for machine, old in zip(trio, before, strict=True)]
    assert max(used) < 0.8, f"seconds of CPU in the outage: {used}"
    flannel_lab.etcd.start()
    newcomer = flannel_lab.machine()
    newcomer.start("dead")
    for machine in trio:
        until(8, lambda m=machine: m.knows(newcomer), lambda m=machine: m.log)
        assert machine.log.count("cannot be watched") < 20
    newcomer.stop()


def _cpu(machine: Machine) -> float:
    assert machine.process is not None
    fields = (open(f"/proc/{machine.process.pid}/stat").read().rsplit(")", maxsplit=1)[-1]).split()  # noqa: SIM115, PTH123
    return (int(fields[11]) + int(fields[12])) / 100


def test_five_that_start_at_once_get_five_subnets(flannel_lab: Lab) -> None:
    # A network of exactly as many subnets as there are machines makes every choice a race.
    machines = [flannel_lab.machine() for _ in range(5)]
    prefix = "/race"
    config = {"Network": "10.99.0.0/21", "SubnetLen": 24, "Backend": {"Type": "vxlan", "VNI": 7}}
    flannel_lab.etcd.client("put", f"{prefix}/config", json.dumps(config))
    for machine in machines:
        machine.start(f"-etcd-prefix={prefix}", wait=False)
    for machine in machines:
        until(20, machine.subnet_file.exists, lambda m=machine: m.log)
    subnets = {str(machine.subnet) for machine in machines}
    assert len(subnets) == 5
    for machine in machines:
        until(5, lambda m=machine: m.ip("route").count("dev flannel.7 onlink") == 4, lambda m=machine: m.log)
        assert machine.stop() == 0
    assert all("Traceback" not in machine.log for machine in flannel_lab.machines)


def test_user_and_password_of_etcd(flannel_lab: Lab) -> None:
    etcd, pki = flannel_lab.etcd, flannel_lab.pki
    etcd.request("/v3/auth/user/add", {"name": "root", "password": "hunter2"})
    etcd.request("/v3/auth/role/add", {"name": "root"})
    etcd.request("/v3/auth/user/grant", {"user": "root", "role": "root"})
    etcd.request("/v3/auth/enable", {})
    machine = flannel_lab.machine()
    machine.start(wait=False)
    until(5, lambda: "without a common name" in machine.log, lambda: machine.log)
    machine.stop()
    nameless = [f"-etcd-certfile={pki.nameless}", f"-etcd-keyfile={pki.key(pki.nameless)}"]
    flannel_lab.tools.env["FLANNELD_ETCD_PASSWORD"] = "hunter2"
    try:
        machine.start("-etcd-username=root", *nameless)
        until(5, lambda: "onlink" in machine.ip("route"), lambda: machine.log)
        assert "hunter2" not in machine.log
    finally:
        del flannel_lab.tools.env["FLANNELD_ETCD_PASSWORD"]
        machine.stop()
