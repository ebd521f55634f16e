"""Chains of ours are taken out of a real kernel, in every variant of iptables; those of others stay."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CODE = """
import subprocess, sys
from kubewright.machine import places, removal, rules

def sh(text):
    subprocess.run(["sh", "-ec", text], check=True)

def listed(program):
    lines = rules.saved(program).splitlines()
    return sorted(line for line in lines if line.startswith(("-A", ":")) and " ACCEPT " not in line)

for program in rules.programs():
    block = "198.51.100.0/24" if program.startswith("iptables") else "2001:db8::/64"
    sh(f'''
        {program} -N FOREIGN; {program} -A FOREIGN -s {block} -j DROP; {program} -A FORWARD -j FOREIGN
        {program} -t nat -A POSTROUTING -s {block} ! -o br0 -j MASQUERADE
    ''')
    before = listed(program)
    sh(f'''
        {program} -t nat -N KUBE-SERVICES; {program} -t nat -N KUBE-SVC-1; {program} -N DOCKER; {program} -N CNI-FORWARD
        {program} -t nat -A KUBE-SERVICES -m comment --comment "default/a b" -j KUBE-SVC-1
        {program} -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
        {program} -t nat -A POSTROUTING -s {block} ! -o docker0 -j MASQUERADE
        {program} -A FORWARD -o docker0 -j DOCKER
        {program} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
        {program} -A FOREIGN -j CNI-FORWARD
    ''')
    for name in ("kube-proxy", "kubelet", "docker"):
        rules.remove(program, *removal.Removal([name], places.Options())._rule_tests(name, {}))
    assert listed(program) == before, (program, listed(program), before)
    rules.remove(program, lambda _: False, lambda _: False)
    print(program)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
def test_chains_go_from_every_variant_and_others_stay() -> None:
    reply = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _CODE], capture_output=True, text=True, check=False, timeout=120
    )
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.split() == ["iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"]
