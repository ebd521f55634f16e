"""`flanneld status`: what the daemon says, what the kernel has, and where the two differ.

Exit status: 0 ready, the lease has not expired and nothing differs, 1 not so, 3 no daemon answers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import console, drift, state
from flanneld.errors import FlanneldError
from flanneld.flags import Flag, parse, usage
from flanneld.net.kernel import Kernel
from flanneld.options import file_name

FLAGS: Tuple[Flag, ...] = (
    Flag(
        "subnet-file", "str", state.DEFAULT_SUBNET_FILE, "file the leased subnet is written to; the socket is beside it"
    ),
    Flag("all", "bool", "false", "show all peers"),
    Flag("json", "bool", "false", "print JSON"),
)

NOT_RUNNING = 3
_SHOWN = 50
_SETTLE = 0.5
"""Seconds that the daemon is given to finish what it is just doing before a difference counts."""


class Look(NamedTuple):
    """The daemon's document, and what the kernel differs by."""

    state: state.State
    document: Dict[str, Any]
    differences: Sequence[drift.Difference]


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the state; returns the exit status. Raises FlanneldError."""
    parsed = parse(FLAGS, words, environ)
    if parsed.help:
        console.write(["Usage: flanneld status [FLAG]...", usage(FLAGS).rstrip()])
        return 0
    console.quiet()
    subnet_file, as_json = file_name(parsed, "subnet-file"), parsed.truth("json")
    try:
        look = take_look(subnet_file)
    except state.NotRunningError as error:
        _not_running(error, subnet_file, as_json=as_json)
        return NOT_RUNNING
    if as_json:
        console.write_json(document(look))
    else:
        console.write(overview(look, shown=None if parsed.truth("all") else _SHOWN))
    return 1 if look.state.trouble or look.differences or look.state.expired else 0


def take_look(subnet_file: Path) -> Look:
    """Ask the daemon and the kernel; twice when they differ, for a lease may come just in between.

    Raises FlanneldError, also when the daemon's kernel is not this process's.
    """
    kernel = Kernel()
    for last in (False, True):
        answer, raw = state.ask(subnet_file)
        if answer.namespace and state.namespace() and answer.namespace != state.namespace():
            raise FlanneldError(
                f"flanneld (pid {answer.pid}) runs in another network namespace than this command",
                f"use `nsenter -t {answer.pid} -n`",
            )
        found: Sequence[drift.Difference] = ()
        if answer.desired is not None:
            found = drift.differences(answer.desired, kernel.find(answer.desired))
        if not found or last:
            break
        time.sleep(_SETTLE)
    return Look(answer, raw, found)


def document(look: Look) -> Dict[str, Any]:
    """Return the daemon's document with the differences, and with the way to each peer."""
    desired, concerned = look.state.desired, drift.Concerned(look.differences)
    peers = []
    for peer, raw in zip(look.state.peers, look.document["peers"]):
        ways: List[Dict[str, Any]] = []
        wrong: List[drift.Difference] = []
        if desired is not None:
            there = [(subnet, drift.way(desired, subnet)) for subnet in peer.subnets]
            ways = [
                {"subnet": str(subnet), **one.route._asdict(), "mac": one.mac, "machine": one.machine}
                for subnet, one in there
                if one is not None and not peer.ignored
            ]
            wrong = concerned.of(desired, peer.subnets)
        peers.append({**raw, "ways": ways, "differences": list(map(str, wrong))})
    return {
        "running": True,
        **look.document,
        "peers": peers,
        "differences": list(map(str, look.differences)),
    }


def overview(look: Look, shown: Optional[int]) -> List[str]:
    """Return the lines for people; of the peers `shown`, None = all."""
    answer = look.state
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer.since))
    ready = console.coloured(f"NOT ready: {answer.trouble}", "red") if answer.trouble else "ready"
    lines = [f"flanneld {answer.version}, pid {answer.pid}, since {since}: {ready}"]
    rows = [("network", _network(answer))]
    if answer.interface:
        announced = " and ".join(answer.announced.values())
        own = " and ".join(answer.addresses.values())
        as_other = f", announced as {announced}" if announced != own else ""
        rows.append(("interface", f"{answer.interface} with {own}, MTU {answer.interface_mtu}{as_other}"))
    rows.append(("lease", _lease(answer)))
    if answer.desired is not None:
        devices = ", ".join(one.name for one in answer.desired.devices)
        rows.append(("pods", f"MTU {answer.mtu}{f' over {devices}' if devices else ''}"))
    store = f"{answer.store}: {answer.store_trouble or ('followed' if answer.followed else 'not read yet')}"
    rows.append(("leases in", console.coloured(store, "yellow") if answer.store_trouble else store))
    if answer.desired is not None:
        rules = console.coloured(answer.rules_trouble, "red") if answer.rules_trouble else "as they should be"
        rows.append(("rules", rules))
        times = answer.counters
        rows.append(("repaired", f"{times['drift']} things in the kernel, {times['rules']} times the rules"))
    lines += console.columns(rows)
    lines += _drift(look)
    lines += _peers(look, shown)
    return lines


def _network(answer: state.State) -> str:
    if answer.config is None:
        return "not known yet"
    rules = ", nftables" if answer.config.nftables else ""
    return f"{' and '.join(map(str, answer.networks.values()))}, backend {answer.backend}{rules}"


def _lease(answer: state.State) -> str:
    if not answer.own:
        return "none yet"
    expires = "does not expire"
    if answer.expires is not None:
        expires = f"expires in {console.seconds(answer.expires)}"
    if answer.expired:
        late = console.seconds(-(answer.expires or 0))
        why = "another machine may take the subnet until flanneld can write it again"
        expires = console.coloured(f"EXPIRED {late} ago: {why}", "red")
    return f"{' and '.join(map(str, answer.own))}, {expires}"


def _drift(look: Look) -> List[str]:
    if look.state.desired is None:
        return []
    found = look.differences
    if not found:
        return console.columns([("kernel   ", "as it should be")])
    lines = [
        console.coloured(
            f"The kernel differs in what follows, which flanneld should repair soon ({len(found)}):", "red"
        )
    ]
    lines += [f"  {one}" for one in found[:10]]
    if len(found) > 10:
        lines.append(f"  and {len(found) - 10} more")
    return lines


def _peers(look: Look, shown: Optional[int]) -> List[str]:
    peers = look.state.peers
    ignored = sum(1 for one in peers if one.ignored)
    lines = [
        "",
        f"{len(peers)} peer{'' if len(peers) == 1 else 's'}{f', {ignored} of them ignored' if ignored else ''}",
    ]
    concerned = drift.Concerned(look.differences)
    rows = [(_rank(row), row) for row in (_row(look.state, one, concerned) for one in peers)]
    # What is not right comes first: in a long list the rest is left out.
    rows.sort(key=lambda one: one[0])
    chosen = [row for _, row in (rows if shown is None else rows[:shown])]
    if chosen:
        lines += console.columns([("SUBNET", "MACHINE", "VIA", "STATE"), *chosen])
    if len(rows) > len(chosen):
        lines.append(
            f"and {len(rows) - len(chosen)} more, all of them ok (-all shows them)"
            if _all_ok(rows, shown)
            else f"and {len(rows) - len(chosen)} more (-all shows them)"
        )
    return lines


def _row(answer: state.State, peer: state.Peer, concerned: drift.Concerned) -> Tuple[str, str, str, str]:
    ways: List[str] = []
    wrong: List[drift.Difference] = []
    if answer.desired is not None and not peer.ignored:
        found = [drift.way(answer.desired, one) for one in peer.subnets]
        ways = [str(one) for one in found if one is not None]
        wrong = concerned.of(answer.desired, peer.subnets)
    state_of = "ok" if ways else "nothing to program"
    if wrong:
        state_of = f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}"
    how = f"ignored: {peer.ignored}" if peer.ignored else state_of
    return " ".join(map(str, peer.subnets)), " ".join(peer.machine.values()), ", ".join(ways) or "-", how


def _rank(row: Tuple[str, str, str, str]) -> int:
    if row[3] in {"ok", "nothing to program"}:
        return 2
    return 1 if row[3].startswith("ignored") else 0


def _all_ok(rows: Sequence[Tuple[int, Tuple[str, str, str, str]]], shown: Optional[int]) -> bool:
    return shown is not None and rows[shown][0] == 2


def _not_running(error: state.NotRunningError, subnet_file: Path, *, as_json: bool) -> None:
    env, devices = state.read_env(subnet_file), flannel_devices()
    if as_json:
        console.write_json(
            {
                "running": False,
                "reason": str(error),
                "networks": [str(one) for one in env.networks.values()] if env else [],
                "subnets": [str(one) for one in env.subnets.values()] if env else [],
                "devices": [{"name": name, "state": text} for name, text in devices],
            }
        )
        return
    sys.stderr.write(f"{error}. Is it running? (systemctl status flanneld; journalctl -u flanneld)\n")
    if env is None:
        lines = [f"{subnet_file} is not there: no subnet was leased since the machine was started"]
    else:
        subnets = " and ".join(map(str, env.subnets.values())) or "no subnet"
        networks = " and ".join(map(str, env.networks.values())) or "no network"
        lines = [f"{subnet_file} says: {subnets} of {networks}, MTU {env.mtu or 'unknown'}"]
    lines += [f"{name} is there: {text}" for name, text in devices] or ["there is no device of flannel"]
    console.write(lines)


def flannel_devices() -> List[Tuple[str, str]]:
    """Return the devices named like flannel's, and how they are."""
    kernel = Kernel()
    addresses: Dict[int, List[str]] = {}
    for one in kernel.addresses():
        addresses.setdefault(one.ifindex, []).append(f"{one.address}/{one.length}")
    return [
        (
            link.name,
            f"{link.found.kind or 'device'}, {'up' if link.found.up else 'DOWN'}, MTU {link.mtu},"
            f" {' '.join(addresses.get(link.ifindex, ['no address']))}",
        )
        for link in kernel.links()
        if link.name.startswith("flannel")
    ]
