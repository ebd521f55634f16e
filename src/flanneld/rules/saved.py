"""What `iptables-save` prints, and the input of `iptables-restore` that makes of it what is wanted. Pure."""

from __future__ import annotations

import ipaddress
import re
import shlex
from typing import Any, Collection, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.rules.spec import (
    FORWARD,
    MASQUERADE,
    Rule,
    chain_is_right,
    chain_to_be,
    find_old,
)
from flanneld.subnet.config import Network


class Place(NamedTuple):
    """Where the rules with a comment are: a chain of ours, entered from a built-in one."""

    table: str
    chain: str
    parent: str
    comment: str

    @property
    def jump(self) -> Rule:
        """The rule of the built-in chain."""
        return Rule(self.comment, self.chain)


PLACES = (
    Place("nat", "FLANNEL-POSTRTG", "POSTROUTING", MASQUERADE),
    Place("filter", "FLANNEL-FWD", "FORWARD", FORWARD),
)


class Line(NamedTuple):
    """A rule as printed after `-A CHAIN`: its text, where it jumps to, and its meaning where that is known."""

    text: str
    target: str
    rule: Optional[Rule]


Saved = Mapping[Tuple[str, str], List[Line]]
"""Lines by (table, chain): those of the chains of ours and of the built-in ones that jump to them, and of all other
chains what jumps to ours. A chain of ours that exists is there even without rules."""

_LINE = re.compile(
    r"^(?:\*(?P<table>\S+)"
    r"|:(?P<declared>FLANNEL-(?:POSTRTG|FWD)) .*"
    r"|-A (?P<chain>FLANNEL-POSTRTG|FLANNEL-FWD|POSTROUTING|FORWARD) (?P<text>.*)"
    r"|-A (?P<foreign>\S+) (?P<jump>.*-[jg] FLANNEL-(?:POSTRTG|FWD)(?: .*)?))$",
    re.MULTILINE,
)

_UNREADABLE = re.compile(r"^# Table `(\w+)' is incompatible", re.MULTILINE)


def parse_save(text: str) -> Saved:
    """Parse the output of `iptables-save`."""
    saved: Dict[Tuple[str, str], List[Line]] = {}
    table = ""
    for match in _LINE.finditer(text):
        if match["table"]:
            table = match["table"]
        elif match["declared"]:
            saved.setdefault((table, match["declared"]), [])
        else:
            line = parse_line((match["text"] or match["jump"] or "").strip())
            saved.setdefault((table, match["chain"] or match["foreign"]), []).append(line)
    return saved


def unreadable(text: str) -> List[Place]:
    """Return the places that the nft variant of iptables cannot print: it would add to them with each attempt."""
    tables = _UNREADABLE.findall(text)
    return [place for place in PLACES if place.table in tables]


def parse_line(text: str) -> Line:
    """Parse the words of a rule after `-A CHAIN`."""
    try:
        words = shlex.split(text)
    except ValueError:
        return Line(text, "", None)
    target = next((word for option, word in zip(words, words[1:]) if option in {"-j", "-g"}), "")  # noqa: RUF007 - pairwise is of 3.10
    return Line(text, target, _parse_rule(words))


def _parse_rule(words: Sequence[str]) -> Optional[Rule]:
    """Return a rule's meaning whatever the order of its options; None when it has others than those of ours."""
    rule = Rule("", "")
    rest = iter(words)
    try:
        for word in rest:
            if word == "--random-fully":
                rule = rule._replace(random=True)
                continue
            negated, option = ("!", next(rest)) if word == "!" else ("", word)
            change = _option(negated, option, next(rest))
            if change is None:
                return None
            rule = rule._replace(**change)
    except (StopIteration, ValueError):
        return None
    return rule if rule.target else None


def _option(negated: str, option: str, value: str) -> Optional[Dict[str, Any]]:
    """Return the fields of a rule that an option sets, None when no rule of ours has it."""
    if option in {"-s", "-d"}:
        return {"source" if option == "-s" else "destination": f"{negated}{ipaddress.ip_network(value)}"}
    known: Dict[str, Dict[str, Any]] = {
        "-m": {},
        "--mark": {"marked": True},
        "--comment": {"comment": value},
        "-j": {"target": value},
    }
    right = {"-m": {"mark", "comment"}, "--mark": {"0x4000/0x4000"}}.get(option, {value})
    return known.get(option) if value in right and not negated else None


def render(rule: Rule) -> str:
    """Return a rule as `iptables-save` prints it after `-A CHAIN`."""
    words: List[str] = []
    for option, prefix in (("-s", rule.source), ("-d", rule.destination)):
        if prefix:
            words += ["!", option, prefix[1:]] if prefix.startswith("!") else [option, prefix]
    if rule.marked:
        words += ["-m", "mark", "--mark", "0x4000/0x4000"]
    if rule.comment:
        words += ["-m", "comment", "--comment", f'"{rule.comment}"']
    words += ["-j", rule.target]
    if rule.random:
        words.append("--random-fully")
    return " ".join(words)


class Change(NamedTuple):
    """What is wrong, in words, and the input of `iptables-restore --noflush` that sets it right."""

    wrong: List[str]
    transaction: str


def to_wanted(
    saved: Saved,
    wanted: Mapping[str, Sequence[Rule]],
    networks: Collection[Network],
    pair: Optional[Tuple[Network, Network]],
) -> Change:
    """Return the way from what was saved to the wanted rules (by comment).

    `networks`: those whose rules are this daemon's; `pair`: network and own subnet, None where the IP version is not
    used any more. A chain that has nothing to hold goes.
    """
    changes = []
    for place in PLACES:
        rules = wanted[place.comment]
        wrong: List[str] = []
        if chain_to_be(_rules(saved, place), rules, networks):
            wrong, text = _filled(place, saved, rules, networks)
        else:
            text = _deleted(place, saved)
            if text:
                wrong = [f"chain {place.chain} is there, but not wanted"]
        # Their RETURN would end the chain before ours. The old ACCEPTs do no harm, and may be a user's.
        old = _old(place, saved, pair) if rules and place.comment == MASQUERADE else ""
        if old:
            wrong.append(f"{place.parent} has the rules of an older flanneld")
        changes.append((place, wrong, text + old))
    return _joined(changes)


def to_nothing(
    saved: Saved, networks: Optional[Collection[Network]], pair: Optional[Tuple[Network, Network]]
) -> Change:
    """Return the way from what was saved to no rules of `networks`, None: of any network; `pair` as in to_wanted."""
    changes = []
    for place in PLACES:
        rules = _rules(saved, place)
        stay = chain_to_be(rules, (), networks)
        gone: List[str] = []
        text = ""
        if not stay:
            text = _deleted(place, saved)
            if text:
                gone.append(f"chain {place.chain} is removed")
        elif not chain_is_right(rules, (), networks):
            text = _content(place, stay)
            gone.append(f"rules of chain {place.chain} are removed")
        old = _old(place, saved, pair)
        if old:
            gone.append(f"the rules of an older flanneld are removed from {place.parent}")
        changes.append((place, gone, text + old))
    return _joined(changes)


def _joined(changes: Sequence[Tuple[Place, List[str], str]]) -> Change:
    return Change(
        [word for _, words, _ in changes for word in words],
        "".join(f"*{place.table}\n{text}COMMIT\n" for place, _, text in changes if text),
    )


def _rules(saved: Saved, place: Place) -> List[Optional[Rule]]:
    return [line.rule for line in saved.get((place.table, place.chain), [])]


def _filled(place: Place, saved: Saved, rules: Sequence[Rule], networks: Collection[Network]) -> Tuple[List[str], str]:
    """Return what is wrong with a chain and the jump to it, and the lines that set it right."""
    wrong: List[str] = []
    text = ""
    have = _rules(saved, place)
    if (place.table, place.chain) not in saved:
        wrong.append(f"chain {place.chain} is missing")
    elif not chain_is_right(have, rules, networks):
        wrong.append(f"chain {place.chain} has other rules than it should")
    if wrong:
        text = _content(place, chain_to_be(have, rules, networks))
    jumps = [line for line in saved.get((place.table, place.parent), []) if line.target == place.chain]
    if rules and [line.rule for line in jumps] != [place.jump]:
        number = f"{len(jumps)} times instead of once" if len(jumps) != 1 else "in another way than it should"
        wrong.append(f"{place.parent} jumps to {place.chain} {number}")
        text += "".join(f"-D {place.parent} {line.text}\n" for line in jumps)
        text += f"-A {place.parent} {render(place.jump)}\n"
    return wrong, text


def _content(place: Place, rules: Sequence[Rule]) -> str:
    # The declaration empties the chain; the kernel takes it together with the rules when the table is committed.
    return f":{place.chain} - [0:0]\n" + "".join(f"-A {place.chain} {render(rule)}\n" for rule in rules)


def _deleted(place: Place, saved: Saved) -> str:
    """Return how a chain goes, and all that jumps to it; nothing when it is not there."""
    if (place.table, place.chain) not in saved:
        return ""
    jumps = [
        f"-D {chain} {line.text}\n"
        for (table, chain), lines in saved.items()
        for line in lines
        if table == place.table and chain != place.chain and line.target == place.chain
    ]
    return f":{place.chain} - [0:0]\n" + "".join(jumps) + f"-X {place.chain}\n"


def _old(place: Place, saved: Saved, pair: Optional[Tuple[Network, Network]]) -> str:
    """Return how the rules of Go daemons before v0.20 go from a built-in chain."""
    if pair is None:
        return ""
    parent = saved.get((place.table, place.parent), [])
    positions = find_old([line.rule for line in parent], *pair)
    return "".join(f"-D {place.parent} {parent[position].text}\n" for position in positions)
