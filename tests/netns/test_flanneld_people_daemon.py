"""The commands for people beside real daemons over a real etcd, run from the built file."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked
from flannel_lab import Lab, Machine, Network, until

_NFT = (
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libedit2", "libbsd0", "libmd0", "libgmp10"),
    "libxtables12",
)

Networks = Callable[[dict[str, Any]], Network]

_LASTING = """
import sys
seconds = int(sys.argv.pop(1))
sys.argv[:2] = []
sys.path.insert(0, sys.argv[0])
from flanneld.subnet.etcd_watch import Timing
Timing.__new__.__defaults__ = (seconds, *Timing.__new__.__defaults__[1:])
from flanneld.cli import console
console()
"""


def leasing_for(machine: Machine, seconds: int) -> None:
    """Have a machine's daemon lease its subnet for so long instead of a day."""
    machine.wrapper = ("/usr/bin/python3", "-c", _LASTING, str(seconds))


def flanneld_any(machine: Machine, *words: str, statuses: Container[int] = range(2)) -> str:
    command = ["ip", "netns", "exec", machine.namespace, "/usr/bin/python3", str(machine.lab.pyz), *words]
    command.append(f"-subnet-file={machine.subnet_file}")
    env = {**os.environ, **machine.lab.tools.env}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode in statuses, done.stdout + done.stderr + machine.log
    assert "Traceback" not in done.stderr
    return done.stdout


def flanneld(machine: Machine, *words: str, status: int = 0) -> str:
    return flanneld_any(machine, *words, statuses=(status,))


def flanneld_json(machine: Machine, *words: str, status: int = 0) -> Any:
    return json.loads(flanneld(machine, *words, "-json", status=status))


@pytest.mark.parametrize("backend", ["vxlan", "udp", "host-gw"])
def test_a_network_in_order(network: Networks, backend: str) -> None:
    net = network({"Network": "10.79.0.0/16", "Backend": {"Type": backend}})
    machines = net.started(2)
    one, two = machines
    for machine in machines:
        machine.bridge_up()
    until(5, lambda: len(json.loads(flanneld(one, "status", "-json"))["peers"]) == 1, lambda: one.log)
    status = json.loads(flanneld(one, "status", "-json"))
    assert status["ready"] is True
    assert status["differences"] == []
    assert status["peers"][0]["machine"]["4"] == two.address
    assert 86000 < status["lease"]["expires"] <= 86400
    text = flanneld(one, "status")
    assert f"lease      {one.subnet}, expires in " in text
    assert f"{two.subnet}" in text
    found = json.loads(flanneld(one, "explain", two.gateway, "-json"))
    assert found["verdict"] == "Reachable."
    assert all(step["wrong"] == "" for step in found["steps"])
    findings = json.loads(flanneld(one, "check", "-json"))["findings"]
    assert [one for one in findings if one["level"] == "FAILED"] == []
    assert any(one["seen"] == "1 of 1 answer through the overlay" for one in findings)
    assert any(one["seen"] == "packets of 1500 octets arrive whole" for one in findings)
    flanneld(one, "cleanup", status=1)
    assert one.stop() == 0
    flanneld(one, "status", status=3)
    options, foreign = one.subnet_file.with_name("docker"), one.subnet_file.with_name("other")
    options.write_text(f'DOCKER_NETWORK_OPTIONS=" --bip={one.env["FLANNEL_SUBNET"]} --mtu=1450"\n')
    foreign.write_text("")
    text = flanneld(one, "cleanup")
    assert "chain FLANNEL-POSTRTG is removed" in text
    assert f"removed {options}\n" in text
    assert foreign.exists()
    assert "flannel" not in one.ip("link")
    assert "10.79" not in "".join(line for line in one.ip("route").splitlines() if "cni0" not in line)
    assert "FLANNEL" not in one.exec("iptables-save")
    assert flanneld(one, "cleanup") == "nothing of flannel is left on this machine\n"
    one.start()
    until(
        5,
        lambda: json.loads(flanneld(one, "explain", two.gateway, "-json"))["verdict"] == "Reachable.",
        lambda: one.log,
    )


def test_explain_names_what_takes_precedence(network: Networks) -> None:
    both = {"EnableIPv6": True, "IPv6Network": "fd84::/48"}
    net = network({"Network": "10.84.0.0/16", "Backend": {"Type": "vxlan"}, **both})
    one, two = net.started(2)
    until(5, lambda: flanneld_json(one, "status")["peers"], lambda: one.log)
    pod, pod6 = f"{two.subnet.network_address + 7}", f"{two.subnet6.network_address + 7}"
    other = two.subnet.network_address
    for words, target, named in (
        (("route", "add", f"{pod}/32", "dev", "eth0"), pod, f"the route {pod}/32 dev eth0; remove that"),
        (("route", "add", "unreachable", f"{pod}/32"), pod, f"the route unreachable {pod}/32; remove that"),
        (("route", "add", "prohibit", f"{other}/25"), pod, f"the route prohibit {other}/25; remove that"),
        (("route", "add", "throw", f"{pod}/32", "metric", "7"), pod, f"the route throw {pod}/32 metric 7; remove that"),
        (("route", "add", "blackhole", f"{pod6}/128"), pod6, f"the route blackhole {pod6}/128 dev lo metric 1024; "),
        (("addr", "add", f"{other + 9}/32", "dev", "lo"), str(other + 9), f"its own address {other + 9}/32 dev lo; "),
        (
            ("addr", "add", f"{other + 65}/26", "dev", "eth0"),
            f"{other + 66}",
            f"its own network {other + 64}/26 dev eth0; give",
        ),
        (("rule", "add", "to", f"{pod}/32", "prohibit", "priority", "9"), pod, f"the rule 9: to {pod}/32 prohibit; "),
        (
            ("-6", "rule", "add", "to", f"{two.subnet6}", "lookup", "77", "priority", "9"),
            pod6,
            f"the rule 9: to {two.subnet6} lookup 77; remove that (`ip -6 rule del priority 9`)",
        ),
    ):
        one.ip(*words)
        if "77" in words:
            one.ip("route", "add", str(two.subnet6), "dev", "eth0", "table", "77")
        for more in ((), ("-probe=false",)):
            found = flanneld_json(one, "explain", target, *more, status=1)
            assert named in found["verdict"], found
            assert "should repair" not in found["verdict"]
            assert any(step["step"] == "way" and step["wrong"] for step in found["steps"])
        one.ip(*("del" if word == "add" else word for word in words))
        assert "everything on this machine is as it should be" in flanneld(one, "explain", target, "-probe=false")


def test_a_daemon_that_waits_says_for_what(network: Networks) -> None:
    net = network({"Network": "10.80.0.0/16", "Backend": {"Type": "nothing"}})
    machine = net.machine()
    machine.start(wait=False)
    until(5, machine.subnet_file.with_suffix(".sock").exists, lambda: machine.log)
    text = flanneld(machine, "status", status=1)
    assert "NOT ready" in text
    assert "lease      none yet" in text
    found = flanneld_json(machine, "explain", "10.80.1.1", status=1)
    assert found["verdict"].startswith("flanneld knows no pod network yet: ")
    assert "which is not known yet" not in flanneld(machine, "explain", "10.80.1.1", status=1)
    command = ["ip", "netns", "exec", machine.namespace, "/usr/bin/python3", str(machine.lab.pyz), "check"]
    command.append(f"-subnet-file={machine.subnet_file}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "flanneld runs, but waits: " in done.stderr


def test_status_while_etcd_is_down_at_the_start(network: Networks) -> None:
    net = network({"Network": "10.86.0.0/16", "Backend": {"Type": "vxlan"}})
    machine = net.machine()
    net.lab.etcd.stop()
    try:
        machine.start(wait=False)
        until(5, machine.subnet_file.with_suffix(".sock").exists, lambda: machine.log)
        until(10, lambda: "no network configuration yet" in machine.log, lambda: machine.log)
        text = flanneld(machine, "status", status=1)
        assert "NOT ready: no network configuration yet, trying again: " in text
        assert net.lab.etcd.url in text
        assert ": not read yet" in text
        flanneld(machine, "explain", "10.86.1.1", status=1)
        flanneld(machine, "cleanup", status=1)
    finally:
        net.lab.etcd.start()
    until(20, machine.subnet_file.exists, lambda: machine.log)
    until(5, lambda: "followed" in flanneld_any(machine, "status"), lambda: machine.log)


def test_commands_without_the_subnet_file(network: Networks) -> None:
    net = network({"Network": "10.87.0.0/16", "Backend": {"Type": "vxlan"}})
    one, two = net.started(2)
    gateway = two.gateway
    until(5, lambda: flanneld_json(one, "status")["peers"], lambda: one.log)
    one.subnet_file.unlink()
    flanneld(one, "status")
    assert flanneld_json(one, "explain", gateway)["verdict"] == "Reachable."
    flanneld(one, "check")
    until(15, one.subnet_file.exists, lambda: one.log)
    one.stop()
    one.subnet_file.unlink()
    text = flanneld(one, "cleanup")
    assert "left: flannel.1: no subnet file names its network (-all removes it, too)" in text
    assert "removed device flannel.1" in flanneld(one, "cleanup", "-all")


def test_a_lease_that_changes_its_type_is_told_as_it_is(network: Networks) -> None:
    net = network({"Network": "10.88.0.0/16", "Backend": {"Type": "vxlan"}})
    (machine,) = net.started(1)
    key = f"{net.prefix}/subnets/10.88.200.0-24"
    fit = {"PublicIP": "192.168.60.99", "BackendType": "vxlan", "BackendData": {"VtepMAC": "2a:00:00:00:00:99"}}
    for value, ignored in (
        ({**fit, "BackendType": "host-gw"}, "its backend is host-gw, not vxlan"),
        (fit, ""),
        ({**fit, "BackendType": "host-gw"}, "its backend is host-gw, not vxlan"),
        (fit, ""),
    ):
        net.lab.etcd.client("put", key, json.dumps(value))
        until(
            5,
            lambda: [one["ignored"] for one in flanneld_json(machine, "status")["peers"]] == [ignored],  # noqa: B023
            lambda: machine.log,
        )
        found = flanneld_json(machine, "explain", "10.88.200.1", status=1)
        assert ("does not use that lease" in found["verdict"]) is bool(ignored)
        assert ("10.88.200.0/24" in machine.ip("route")) is not bool(ignored)
    held = net.lab.etcd.client("get", key)
    net.lab.etcd.client("delete", key, held[2])
    until(5, lambda: flanneld_json(machine, "status")["peers"] == [], lambda: machine.log)
    assert "leased to nobody" in flanneld_json(machine, "explain", "10.88.200.1", status=1)["verdict"]


def test_a_renewed_lease_shows_its_new_end(network: Networks) -> None:
    net = network({"Network": "10.85.0.0/16", "Backend": {"Type": "vxlan"}})
    machine = net.machine()
    leasing_for(machine, 20)
    machine.start()
    until(15, lambda: machine.figure("flannel_lease_renewals_total") >= 2, lambda: machine.log)
    assert 12 < flanneld_json(machine, "status")["lease"]["expires"] <= 20
    assert f"{machine.subnet}, expires in " in flanneld(machine, "status")


def test_an_expired_lease_is_not_all_right(network: Networks) -> None:
    net = network({"Network": "10.85.0.0/16", "Backend": {"Type": "vxlan"}})
    machine = net.machine()
    leasing_for(machine, 4)
    machine.start()
    flanneld(machine, "status")
    net.lab.etcd.stop()
    try:
        until(15, lambda: "has probably expired" in machine.log, lambda: machine.log)
        assert machine.ready()
        text = flanneld(machine, "status", status=1)
        assert f"lease      {machine.subnet}, EXPIRED " in text
        assert ": followed" not in text
    finally:
        net.lab.etcd.start()
    until(20, lambda: "EXPIRED" not in flanneld_any(machine, "status"), lambda: machine.log)


@pytest.fixture
def nft(flannel_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts nft of Debian's packages on the machines' PATH."""
    root = unpacked("nftables-only", _NFT)
    libraries = next((root / "usr/lib").glob("*-linux-gnu"))
    program = tmp_path / "nft"
    program.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {root}/usr/sbin/nft "$@"\n')
    program.chmod(0o755)
    monkeypatch.setitem(flannel_lab.tools.env, "PATH", f"{tmp_path}:{flannel_lab.tools.env['PATH']}")


@pytest.mark.usefixtures("nft")
def test_cleanup_of_nftables(network: Networks) -> None:
    net = network({"Network": "10.81.0.0/16", "EnableNFTables": True, "Backend": {"Type": "vxlan"}})
    (machine,) = net.started(1)
    machine.exec("nft", "add", "table", "ip", "foreign")
    found = {one["what"]: one["level"] for one in json.loads(flanneld(machine, "check", "-json"))["findings"]}
    assert (found["nftables"], found["br_netfilter"]) == ("ok", "skipped")
    assert "would remove tables of nft (1)" in flanneld(machine, "cleanup", "-dry-run")
    machine.stop()
    flanneld(machine, "cleanup")
    assert machine.exec("nft", "list", "tables").split("\n") == ["table ip foreign", ""]


def test_two_daemons_of_one_machine_are_told_apart(network: Networks) -> None:
    first = network({"Network": "10.82.0.0/16", "Backend": {"Type": "vxlan"}})
    (one,) = first.started(1)
    second = network({"Network": "10.83.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}})
    two = second.machine(beside=one)
    two.start()
    assert two.stop() == 0
    foreseen = flanneld(two, "cleanup", "-dry-run", "-force")
    everything = flanneld(two, "cleanup", "-dry-run", "-force", "-all")
    counts = [int(found) for text in (foreseen, everything) for found in re.findall(r"iptables-nft \((\d+)\)", text)]
    assert len(counts) == 2
    assert 0 < counts[0] < counts[1], "of the other network there are as many"
    flanneld(two, "cleanup", status=1)
    text = flanneld(two, "cleanup", "-force")
    assert "removed device flannel.2" in text
    assert "left: flannel.1: it has no address of 10.83.0.0/16" in text
    assert "of another network" in text
    flanneld(one, "status")
    assert "10.82.0.0/16" in one.exec("iptables-save")
    assert "10.83." not in one.exec("iptables-save")
