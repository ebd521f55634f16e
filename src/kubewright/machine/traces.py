"""What components leave in the kernel's network beside chains: devices, sets, virtual servers, flannel's own trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from . import files, leavings, rules

_COMMAND_SECONDS = 90
_DOCKER_BRIDGE = re.compile(r"docker0|br-[0-9a-f]{12}")
_DOCKER_RULE = re.compile(
    r"-A (?:FORWARD (?:-i (\S+) )?(?:! )?-o (\S+) (?:-m conntrack --ctstate RELATED,ESTABLISHED )?-j (?:ACCEPT|DROP)"
    r"|POSTROUTING -s \S+ ! -o (\S+) -j MASQUERADE)"
)


def is_docker_rule(rule: str) -> bool:
    """Whether Docker writes such a rule for its bridges, outside of its chains."""
    found = _DOCKER_RULE.fullmatch(rule)
    return found is not None and any(_DOCKER_BRIDGE.fullmatch(device) for device in found.groups() if device)


def devices(name: str, foreign: list[str]) -> list[str]:
    """Devices of a component, ports of a bridge before it, but for those of `foreign`, which were there before."""
    there = sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else []
    own = {
        "docker": [device for device in there if _DOCKER_BRIDGE.fullmatch(device)],
        "kubelet": ["cni0"],
        "kube-proxy": ["kube-ipvs0"],
        # Where its own clean-up is gone already.
        "flanneld": []
        if os.path.exists(leavings.FLANNELD)
        else [d for d in there if re.fullmatch(r"flannel[.\d]\d*", d)],
    }.get(name, [])
    found = []
    for device in own:
        if device in there and device not in foreign:
            ports = f"/sys/class/net/{device}/brif"
            found += (
                [port for port in sorted(os.listdir(ports)) if port.startswith("veth")] if os.path.isdir(ports) else []
            )
            found.append(device)
    return found


def _run(*argv: str) -> str:
    environment = {**os.environ, "PATH": rules.PATH, "LC_ALL": "C"}
    reply = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS, env=environment)
    if reply.returncode:
        raise OSError(f"{' '.join(argv)}: {reply.stderr.strip() or reply.stdout.strip() or reply.returncode}")
    return reply.stdout


def delete_device(name: str) -> None:
    """Delete a network device; one of pods may have gone with them meanwhile."""
    if os.path.exists(f"/sys/class/net/{name}"):
        _run("ip", "link", "delete", name)


def ipsets() -> list[str]:
    """Names of all address sets."""
    if not shutil.which("ipset", path=rules.PATH):
        return []
    try:
        return _run("ipset", "list", "-n").split()
    except OSError:
        return []  # the kernel has none


def destroy_ipset(name: str) -> None:
    """Delete an address set."""
    _run("ipset", "destroy", name)


def virtual_servers() -> list[str]:
    """Virtual servers of ipvs at addresses that kube-proxy has put on its device, as `tcp 10.0.0.1:443`."""
    if not os.path.exists("/sys/class/net/kube-ipvs0") or not shutil.which("ipvsadm", path=rules.PATH):
        return []
    own = set(re.findall(r"inet (\S+?)/", _run("ip", "-4", "addr", "show", "dev", "kube-ipvs0")))
    found = []
    for line in files.read("/proc/net/ip_vs").splitlines():
        server = re.match(r"(TCP|UDP|SCTP)\s+([0-9A-F]{8}):([0-9A-F]{4}) ", line)
        if server:
            address = ".".join(str(byte) for byte in bytes.fromhex(server[2]))
            if address in own:
                found.append(f"{server[1].lower()} {address}:{int(server[3], 16)}")
    return found


def delete_virtual_server(server: str) -> None:
    """Delete a virtual server, as `virtual_servers` names it."""
    protocol, _, address = server.partition(" ")
    _run("ipvsadm", "-D", {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}[protocol], address)


def forward_policy() -> str:
    """Policy of the chain FORWARD; empty where that cannot be told."""
    try:
        first = _run("iptables", "-w", "20", "-S", "FORWARD").partition("\n")[0].split()
    except OSError:
        return ""
    return first[2] if first[:2] == ["-P", "FORWARD"] else ""


def set_forward(target: str) -> None:
    """Set the policy of FORWARD to the last word of `target`."""
    _run("iptables", "-w", "20", "-P", "FORWARD", target.rpartition(" ")[2])


def _flannel_arguments() -> list[str]:
    # After a reboot nothing tells the network any more: then every trace of a flannel is ours, whose unit is ours.
    everything = [] if os.path.exists("/run/flannel/subnet.env") else ["-all"]
    return [leavings.FLANNELD, "cleanup", *everything, f"-cni-conf={leavings.CONFLIST}"]


def flannel() -> list[str]:
    """What flanneld's own clean-up would remove, in its words."""
    if not os.path.exists(leavings.FLANNELD):
        return []
    try:
        said = _run(*_flannel_arguments(), "-dry-run", "-force")
    except OSError:
        return []
    return [line.partition("would remove ")[2] for line in said.splitlines() if line.startswith("would remove ")]


def clean_flannel() -> None:
    """Have flanneld remove its own trace."""
    _run(*_flannel_arguments())
