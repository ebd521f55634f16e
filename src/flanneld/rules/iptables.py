"""The iptables engine, for both variants of iptables, and ip6tables.

One `iptables-save` tells what there is, one `iptables-restore` sets it right: per table the kernel takes all of it at
once or nothing. A `-D` of a rule that has gone meanwhile, or that removes the wrong one of two equal ones, is found by
the next look.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from flanneld.errors import RulesError
from flanneld.rules import saved
from flanneld.rules.command import LOCK_WAIT, NFT_RULES, KernelLacksError, locked, run
from flanneld.rules.engine import Rules
from flanneld.rules.kernel_state import LegacyState, NftablesState, State, Watched
from flanneld.rules.spec import RuleSpec, wanted_rules
from flanneld.subnet.config import Network

_MODULES = {
    ("legacy", 4): "iptable_nat, iptable_filter, xt_comment, xt_mark, xt_MASQUERADE",
    ("legacy", 6): "ip6table_nat, ip6table_filter, xt_comment, xt_mark, xt_MASQUERADE",
    ("nft", 4): "nf_tables, nft_compat, nft_chain_nat, xt_comment, xt_mark, xt_MASQUERADE",
    ("nft", 6): "nf_tables, nft_compat, nft_chain_nat, xt_comment, xt_mark, xt_MASQUERADE",
}


class Program(NamedTuple):
    """An iptables: `name` is iptables or ip6tables, `variant` legacy or nft."""

    name: str
    variant: str
    version: Tuple[int, ...]

    @property
    def random_fully(self) -> bool:
        """It knows --random-fully."""
        return self.version >= (1, 6, 2)

    @property
    def waits(self) -> bool:
        """Its iptables-restore takes the lock, and waits for it with -w."""
        return self.version >= (1, 6, 2)

    @property
    def modules(self) -> str:
        """The kernel's modules that it needs."""
        return _MODULES[self.variant, 6 if self.name.startswith("ip6") else 4]


def parse_version(name: str, text: str) -> Program:
    """Return what `iptables --version` has printed; before 1.8 there was only the legacy variant."""
    match = re.search(r"v(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = tuple(int(part or 0) for part in match.groups()) if match else (0,)
    return Program(name, "nft" if "nf_tables" in text else "legacy", version)


class Iptables(Rules):
    """Runs the iptables and ip6tables that are on PATH."""

    def __init__(self, former: Iterable[Network] = ()) -> None:
        super().__init__(former)
        self._programs: Dict[int, Program] = {}
        self._doors: List[Union[NftablesState, LegacyState]] = []
        self._refused: Optional[RulesError] = None

    def fingerprint(self) -> State:
        """Ask nf_tables or ip_tables, whichever the programs use."""
        states = tuple(door.read() for door in self._doors)
        return None if None in states else states

    def remove(self, spec: Optional[RuleSpec] = None) -> List[str]:
        """Remove the rules of every variant of iptables that is installed."""
        networks = None if spec is None else self._owned(spec)
        gone: List[str] = []
        for version, base in ((4, "iptables"), (6, "ip6tables")):
            for name in _installed(base):
                try:
                    printed = run([f"{name}-save"])
                except KernelLacksError:
                    continue  # then it has no rules either
                pair = None if spec is None else spec.networks.get(version)
                change = saved.to_nothing(saved.parse_save(printed), networks, pair)
                if change.transaction:
                    _restore(parse_version(name, run([name, "--version"])), change.transaction)
                    gone += [f"{name}: {one}" for one in change.wrong]
        return gone

    def _prepare(self, spec: RuleSpec) -> None:
        programs: Dict[int, Program] = {}
        for version in self._versions(spec):
            name = "ip6tables" if version == 6 else "iptables"
            needed = version in spec.networks and (spec.masquerade or spec.forward)
            if not needed and shutil.which(name) is None:
                continue  # without the program there is nothing of an earlier run either
            programs[version] = parse_version(name, run([name, "--version"]))
        if programs == self._programs:
            return
        self._programs = programs
        for door in self._doors:
            door.close()
        chains: Dict[str, List[Watched]] = {}
        for version, program in programs.items():
            watched = [Watched(version, place.table, place.chain, place.parent) for place in saved.PLACES]
            chains.setdefault(program.variant, []).extend(watched)
        self._doors = [
            NftablesState(those) if variant == "nft" else LegacyState(those) for variant, those in chains.items()
        ]

    def _repair(self, spec: RuleSpec, *, last: bool) -> List[str]:
        wrong: List[str] = []
        unreadable: Optional[RulesError] = None
        for version, program in self._programs.items():
            printed = run([f"{program.name}-save"], modules=program.modules)
            wanted = dict(wanted_rules(spec, version, random=spec.random_fully and program.random_fully))
            for place in saved.unreadable(printed):
                if wanted[place.comment]:
                    unreadable = RulesError(f"{program.name} cannot read the table {place.table}", NFT_RULES)
                wanted[place.comment] = ()
            change = saved.to_wanted(saved.parse_save(printed), wanted, self._owned(spec), spec.networks.get(version))
            if change.wrong and last:
                raise self._refused or RulesError(
                    f"{program.name}: {change.wrong[0]}, although it was set right",
                    "another program changes it at the same time, or prints it in a way unknown here",
                )
            if change.wrong:
                try:
                    _restore(program, change.transaction)
                    self._refused = None
                except RulesError as error:
                    if error.hint:
                        raise
                    # A rule to be deleted may have gone since the look: the next one decides.
                    self._refused = error
            wrong += [f"{program.name}: {one}" for one in change.wrong]
        if unreadable is not None:
            raise unreadable  # after all that can be done
        return wrong

    def _other(self) -> Optional[Rules]:
        from flanneld.rules.nftables import Nftables, any_table  # noqa: PLC0415 - needed once

        return Nftables(self._former) if any_table() else None


def _installed(base: str) -> List[str]:
    """Return the variants that are on PATH. What is just called iptables is one of the others, or the only one."""
    found: Dict[str, str] = {}
    for name in (base, f"{base}-legacy", f"{base}-nft"):
        path = shutil.which(f"{name}-save")
        if path is not None:
            found.setdefault(os.path.realpath(path), name)
    return list(found.values())


def _restore(program: Program, text: str) -> None:
    command = [f"{program.name}-restore", "--noflush"]
    if program.waits:
        run([*command, "-w", str(LOCK_WAIT)], text, program.modules)
        return
    with locked():
        run(command, text, program.modules)
