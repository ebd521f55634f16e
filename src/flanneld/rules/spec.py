"""The traffic rules themselves, free of any engine's language. Pure.

The list is that of the Go daemon (v0.21.3 and newer). Traffic which kube-proxy has marked is left alone, traffic within
the network and to the own pods keeps its addresses, and all other traffic from or to the network is masqueraded;
forwarding is permitted from and to the network.

Several daemons may keep their rules in the same chains, each for a network of its own. So a rule belongs to the daemon
whose network it names, or one that overlaps it; the others in a chain of ours stay.
"""

from __future__ import annotations

import ipaddress
from typing import Collection, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld.subnet.config import Network

MASQUERADE, FORWARD = "flanneld masq", "flanneld forward"
"""The comments by which the rules are known."""

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


class RuleSpec(NamedTuple):
    """What rules there must be. `networks`: IP version -> (network, own subnet).

    `masquerade` and `forward` tell which of the two lists are wanted; `random_fully` that source ports are to be
    chosen at random, where iptables can do that.
    """

    networks: Mapping[int, Tuple[Network, Network]]
    masquerade: bool
    forward: bool
    random_fully: bool = True


class Rule(NamedTuple):
    """One rule: what it matches, and its target RETURN, ACCEPT or MASQUERADE.

    `source` and `destination` are prefixes, with a leading "!" when everything else is meant; `marked`: only what
    kube-proxy has marked for masquerading (0x4000).
    """

    comment: str
    target: str
    source: str = ""
    destination: str = ""
    marked: bool = False
    random: bool = False


MARKED = Rule(MASQUERADE, "RETURN", marked=True)


def masquerade_rules(network: Network, subnet: Network, *, random: bool) -> Tuple[Rule, ...]:
    """Return the rules for what leaves the machine; `subnet` is its part of `network`."""
    n, s = str(network), str(subnet)
    return (
        MARKED,
        Rule(MASQUERADE, "RETURN", s, n),
        Rule(MASQUERADE, "RETURN", n, s),
        Rule(MASQUERADE, "RETURN", f"!{n}", s),
        Rule(MASQUERADE, "MASQUERADE", n, f"!{_MULTICAST[network.version]}", random=random),
        Rule(MASQUERADE, "MASQUERADE", f"!{n}", n, random=random),
    )


def forward_rules(network: Network) -> Tuple[Rule, ...]:
    """Return the rules for what goes through the machine."""
    n = str(network)
    return Rule(FORWARD, "ACCEPT", n), Rule(FORWARD, "ACCEPT", "", n)


def wanted_rules(spec: RuleSpec, version: int, *, random: bool) -> Mapping[str, Tuple[Rule, ...]]:
    """Return the rules of an IP version by comment; both comments are there, without rules when unwanted."""
    pair = spec.networks.get(version)
    return {
        MASQUERADE: masquerade_rules(*pair, random=random) if pair and spec.masquerade else (),
        FORWARD: forward_rules(pair[0]) if pair and spec.forward else (),
    }


def is_ours(rule: Optional[Rule], networks: Optional[Collection[Network]]) -> bool:
    """Tell whether a rule found in a chain of ours is this daemon's: all but what another daemon has put there.

    `networks`: this daemon's, now and before; None stands for those of all daemons. The rule None is one that no
    daemon makes.
    """
    if networks is None or rule is None or rule.comment not in {MASQUERADE, FORWARD} or rule == MARKED:
        return True
    named = [text for text in (rule.source, rule.destination) if text and not text.startswith("!")]
    return not named or any(_overlaps(text, networks) for text in named)


def others(have: Sequence[Optional[Rule]], networks: Optional[Collection[Network]]) -> List[Rule]:
    """Return the rules of other daemons in a chain of ours."""
    return [rule for rule in have if rule is not None and not is_ours(rule, networks)]


def chain_is_right(
    have: Sequence[Optional[Rule]], wanted: Sequence[Rule], networks: Optional[Collection[Network]]
) -> bool:
    """Tell whether a chain has exactly the wanted rules in their order, apart from those of other daemons.

    Where nothing is wanted, the mark's rule may stay for the others.
    """
    own = [rule for rule in have if is_ours(rule, networks)]
    if not wanted and others(have, networks):
        return own in ([], [MARKED])
    return own == list(wanted)


def chain_to_be(
    have: Sequence[Optional[Rule]], wanted: Sequence[Rule], networks: Optional[Collection[Network]]
) -> List[Rule]:
    """Return the rules a chain is to have: the wanted ones, then those of other daemons. Empty: it can go."""
    foreign = others(have, networks)
    if not wanted and foreign and MARKED in have:
        return [MARKED, *foreign]
    return [*wanted, *foreign]


def old_lists(network: Network, subnet: Network) -> List[Tuple[Rule, ...]]:
    """Return what Go daemons before v0.20 have put into POSTROUTING and FORWARD directly, in each of its forms.

    Their rules have no comment, so only a complete list, one rule after the other, is told from a user's own.
    """
    n, s = str(network), str(subnet)
    lists: List[Tuple[Rule, ...]] = [tuple(rule._replace(comment="") for rule in forward_rules(network))]
    lists += [
        (
            Rule("", "RETURN", n, n),
            Rule("", "MASQUERADE", n, f"!{_MULTICAST[network.version]}", random=random),
            Rule("", "RETURN", f"!{n}", s),
            Rule("", "MASQUERADE", f"!{n}", n, random=random),
        )
        for random in (False, True)
    ]
    return lists


def find_old(have: Sequence[Optional[Rule]], network: Network, subnet: Network) -> List[int]:
    """Return the positions of such lists in a built-in chain."""
    found: List[int] = []
    for one in old_lists(network, subnet):
        for start in range(len(have) - len(one) + 1):
            if tuple(have[start : start + len(one)]) == one:
                found += range(start, start + len(one))
    return sorted(found)


def _overlaps(text: str, networks: Collection[Network]) -> bool:
    network = ipaddress.ip_network(text)
    return any(one.version == network.version and one.overlaps(network) for one in networks)
