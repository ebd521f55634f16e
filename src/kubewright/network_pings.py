"""Pods that ping each other while something is changed: what to run in them, and how to read what they saw. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INTERVAL = 0.2
"""Seconds between two requests of a pair."""
READY = "they ping"
# Three hours: a run that was killed leaves nothing for ever. Below 65536, where the numbers of requests begin anew.
_MOST = 54000
# In large clusters a pod pings the next ones only, in a ring.
_PARTNERS = 8
_SHOWN = 30


@dataclass(frozen=True)
class Pair:
    """What became of the requests of one pod to another; `gap`: the longest time without an answer, in seconds."""

    source: str
    target: str
    sent: int
    lost: int
    gap: float

    def __str__(self) -> str:
        gap = f", the longest gap {self.gap:.1f} s" if self.lost else ""
        return f"{self.source} > {self.target}: {self.sent} pings, {self.lost} lost{gap}"


def partners(pods: Sequence[str]) -> dict[str, list[str]]:
    """Node -> nodes whose pods that node's pod pings: all others, in large clusters the next ones in a ring.

    A single pod pings nobody.
    """
    if len(pods) < 2:
        return {}
    count = min(len(pods) - 1, _PARTNERS)
    return {name: [pods[(at + step) % len(pods)] for step in range(1, count + 1)] for at, name in enumerate(pods)}


def begin(addresses: Sequence[str]) -> str:
    """A POSIX shell script that begins to ping, and returns: it prints READY when all of them ping and can be read."""
    runs = "; ".join(
        f"ping -i {INTERVAL} -c {_MOST} -W 1 {one} >/tmp/pings.{one} 2>&1 & echo $! >>/tmp/pings" for one in addresses
    )
    # The own address: who of the others answers now is not the question.
    probe = f"ping -i {INTERVAL} -c 2 -W 1 127.0.0.1 2>&1"
    begun = f"rm -f /tmp/pings*; {probe} | grep -q ' seq=1 ' || {{ {probe}; exit 1; }}; {runs}; sleep 1"
    alive = "for one in $(cat /tmp/pings); do kill -0 $one 2>/dev/null || { cat /tmp/pings.*; exit 1; }; done"
    return f"{begun}; {alive}; echo {READY}"


# Of the output of ping: requests, answers, the most requests in a row without an answer, and the last one answered,
# where the numbers of requests (seq) begin with 0.
_AWK = (
    "BEGIN {last = -1} "
    '/ seq=/ {s = $0; sub(/.* seq=/, "", s); s += 0; '
    "if (s > last) {if (s - last - 1 > gap) gap = s - last - 1; last = s; n++}} "
    "/packets transmitted/ {sent = $1} "
    "END {print a, sent + 0, n + 0, gap + 0, last}"
)


def end(addresses: Sequence[str]) -> str:
    """A POSIX shell script that ends the pings, and prints a line for each: ADDRESS SENT ANSWERED GAP LAST."""
    reads = "; ".join(f"awk -v a={one} '{_AWK}' /tmp/pings.{one}" for one in addresses)
    return f"kill -INT $(cat /tmp/pings) 2>/dev/null; sleep 1; {reads}"


def read(source: str, output: str, names: Mapping[str, str]) -> list[Pair]:
    """Pairs out of what `end` has printed. `names`: address -> node."""
    found = []
    for line in output.splitlines():
        match = re.fullmatch(r"(\S+) (\d+) (\d+) (\d+) (-?\d+)", line.strip())
        if not match or match[1] not in names:
            continue
        sent, answered, gap, last = (int(match[place]) for place in (2, 3, 4, 5))
        if sent <= max(last, 0):
            continue  # it died, and told nothing at its end
        tail = sent - 1 - last
        if tail == 1:
            sent, tail = sent - 1, 0  # the last request, for whose answer nobody has waited
        longest = max(gap, tail)
        found.append(
            Pair(source, names[match[1]], sent, sent - answered, round((longest + 1) * INTERVAL, 1) if longest else 0.0)
        )
    return found


def lines(pairs: Sequence[Pair]) -> list[str]:
    """For people: all of them together, and each pair; of very many only those that lost something."""
    sent, lost = sum(one.sent for one in pairs), sum(one.lost for one in pairs)
    gap = max((one.gap for one in pairs), default=0.0)
    found = [f"{sent} pings between pods, {lost} lost, the longest gap {gap:.1f} s"]
    shown = pairs if len(pairs) <= _SHOWN else [one for one in pairs if one.lost]
    return found + [f"  {one}" for one in shown]


def judged(result: Mapping[str, Any], allowed: int) -> str:
    """Why what was lost is too much, empty when it is not. `result`: {lost, unknown}, empty where none pinged."""
    lost, unknown = int(result.get("lost") or 0), result.get("unknown") or []
    if lost <= allowed and not unknown:
        return ""
    gone = f"; of {', '.join(unknown)} nothing is known" if unknown else ""
    return (
        f"the network is changed, but {lost} pings between pods were lost, {allowed} may be (verify_pings_lost){gone}"
    )
