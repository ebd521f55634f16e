"""Whether the traffic rules can be set on a machine, and whether rules of others drop what must pass."""

from __future__ import annotations

import shutil
from typing import Dict, List, Mapping, Sequence

from flanneld.errors import RulesError
from flanneld.rules.command import run as run_program
from flanneld.subnet.config import NetworkConfig
from flanneld.surroundings import FAILED, OK, WARNING, Finding


def rules(config: NetworkConfig, port: int, *, ready: bool) -> List[Finding]:
    """Judge the program for the traffic rules, and rules of others that drop what must pass.

    port: the backend's, 0 = none. ready: the daemon has said that it is.
    """
    found: List[Finding] = []
    if config.nftables:
        found.append(_usable(["nft", "list", "tables"], "nftables"))
    for version in sorted(config.networks):
        name = "iptables" if version == 4 else "ip6tables"
        if config.nftables:
            if shutil.which(f"{name}-save") is None:
                continue
        else:
            found.append(_usable([name, "-w", "5", "-t", "nat", "-S", "POSTROUTING"], name))
        try:
            saved = run_program([f"{name}-save", "-t", "filter"])
        except RulesError:
            continue  # said already, or not needed
        found += dropping(saved, name, port, ready=ready)
    return found


def _usable(command: Sequence[str], what: str) -> Finding:
    try:
        run_program(command)
    except RulesError as error:
        return Finding(FAILED, what, error.message, error.hint)
    return Finding(OK, what, "is there, and works")


def dropping(saved: str, what: str, port: int, *, ready: bool) -> List[Finding]:
    """Judge what `iptables-save -t filter` printed: chains that drop what no rule allows."""
    chains: Dict[str, List[str]] = {"INPUT": [], "FORWARD": []}
    policies: Dict[str, str] = {}
    for line in saved.splitlines():
        words = line.split()
        if line.startswith(":") and len(words) > 1:
            policies[words[0][1:]] = words[1]
        elif line.startswith("-A") and len(words) > 1 and words[1] in chains:
            chains[words[1]].append(line)
    found = []
    if _closed("FORWARD", policies, chains) and not any("flanneld forward" in one for one in chains["FORWARD"]):
        todo = "flanneld accepts its network unless it runs with -iptables-forward-rules=false"
        level = WARNING if not ready else FAILED
        found.append(Finding(level, what, "FORWARD drops what no rule allows, and none of flanneld is there", todo))
    mentioned = any(f"--dport {port} " in f"{one} " for one in saved.splitlines())
    if port and _closed("INPUT", policies, chains) and not mentioned:
        todo = f"`{what} -I INPUT -p udp --dport {port} -j ACCEPT`, unless another rule lets the machines in"
        found.append(Finding(WARNING, what, f"INPUT drops what no rule allows, and none names UDP port {port}", todo))
    return found


def _closed(chain: str, policies: Mapping[str, str], chains: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a chain ends in refusing everything."""
    last = chains[chain][-1].split() if chains[chain] else []
    everything = last[2:4] in (["-j", "DROP"], ["-j", "REJECT"])
    return everything or policies.get(chain) == "DROP"
