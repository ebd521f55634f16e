from __future__ import annotations

from pathlib import Path

import pytest

from kubewright import proxymode
from kubewright.machine import facts


@pytest.mark.parametrize(
    ("configured", "ip_vs", "module", "loads", "expected"),
    [
        # A first run, by what the kernel has and what sysprep is about to load.
        ("", False, False, False, "iptables"),
        ("", True, False, False, "ipvs"),
        ("", False, True, False, "iptables"),
        ("", False, True, True, "ipvs"),
        ("", False, False, True, "iptables"),
        # A second run keeps it, whatever has been loaded meanwhile.
        ("iptables", True, True, True, "iptables"),
        ("ipvs", False, False, False, "ipvs"),
        ("nonsense", False, False, False, "iptables"),
    ],
)
def test_auto(configured: str, ip_vs: bool, module: bool, loads: bool, expected: str) -> None:
    known = {"configured": configured, "ip_vs": ip_vs, "ip_vs_module": module}
    assert proxymode.mode("auto", known, loads_ipvs=loads) == expected


@pytest.mark.parametrize("wanted", proxymode.MODES)
def test_what_the_user_says_is_it(wanted: str) -> None:
    known = {"configured": "iptables", "ip_vs": True, "ip_vs_module": True}
    assert proxymode.mode(wanted, known, loads_ipvs=True) == wanted


def test_what_a_machine_knows() -> None:
    template = (
        Path(__file__).parent.parent.parent / "roles/kube_proxy/templates/opt/kubernetes/cfg/kube-proxy-config.yml.j2"
    )
    config = template.read_text().replace("{{ kube_proxy_effective_mode }}", "ipvs")
    assert facts.proxy_mode(config) == "ipvs"
    assert facts.proxy_mode("") == ""
    listed = "kernel/net/netfilter/ipvs/ip_vs_rr.ko.xz: kernel/net/netfilter/ipvs/ip_vs.ko.xz\n"
    assert not facts.has_module("ip_vs", listed)
    assert facts.has_module("ip_vs", listed + "kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/lib/libcrc32c.ko\n")
