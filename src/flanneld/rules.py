"""The iptables rules: which there must be, whether they are there, and the one transaction that makes it so.

The list is the Go daemon's (v0.21.3 and newer): chains of its own, entered from POSTROUTING and FORWARD. A rule is a
tuple of words as `iptables-save` prints it after `-A CHAIN`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

from flanneld.config import Network
from flanneld.errors import RulesError

Rule = Tuple[str, ...]
_TIMEOUT = 30


class Chain(NamedTuple):
    """A chain of the daemon's: its rules in order, and the built-in chain that jumps to it with `jump`."""

    table: str
    name: str
    parent: str
    rules: Tuple[Rule, ...]
    jump: Rule


def _commented(comment: str, before: Sequence[str], target: Sequence[str]) -> Rule:
    return (*before, "-m", "comment", "--comment", comment, "-j", *target)


def chains(network: Network, subnet: Network, *, masquerade: bool, forward: bool, random_fully: bool) -> List[Chain]:
    """Return the chains for `subnet`, this machine's part of `network`."""
    n, s = str(network), str(subnet)
    found: List[Chain] = []
    if masquerade:
        comment = "flanneld masq"
        leave = ("MASQUERADE", "--random-fully") if random_fully else ("MASQUERADE",)
        rules = (
            _commented(comment, ("-m", "mark", "--mark", "0x4000/0x4000"), ("RETURN",)),
            _commented(comment, ("-s", s, "-d", n), ("RETURN",)),
            _commented(comment, ("-s", n, "-d", s), ("RETURN",)),
            _commented(comment, ("!", "-s", n, "-d", s), ("RETURN",)),
            _commented(comment, ("-s", n, "!", "-d", "224.0.0.0/4"), leave),
            _commented(comment, ("!", "-s", n, "-d", n), leave),
        )
        jump = _commented(comment, (), ("FLANNEL-POSTRTG",))
        found.append(Chain("nat", "FLANNEL-POSTRTG", "POSTROUTING", rules, jump))
    if forward:
        comment = "flanneld forward"
        rules_forward = (
            _commented(comment, ("-s", n), ("ACCEPT",)),
            _commented(comment, ("-d", n), ("ACCEPT",)),
        )
        jump = _commented(comment, (), ("FLANNEL-FWD",))
        found.append(Chain("filter", "FLANNEL-FWD", "FORWARD", rules_forward, jump))
    return found


Saved = Mapping[Tuple[str, str], List[Rule]]
"""What `iptables-save` printed: the rules by (table, chain); declared chains without rules have an empty list."""


def parse_save(text: str) -> Saved:
    """Parse the output of `iptables-save`."""
    saved: Dict[Tuple[str, str], List[Rule]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            saved.setdefault((table, line[1:].split()[0]), [])
        elif line.startswith("-A ") and "lannel" in line.lower():
            words = shlex.split(line)
            saved.setdefault((table, words[1]), []).append(tuple(words[2:]))
        elif line.startswith("-A "):
            saved.setdefault((table, line.split(None, 2)[1]), []).append(())
    return saved


def differences(wanted: Sequence[Chain], saved: Saved) -> List[str]:
    """Return in words what is missing, out of order or doubled; none when all is as it should be."""
    found: List[str] = []
    for chain in wanted:
        have = saved.get((chain.table, chain.name))
        if have is None:
            found.append(f"chain {chain.name} is missing")
        elif have != list(chain.rules):
            found.append(f"chain {chain.name} has other rules than it should")
        jumps = _jumps(chain, saved)
        if jumps != [chain.jump]:
            found.append(f"{chain.parent} jumps to {chain.name} {len(jumps)} times instead of once")
    return found


def transaction(wanted: Sequence[Chain], saved: Saved) -> str:
    """Return the input of `iptables-restore --noflush` that turns `saved` into what is wanted, and nothing else."""
    lines: List[str] = []
    for chain in wanted:
        jumps = _jumps(chain, saved)
        lines += [f"*{chain.table}", f":{chain.name} - [0:0]"]
        if jumps != [chain.jump]:
            lines += [_line("-D", chain.parent, jump) for jump in jumps]
            lines.append(_line("-A", chain.parent, chain.jump))
        lines += [_line("-A", chain.name, rule) for rule in chain.rules]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _jumps(chain: Chain, saved: Saved) -> List[Rule]:
    return [rule for rule in saved.get((chain.table, chain.parent), []) if rule[-2:] == ("-j", chain.name)]


def _line(verb: str, chain: str, rule: Rule) -> str:
    return " ".join([verb, chain, *(f'"{word}"' if " " in word else word for word in rule)])


def supports_random_fully(version: str) -> bool:
    """Tell whether an iptables of this `--version` output knows --random-fully (1.6.2 and newer)."""
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", version)
    return bool(match) and tuple(map(int, match.groups())) >= (1, 6, 2) if match else False


class Iptables:
    """Runs iptables, whichever of its two kinds is on PATH; belongs to one thread."""

    def __init__(
        self, network: Network, subnet: Network, *, masquerade: bool, forward: bool, random_fully: bool
    ) -> None:
        self._wanted: List[Chain] = []
        if not masquerade and not forward:
            return
        for command in ("iptables", "iptables-save", "iptables-restore"):
            if shutil.which(command) is None:
                raise RulesError(
                    f"{command} is not on PATH",
                    "install iptables, or run with -ip-masq=false -iptables-forward-rules=false",
                )
        if masquerade and random_fully:
            random_fully = supports_random_fully(_run(["iptables", "--version"]))
        self._wanted = chains(network, subnet, masquerade=masquerade, forward=forward, random_fully=random_fully)

    def ensure(self) -> List[str]:
        """Make the rules as they should be; returns what was wrong. Raises RulesError."""
        if not self._wanted:
            return []
        saved = self._save()
        wrong = differences(self._wanted, saved)
        if wrong:
            _run(["iptables-restore", "--noflush", "-w", "10"], transaction(self._wanted, saved))
            self._learn()
        return wrong

    def _save(self) -> Saved:
        return parse_save("".join(_run(["iptables-save", "-t", chain.table]) for chain in self._wanted))

    def _learn(self) -> None:
        # Versions of iptables print one rule in different ways; what it prints for ours is the form to compare with.
        saved = self._save()
        for position, chain in enumerate(self._wanted):
            printed, jumps = saved.get((chain.table, chain.name), []), _jumps(chain, saved)
            if len(printed) != len(chain.rules) or len(jumps) != 1:
                raise RulesError(f"the rules of {chain.name} are not there after they were set")
            self._wanted[position] = chain._replace(rules=tuple(printed), jump=jumps[0])


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise RulesError(f"{command[0]} did not end within {_TIMEOUT} s", "who holds the xtables lock?") from None
    except OSError as error:
        raise RulesError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise RulesError(f"{' '.join(command)} failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
