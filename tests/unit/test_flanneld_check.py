from __future__ import annotations

import re
from pathlib import Path

import pytest

from flanneld import check, firewall, surroundings
from flanneld.backend.base import Underlay
from flanneld.backend.registry import make_backend
from flanneld.errors import ConfigError, UsageError
from flanneld.subnet.config import parse_config
from flanneld.surroundings import FAILED, OK, SKIPPED, WARNING, Finding


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def levels(found: list[Finding]) -> list[str]:
    return [one.level for one in found]


def test_forwarding(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/sys/net/ipv4/ip_forward": "0\n", "proc/sys/net/ipv6/conf/all/forwarding": "1\n"})
    four, six = surroundings.forwarding(root, [4, 6])
    assert (four.level, six.level) == (FAILED, OK)
    assert "sysctl -w net.ipv4.ip_forward=1" in four.todo


def test_bridge_netfilter(tmp_path: Path) -> None:
    assert levels(surroundings.bridge_netfilter(tmp_path, [4], nftables=True)) == [SKIPPED]
    missing = surroundings.bridge_netfilter(tmp_path, [4], nftables=False)[0]
    assert (missing.level, "modprobe br_netfilter" in missing.todo) == (FAILED, True)
    root = write(
        tmp_path,
        {"proc/sys/net/bridge/bridge-nf-call-iptables": "1", "proc/sys/net/bridge/bridge-nf-call-ip6tables": "0"},
    )
    assert levels(surroundings.bridge_netfilter(root, [4, 6], nftables=False)) == [OK, WARNING]


@pytest.mark.parametrize(
    ("for_all", "for_one", "several", "level"),
    [
        ("0", "0", True, OK),
        ("1", "0", True, WARNING),
        ("0", "1", True, WARNING),
        ("1", "2", True, OK),
        ("2", "1", True, OK),
        ("1", "1", False, OK),
    ],
)
def test_reverse_path(tmp_path: Path, for_all: str, for_one: str, several: bool, level: str) -> None:
    conf = "proc/sys/net/ipv4/conf"
    root = write(tmp_path, {f"{conf}/all/rp_filter": for_all, f"{conf}/flannel.1/rp_filter": for_one})
    assert levels(surroundings.reverse_path(root, ["flannel.1"], several_ways=several)) == [level]


def test_firewalls(tmp_path: Path) -> None:
    assert surroundings.firewalls(tmp_path, 8472) == []
    root = write(tmp_path, {"proc/77/comm": "firewalld\n", "etc/ufw/ufw.conf": "# x\nENABLED=yes\n"})
    first, second = surroundings.firewalls(root, 8472)
    assert "--add-port=8472/udp" in first.todo
    assert "ufw allow 8472/udp" in second.todo
    write(tmp_path, {"etc/ufw/ufw.conf": "ENABLED=no\n"})
    assert len(surroundings.firewalls(root, 0)) == 1


def test_network_manager_must_be_told(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/9/comm": "NetworkManager\n"})
    assert levels(surroundings.managers(root, ["flannel.1"])) == [WARNING]
    conf = "[keyfile]\nunmanaged-devices=interface-name:cni*;interface-name:flannel*\n"
    write(tmp_path, {"etc/NetworkManager/conf.d/flannel.conf": conf})
    assert levels(surroundings.managers(root, ["flannel.1"])) == [OK]


@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({}, OK),
        ({"etc/systemd/network/50-all.network": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}, WARNING),
        ({"usr/lib/systemd/network/50-eth.network": "[Match]\nType=ether\n[Network]\nDHCP=yes\n"}, WARNING),
        ({"etc/systemd/network/50-eth.network": "[Match]\nName=en* eth*\n"}, OK),
        ({"etc/systemd/network/50-not.network": "[Match]\nName=!flannel* cni*\n"}, OK),
        ({"etc/systemd/network/50-nic.network": "[Match]\nType=ether\nKind=!*\n"}, OK),
        ({"etc/systemd/network/50-none.network": "[Network]\nDHCP=yes\n"}, OK),
        (
            {
                "run/systemd/network/50-all.network": "[Match]\nName=*\n",
                "etc/systemd/network/05-flannel.network": "[Match]\nName=flannel*\n[Link]\nUnmanaged=true\n",
            },
            OK,
        ),
        (
            {
                "usr/lib/systemd/network/50-all.network": "[Match]\nName=*\n",
                "etc/systemd/network/50-all.network": "[Match]\nName=eth0\n",
            },
            OK,
        ),
    ],
)
def test_networkd(tmp_path: Path, files: dict[str, str], level: str) -> None:
    root = write(tmp_path, {**files, "proc/9/comm": "systemd-network\n"})
    assert levels(surroundings.managers(root, ["flannel.1"])) == [level]
    (root / "proc/9/comm").write_text("other\n")
    assert levels(surroundings.managers(root, ["flannel.1"])) == [OK], "files without networkd mean nothing"


def test_a_link_file_that_changes_the_mac(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"etc/systemd/network/10-x.link": "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n"}
    )
    assert levels(surroundings.managers(root, ["flannel.1"])) == [OK]
    write(
        tmp_path,
        {"etc/systemd/network/05-x.link": "[Match]\nOriginalName=flannel.1\n[Link]\nMACAddress=02:00:00:00:00:01\n"},
    )
    assert levels(surroundings.managers(root, ["flannel.1"])) == [WARNING]


OPEN = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
DOCKER = OPEN.replace("FORWARD ACCEPT", "FORWARD DROP")
STRICT = OPEN.replace(
    "COMMIT", "-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\nCOMMIT"
)


def test_rules_that_drop() -> None:
    assert firewall.dropping(OPEN, "iptables", 8472, ready=False) == []
    assert levels(firewall.dropping(DOCKER, "iptables", 8472, ready=False)) == [WARNING]
    assert levels(firewall.dropping(DOCKER, "iptables", 8472, ready=True)) == [FAILED]
    jump = '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD\nCOMMIT'
    assert firewall.dropping(DOCKER.replace("COMMIT", jump), "iptables", 8472, ready=True) == []
    (strict,) = firewall.dropping(STRICT, "iptables", 8472, ready=False)
    assert "iptables -I INPUT -p udp --dport 8472 -j ACCEPT" in strict.todo
    allowed = STRICT.replace("-A INPUT -j", "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n-A INPUT -j")
    assert firewall.dropping(allowed, "iptables", 8472, ready=False) == []
    assert firewall.dropping(STRICT, "iptables", 0, ready=False) == []
    assert levels(firewall.dropping(STRICT.replace("8472", ""), "iptables", 847, ready=False)) == [WARNING]


def test_the_lines_end_in_a_verdict() -> None:
    found = [Finding(OK, "a", "fine"), Finding(FAILED, "bcd", "wrong", "do this")]
    assert check.lines(found, "vxlan") == [
        "ok       a    fine",
        "FAILED   bcd  wrong",
        "              -> do this",
        "",
        "vxlan does not work here as it is: 1 FAILED.",
    ]
    assert check.lines(found[:1], "vxlan")[-1] == "This machine can do vxlan."


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no daemon to take the configuration from"),
        (["-backend=vxlam"], "there is no backend 'vxlam'"),
        (["-config=/nowhere"], "cannot be read"),
        (["-backend=vxlan", "-public-ip=x"], "not an IPv4 address"),
        (["-backend=vxlan", "-public-ipv6=1.2.3.4"], "not an IPv6 address"),
        (["-backend=vxlan", "-iface-regex=("], "not a regular expression"),
        (["-backend=vxlan", "-iface-can-reach=x"], "not an IPv4 address"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, words: list[str], expected: str) -> None:
    with pytest.raises((UsageError, ConfigError), match=re.escape(expected)):
        check.run([*words, f"-subnet-file={tmp_path}/subnet.env"], {})


def test_a_config_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match="it is not text"):
        check.run([f"-config={tmp_path}/c", f"-subnet-file={tmp_path}/subnet.env"], {})


def test_an_mtu_that_is_larger_than_the_interfaces() -> None:
    config = parse_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}')
    underlay = Underlay("eth0", 1500, {4: "192.168.60.1"})
    (found,) = check._mtu(config, make_backend(config, underlay), underlay)
    assert (found.level, "9000" in found.seen, "1500" in found.todo) == (FAILED, True, True)
