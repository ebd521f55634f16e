"""The CNI configuration list, given to the real bridge plugin."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_packages import unpacked
from flannel_lab import run

from flanneld.outputs import SubnetFile, cni_conflist
from flanneld.subnet.config import Network

V4 = (ipaddress.ip_network("10.244.0.0/16"), ipaddress.ip_network("10.244.7.0/24"))
V6 = (ipaddress.ip_network("fd00:10:244::/48"), ipaddress.ip_network("fd00:10:244:7::/64"))


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    names = (f"kwsurf{os.getpid()}-host", f"kwsurf{os.getpid()}-pod")
    try:
        for name in names:
            run("ip", "netns", "add", name)
        yield names
    finally:
        for name in names:
            run("ip", "netns", "del", name, check=False)


@pytest.mark.parametrize("families", [(V4,), (V6,), (V4, V6)], ids=["ipv4", "ipv6", "both"])
def test_a_pod_gets_an_address_and_a_default_route_of_every_family(
    namespaces: tuple[str, str], tmp_path: Path, families: tuple[tuple[Network, Network], ...]
) -> None:
    host, pod = namespaces
    networks = {network.version: network for network, _ in families}
    subnets = {subnet.version: subnet for _, subnet in families}
    document = json.loads(cni_conflist(SubnetFile(networks, subnets, 1400, ip_masq=True)))
    plugin = {**document["plugins"][0], "cniVersion": document["cniVersion"], "name": document["name"]}
    plugin["ipam"]["dataDir"] = str(tmp_path)  # the runtime's own lies in /var/lib/cni of the machine
    plugins = unpacked("cni", ["containernetworking-plugins"]) / "usr/lib/cni"
    done = subprocess.run(
        ["ip", "netns", "exec", host, str(plugins / "bridge")],
        input=json.dumps(plugin),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "one",
            "CNI_NETNS": f"/var/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(plugins),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for subnet in subnets.values():
        family = f"-{subnet.version}"
        (found,) = json.loads(run("ip", "-n", pod, family, "-j", "addr", "show", "dev", "eth0", "scope", "global"))
        assert found["mtu"] == 1400
        (address,) = filter(None, found["addr_info"])  # ip shows what `scope` hides as an empty object
        assert ipaddress.ip_address(address["local"]) in subnet
        gateway = str(subnet.network_address + 1)
        (route,) = json.loads(run("ip", "-n", pod, family, "-j", "route", "show", "default"))
        assert (route["gateway"], route["dev"]) == (gateway, "eth0")
        bridge = run("ip", "-n", host, family, "addr", "show", "dev", "cni0")
        assert f" {gateway}/{subnet.prefixlen} " in bridge
