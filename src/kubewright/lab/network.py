"""The lab's network: one bridge in a network namespace of its own, so that nothing leaks into or out of the host."""

from __future__ import annotations

import json
from typing import Any

from kubewright.errors import UserError
from kubewright.lab.model import BRIDGE, LabSpec
from kubewright.lab.run import run, succeeds


def ensure_network(spec: LabSpec) -> bool:
    """Make what is missing of namespace and bridge; return whether anything was.

    `UserError` when the bridge is there with another address: machines that run know only that one.
    """
    changed = False
    if not succeeds(["ip", "-n", spec.namespace, "link", "show", "lo"]):
        if spec.namespace_path.exists():
            # The name outlived its namespace: a crash, or /run kept over a reboot.
            run(["ip", "netns", "delete", spec.namespace])
        run(["ip", "netns", "add", spec.namespace])
        changed = True
    link = ["ip", "-n", spec.namespace, "link"]
    if succeeds([*link, "show", BRIDGE]):
        _refuse_another_network(spec)
    else:
        # With an address of its own: else it takes that of a machine's wire, and loses it when the machine goes. Who
        # still knows the old one then talks to nobody for half a minute.
        mac = "02:00:" + ":".join(f"{byte:02x}" for byte in spec.gateway.ip.packed)
        run([*link, "add", BRIDGE, "address", mac, "type", "bridge", "stp_state", "0", "forward_delay", "0"])
        changed = True
    # A machine that is cut off must not hear an answer for the bridge's address on its own end of the wire. Frames
    # between machines are switched, not filtered. As a router, the bridge answers "unreachable" for the rest of the
    # world; were it silent, whoever asks for something outside would wait for a time-out.
    settings = ["net.ipv4.conf.all.arp_ignore=1", "net.bridge.bridge-nf-call-iptables=0", "net.ipv4.ip_forward=1"]
    inside = ["nsenter", f"--net={spec.namespace_path}"]
    run([*inside, "sysctl", "-q", "-e", "-w", *settings])
    run(["ip", "-n", spec.namespace, "address", "replace", str(spec.gateway), "dev", BRIDGE])
    run([*link, "set", "lo", "up"])
    run([*link, "set", BRIDGE, "up"])
    return changed


def _refuse_another_network(spec: LabSpec) -> None:
    addresses = [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in _links(["ip", "-j", "-4", "-n", spec.namespace, "address", "show", "dev", BRIDGE])
        for entry in link.get("addr_info", [])
    ]
    if addresses and str(spec.gateway) not in addresses:
        raise UserError(
            f"the lab that is up has the network {', '.join(addresses)}, the inventory wants {spec.gateway}",
            "take the lab down first: python -m kubewright.lab down",
        )


def remove_network(spec: LabSpec) -> None:
    """Remove the namespace, and with it the bridge."""
    if spec.namespace_path.exists():
        run(["ip", "netns", "delete", spec.namespace])


def switch_port(spec: LabSpec, leader: int) -> str:
    """Return the name of the lab's end of the wire to the machine whose PID 1 is `leader`."""
    inside = _links(["nsenter", f"--target={leader}", "--net", "ip", "-j", "link", "show", "host0"])
    index = inside[0]["link_index"]
    for link in _links(["ip", "-j", "-n", spec.namespace, "link", "show"]):
        if link["ifindex"] == index:
            return str(link["ifname"])
    raise UserError(f"the machine's interface host0 has no other end in {spec.namespace}", "reboot the machine")


def plug(spec: LabSpec, port: str, *, connected: bool) -> None:
    """Put a machine's wire into the bridge or take it out: no packet passes either way then."""
    where = ["master", BRIDGE] if connected else ["nomaster"]
    run(["ip", "-n", spec.namespace, "link", "set", "dev", port, *where, "up"])


def _links(command: list[str]) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(run(command))
    return links
