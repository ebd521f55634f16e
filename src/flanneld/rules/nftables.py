"""The nftables engine: tables of the daemon's own, `ip flannel-ipv4` and `ip6 flannel-ipv6`.

They are the Go daemon's tables and chains. Two of its rules are not followed: its RETURN for what comes from outside
to the own pods also takes what the machine itself sends to other pods, and it compares the whole mark instead of
kube-proxy's bit. The rules here are those of the iptables mode.

A base chain that accepts a packet does not keep another table from dropping it: where iptables has a FORWARD chain
with the policy DROP, the network must be permitted there.
"""

from __future__ import annotations

import json
import shutil
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.errors import RulesError
from flanneld.rules.command import run
from flanneld.rules.engine import Rules
from flanneld.rules.kernel_state import NftablesState, State, Watched
from flanneld.rules.spec import FORWARD, MASQUERADE, Rule, RuleSpec, chain_is_right, chain_to_be, wanted_rules
from flanneld.subnet.config import Network

FAMILIES = {4: "ip", 6: "ip6"}
TABLES = {4: "flannel-ipv4", 6: "flannel-ipv6"}
_MODULES = "nf_tables, nft_chain_nat, nft_masq"
_MARK = 0x4000
_MARKS = [{"&": [{"meta": meta}, _MARK]} for meta in ({"key": "mark"}, "mark")]


class Chain(NamedTuple):
    """A base chain: where the kernel calls it, and the comment of its rules."""

    name: str
    type: str
    hook: str
    priority: int
    comment: str


CHAINS = (
    Chain("postrtg", "nat", "postrouting", 100, MASQUERADE),
    Chain("forward", "filter", "forward", 0, FORWARD),
)


class Listed(NamedTuple):
    """A table as nft lists it: its base chains as (type, hook, priority, policy), and their rules."""

    chains: Mapping[str, Tuple[Any, ...]]
    rules: Mapping[str, List[Optional[Rule]]]


def parse_list(text: str) -> Listed:
    """Parse the output of `nft -j list table`; raises RulesError."""
    chains: Dict[str, Tuple[Any, ...]] = {}
    rules: Dict[str, List[Optional[Rule]]] = {}
    try:
        for item in json.loads(text)["nftables"]:
            if "chain" in item:
                one = item["chain"]
                chains[one["name"]] = tuple(one.get(key) for key in ("type", "hook", "prio", "policy"))
            elif "rule" in item:
                one = item["rule"]
                rules.setdefault(one["chain"], []).append(_parse_rule(one["expr"], one.get("comment", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RulesError(f"nft printed something unknown: {text[:100]!r}") from None
    return Listed(chains, rules)


def _parse_rule(expressions: Sequence[Mapping[str, Any]], comment: str) -> Optional[Rule]:
    """Return a rule's meaning, None when it has other expressions than those of ours."""
    try:
        return _meaning(expressions, comment)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _meaning(expressions: Sequence[Mapping[str, Any]], comment: str) -> Optional[Rule]:
    rule = Rule(comment, "")
    for expression in expressions:
        [(kind, value)] = expression.items()
        if kind == "match":
            matched = _parse_match(rule, value)
            if matched is None:
                return None
            rule = matched
        elif kind in {"return", "accept"} and value is None:
            rule = rule._replace(target=kind.upper())
        elif kind == "masquerade":
            flags = (value or {}).get("flags", [])
            if flags not in ([], "fully-random", ["fully-random"]):
                return None
            rule = rule._replace(target="MASQUERADE", random=bool(flags))
        else:
            return None
    return rule if rule.target else None


def _parse_match(rule: Rule, match: Mapping[str, Any]) -> Optional[Rule]:
    # nft 0.9.0 leaves an operator out that is understood, and has another form of meta.
    operator = match.get("op", "==")
    left, right, negated = match["left"], match["right"], operator == "!="
    if operator not in {"==", "!="}:
        return None
    if left in _MARKS and right == _MARK and not negated:
        return rule._replace(marked=True)
    field = left.get("payload", {}).get("field")
    if field not in {"saddr", "daddr"} or not isinstance(right, dict) or "prefix" not in right:
        return None
    prefix = f"{'!' if negated else ''}{right['prefix']['addr']}/{right['prefix']['len']}"
    return rule._replace(source=prefix) if field == "saddr" else rule._replace(destination=prefix)


def render(rule: Rule, family: str) -> str:
    """Return a rule in nft's language."""
    words = [f"meta mark & {_MARK:#x} == {_MARK:#x}"] if rule.marked else []
    for field, prefix in (("saddr", rule.source), ("daddr", rule.destination)):
        if prefix:
            words.append(f"{family} {field} " + (f"!= {prefix[1:]}" if prefix.startswith("!") else prefix))
    words.append(rule.target.lower())
    if rule.random:
        words.append("fully-random")
    return " ".join([*words, f'comment "{rule.comment}"'])


def to_wanted(
    listed: Optional[Listed],
    wanted: Mapping[str, Sequence[Rule]],
    networks: Optional[Sequence[Network]],
    version: int,
) -> Tuple[List[str], str]:
    """Return what is wrong with a table (None: there is none), and the commands of nft that set it right.

    `networks`: those whose rules are this daemon's, None: all. A table that has nothing to hold goes.
    """
    table = f"{FAMILIES[version]} {TABLES[version]}"
    have = listed or Listed({}, {})
    to_be = {chain: chain_to_be(have.rules.get(chain.name, []), wanted[chain.comment], networks) for chain in CHAINS}
    if not any(to_be.values()):
        return ([f"table {table} is there, but not wanted"], f"delete table {table}\n") if listed else ([], "")
    wrong = [] if listed else [f"table {table} is missing"]
    text = ""
    for chain, rules in to_be.items():
        fault, commands = _chain_to_wanted(have, chain, wanted[chain.comment], networks, rules, table)
        if fault and listed:
            wrong.append(fault)
        text += commands
    return wrong, f"add table {table}\n{text}" if wrong else ""


def _chain_to_wanted(
    have: Listed,
    chain: Chain,
    wanted: Sequence[Rule],
    networks: Optional[Sequence[Network]],
    to_be: Sequence[Rule],
    table: str,
) -> Tuple[str, str]:
    name = f"{table} {chain.name}"
    found = have.chains.get(chain.name)
    gone = f"flush chain {name}\ndelete chain {name}\n"
    if not to_be:
        return (f"chain {name} is there, but not wanted", gone) if found else ("", "")
    base = (chain.type, chain.hook, chain.priority, "accept")
    made = f"add chain {name} {{ type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept; }}\n"
    if found is None:
        fault = f"chain {name} is missing"
    elif found != base:
        fault, made = f"chain {name} is called at another place than it should", gone + made
    elif not chain_is_right(have.rules.get(chain.name, []), wanted, networks):
        fault = f"chain {name} has other rules than it should"
    else:
        return "", ""
    family = table.split(" ", maxsplit=1)[0]
    added = "".join(f"add rule {name} {render(rule, family)}\n" for rule in to_be)
    return fault, f"{made}flush chain {name}\n{added}"


class Nftables(Rules):
    """Runs nft."""

    def __init__(self, former: Iterable[Network] = ()) -> None:
        super().__init__(former)
        self._door = NftablesState(
            [Watched(version, table, chain.name) for version, table in TABLES.items() for chain in CHAINS]
        )
        self._refused: Optional[RulesError] = None

    def fingerprint(self) -> State:
        """Ask nf_tables."""
        return self._door.read()

    def remove(self, spec: Optional[RuleSpec] = None) -> List[str]:
        """Remove the rules, and the tables when nothing of another daemon is left in them."""
        networks = None if spec is None else self._owned(spec)
        gone: List[str] = []
        if not any_table():
            return gone
        for version, table in TABLES.items():
            wrong, text = to_wanted(_list(version), {MASQUERADE: (), FORWARD: ()}, networks, version)
            if text:
                run(["nft", "-f", "-"], text, _MODULES)
            if wrong:
                gone.append(f"nft: the rules in table {FAMILIES[version]} {table} are removed")
        return gone

    def _prepare(self, spec: RuleSpec) -> None:
        del spec

    def _repair(self, spec: RuleSpec, *, last: bool) -> List[str]:
        wrong: List[str] = []
        text = ""
        if not (spec.networks and (spec.masquerade or spec.forward)) and shutil.which("nft") is None:
            return wrong
        for version in self._versions(spec):
            wanted = wanted_rules(spec, version, random=spec.random_fully)
            faults, commands = to_wanted(_list(version), wanted, self._owned(spec), version)
            wrong += faults
            text += commands
        if wrong and last:
            raise self._refused or RulesError(
                f"nft: {wrong[0]}, although it was set right",
                "another program changes it at the same time, or nft prints it in a way unknown here",
            )
        if text:
            try:
                run(["nft", "-f", "-"], text, _MODULES)  # all of it is one transaction
                self._refused = None
            except RulesError as error:
                if error.hint:
                    raise
                self._refused = error  # what was to be deleted may have gone since the look: the next one decides
        return wrong

    def _other(self) -> Optional[Rules]:
        from flanneld.rules.iptables import Iptables  # noqa: PLC0415 - needed once

        return Iptables(self._former)


def any_table() -> bool:
    """Tell whether there is a table of the daemon's; without nf_tables there is none. Starts no program."""
    door = NftablesState(())
    try:
        return any(door.has_table(version, table) for version, table in TABLES.items())
    except OSError:
        return False
    finally:
        door.close()


def _list(version: int) -> Optional[Listed]:
    try:
        return parse_list(run(["nft", "-j", "list", "table", FAMILIES[version], TABLES[version]], "", _MODULES))
    except RulesError as error:
        if "No such file or directory" in error.message:
            return None
        raise
