from __future__ import annotations

from test_topology import build, build_ha

from kubewright import ports


def test_a_machine_holds_only_what_its_part_needs() -> None:
    cluster = build()
    assert ports.holders(cluster.machine("master01"), 6444)[6444] == "kube-apiserver"
    assert 6443 not in ports.holders(cluster.machine("node01"), 6443)
    assert set(ports.holders(cluster.machine("node01"), 6443)) <= set(ports.watched(6443))


def test_a_firewall_opens_what_others_must_reach_and_nothing_else() -> None:
    cluster = build()
    master = ports.firewall(cluster.machine("master01"), 6444)
    assert master == ["2379/tcp", "2380/tcp", "6444/tcp"]
    node = ports.firewall(cluster.machine("node01"), 6443, {"Type": "vxlan", "Port": 4789}, ["9100/tcp", "10250/tcp"])
    assert "4789/udp" in node
    assert "4789/udp" in ports.firewall(cluster.machine("node01"), 6443, {"type": "vxlan", "port": 4789})
    assert "8472/udp" in ports.firewall(cluster.machine("node01"), 6443, {"Type": "vxlan", "Port": 0})
    assert "8285/udp" in ports.firewall(cluster.machine("node01"), 6443, {"Type": "UDP"})
    assert not [port for port in ports.firewall(cluster.machine("node01"), 6443, {"Type": "host-gw"}) if port[0] == "8"]
    assert "10248/tcp" not in node
    assert node.count("10250/tcp") == 1
    assert node[-1] == "9100/tcp"


def test_who_stands_in_front_of_the_masters() -> None:
    lb = build_ha().machine("lb01")
    assert ports.firewall(lb, 6443) == ["6443/tcp", "vrrp"]
    assert ports.holders(lb, 6443) == {6443: "nginx (kube-lb)"}
    node = build_ha(lb=False).machine("node01")
    assert ports.holders(node, 6443)[6443] == "nginx (kube-lb)"
    assert "6443/tcp" not in ports.firewall(node, 6443)
