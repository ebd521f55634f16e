"""Packet filter rules of a machine: taking out chains by their names, in all variants of iptables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Callable, Iterator, NamedTuple

# A session of Ansible's may lack the directories of system programs.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_FAMILIES = ("iptables", "ip6tables")
_TARGET = re.compile(r" (?:-j|-g|--jump|--goto) (\S+)")
_SECONDS = 60


class Cut(NamedTuple):
    """`script` for iptables-restore --noflush; `chains` and `rules` that it removes, `kept` what it leaves and why."""

    script: str
    chains: tuple[str, ...]
    rules: tuple[str, ...]
    kept: tuple[str, ...]


def cut(saved: str, ours: Callable[[str], bool], loose: Callable[[str], bool]) -> Cut:
    """How to take our chains, the rules that lead there, and rules that are `loose` out of an iptables-save. Pure.

    `ours`: a chain's name -> whether it is to go. `loose`: a rule in a chain of others -> whether it is to go.
    """
    script: list[str] = []
    gone: list[str] = []
    removed: list[str] = []
    kept: list[str] = []
    for table, chains, rules in _tables(saved):
        doomed = [chain for chain in chains if ours(chain)]
        filled = {chain for chain in doomed if _is_for_people(chain) and _has_own_rules(chain, rules)}
        kept += [f"the chain {chain} with rules of an administrator" for chain in sorted(filled)]
        doomed = [chain for chain in doomed if chain not in filled]
        going = set(doomed)
        leading = []
        for rule in rules:
            chain = rule.split()[1]
            target = _TARGET.search(rule)
            if chain not in going and ((target and target[1] in going) or loose(rule)):
                leading.append(rule)
        if not doomed and not leading:
            continue
        script.append(f"*{table}")
        script += [f":{chain} - [0:0]" for chain in doomed]
        script += [f"-D{rule[2:]}" for rule in leading]
        script += [f"-X {chain}" for chain in doomed]
        script.append("COMMIT")
        gone += doomed
        removed += leading
    return Cut("".join(f"{line}\n" for line in script), tuple(gone), tuple(removed), tuple(kept))


def _tables(saved: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(table, own chains, rules) of an iptables-save."""
    table = ""
    chains: list[str] = []
    rules: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table, chains, rules = line[1:].strip(), [], []
        elif line.startswith(":") and line.split()[1] == "-":
            chains.append(line[1:].split()[0])
        elif line.startswith("-A "):
            rules.append(line)
        elif line == "COMMIT":
            yield table, chains, rules


def _is_for_people(chain: str) -> bool:
    return chain == "DOCKER-USER"


def _has_own_rules(chain: str, rules: list[str]) -> bool:
    return any(rule.startswith(f"-A {chain} ") and rule != f"-A {chain} -j RETURN" for rule in rules)


def programs() -> list[str]:
    """The variants of iptables that this machine has; one rule set may lie in either kernel interface."""
    found = []
    for family in _FAMILIES:
        variants = [f"{family}-legacy", f"{family}-nft"]
        there = [name for name in variants if shutil.which(f"{name}-save", path=PATH)]
        found += there or [name for name in (family,) if shutil.which(f"{name}-save", path=PATH)]
    return found


def saved(program: str) -> str:
    """All rules of a variant; empty where the kernel does not have it."""
    reply = _run([f"{program}-save"])
    return reply.stdout if reply.returncode == 0 else ""


def remove(program: str, ours: Callable[[str], bool], loose: Callable[[str], bool]) -> None:
    """Take chains and rules out, each table in one step. Raises OSError."""
    script = cut(saved(program), ours, loose).script
    if not script:
        return
    reply = _run([f"{program}-restore", "-w", "20", "--noflush"], script)
    if reply.returncode:
        raise OSError(f"{program}-restore: {reply.stderr.strip() or reply.returncode}")


def _run(argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=False, timeout=_SECONDS, env=environment
    )
