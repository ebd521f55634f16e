"""Who belongs to an etcd cluster: members join as learners, are promoted when they are in sync, and are removed.

The arithmetic is that of Raft: a cluster of n voters works while n // 2 + 1 of them do; learners do not vote (etcd,
"Learner" and "Runtime reconfiguration" of its documentation; learners exist since 3.4). Nothing here is done that would
leave fewer healthy voters than the quorum of the cluster that it makes.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from . import etcd
from .etcd import quorum

_POLL_SECONDS = 0.5
# What etcd says while it is too early: a learner that lags behind, and 5 s after members have met anew.
_LATER = ("in sync with leader", "unhealthy cluster", "leader changed", "no leader", "request timed out")


class MembershipError(Exception):
    """A change of the members that is refused, or did not come about in time."""


class Member(NamedTuple):
    """A member as the cluster knows it; one that has never started has neither name nor clients.

    `id`: decimal, as the gateway writes it. `peers`, `clients`: URLs. `healthy`: whether it answers as healthy.
    """

    id: str
    name: str
    peers: tuple[str, ...]
    clients: tuple[str, ...]
    learner: bool
    healthy: bool

    @property
    def title(self) -> str:
        """The name, or the address of one that has never started."""
        return self.name or ", ".join(self.peers)


def host(url: str) -> str:
    """The address in a URL."""
    return str(urlsplit(url).hostname or "")


def voting(members: list[Member]) -> list[Member]:
    """Those that vote."""
    return [m for m in members if not m.learner]


def find(members: list[Member], name: str, address: str = "") -> Member | None:
    """The member of this name, else one that has never started, and so has no name, with this address."""
    named = [m for m in members if name and m.name == name]
    placed = [m for m in members if not m.name and address and address in map(host, m.peers)]
    return next(iter(named + placed), None)


def _down(members: list[Member]) -> str:
    return ", ".join(sorted(m.title for m in members if not m.healthy))


def addition_refusal(members: list[Member], name: str, peer_url: str) -> str:
    """Why a member must not be added; empty when it may be."""
    voters = voting(members)
    healthy = sum(m.healthy for m in voters)
    same = find(members, name)
    if same:
        return (
            f"the cluster has a member {name} already, at {', '.join(same.peers)} and not at {peer_url}: "
            "remove that one first"
        )
    learners = [m for m in members if m.learner]
    if learners:
        who = [m.name or ", ".join(map(host, m.peers)) for m in learners]
        return (
            f"{', '.join(who)} has joined as a learner and is not promoted yet: finish that first, or take it out: "
            f"playbooks/ops/remove.yml -e machine={who[0]}, with -e dead=true when that machine is gone"
        )
    after = len(voters) + 1
    if healthy + 1 < quorum(after):
        return (
            f"not healthy of {len(voters)} members: {_down(voters)}; with one more, {quorum(after)} of {after} "
            f"would have to work, and {healthy + 1} would: bring them back or remove them first"
        )
    return ""


def removal_refusal(members: list[Member], leaving: Member) -> str:
    """Why a member must not be removed; empty when it may be."""
    voters = voting(members)
    if leaving.learner:
        return ""
    healthy = sum(m.healthy for m in voters)
    if len(voters) == 1:
        return f"{leaving.title} is the last member of etcd: everything the cluster knows would be gone"
    if healthy < quorum(len(voters)):
        return (
            f"etcd has no quorum: not healthy of {len(voters)} members: {_down(voters)}, and "
            f"{quorum(len(voters))} must be for any change: bring members back (journalctl -u etcd there)"
        )
    left, after = healthy - leaving.healthy, len(voters) - 1
    if left < quorum(after):
        return (
            f"without {leaving.title}, {after} members are left, of which {quorum(after)} must work, and {left} would: "
            f"not healthy: {_down([m for m in voters if m.id != leaving.id])}: bring them back, or remove them first"
        )
    return ""


def outlook(members: list[Member]) -> str:
    """How many members there are and how many may fail, as a sentence."""
    voters = len(voting(members))
    noun = "member" if voters == 1 else "members"
    return f"etcd has {voters} {noun}: {quorum(voters)} must work, {voters - quorum(voters)} may fail"


def initial_cluster(members: list[Member], name: str, peer_url: str) -> str:
    """ETCD_INITIAL_CLUSTER for a member that joins: exactly those that the cluster knows, or it does not start."""
    parts = []
    for member in members:
        mine = host(peer_url) in map(host, member.peers)
        # Of others that have not started either, etcd compares only the addresses.
        parts += [f"{name if mine else member.name or member.id}={url}" for url in member.peers]
    return ",".join(parts)


def list_members(endpoints: list[dict[str, Any]]) -> list[Member]:
    """All members with their health; EtcdError when no endpoint answers. `endpoints`: [{url, ca, cert, key}]."""
    return etcd.first_answer(endpoints, _listed)


def _listed(endpoint: dict[str, Any]) -> list[Member]:
    return [
        Member(
            str(one["ID"]),
            str(one.get("name", "")),
            tuple(one.get("peerURLs") or ()),
            tuple(one.get("clientURLs") or ()),
            bool(one.get("isLearner")),
            any(etcd.is_healthy({**endpoint, "url": url}) for url in one.get("clientURLs") or ()),
        )
        for one in etcd.members(endpoint)
    ]


def _ask(endpoints: list[dict[str, Any]], path: str, body: dict[str, Any], deadline: float) -> None:
    """Have a change made by whoever answers; what etcd calls too early is asked again until `deadline`."""
    while True:
        try:
            etcd.first_answer(endpoints, lambda endpoint: etcd.ask(endpoint, path, body))
        except etcd.EtcdError as error:
            if not any(words in str(error) for words in _LATER) or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def join(
    endpoints: list[dict[str, Any]], name: str, peer_url: str, timeout: float, check: bool
) -> tuple[bool, list[Member]]:
    """Make the machine at `peer_url` a learner, unless it is a member; whether it was made one, and all members then.

    MembershipError when that must not be. With `check` nothing is changed, and the members are those that would be.
    """
    deadline = time.monotonic() + timeout
    members = list_members(endpoints)
    if at(members, peer_url):
        return False, members
    refusal = addition_refusal(members, name, peer_url)
    if refusal:
        raise MembershipError(refusal)
    if check:
        return True, [*members, Member("0", name, (peer_url,), (), True, False)]
    try:
        _ask(endpoints, "/v3/cluster/member/add", {"peerURLs": [peer_url], "isLearner": True}, deadline)
    except etcd.EtcdError:
        # An answer that was lost is no refusal.
        if not at(list_members(endpoints), peer_url):
            raise
    return True, list_members(endpoints)


def at(members: list[Member], peer_url: str) -> Member | None:
    """The member that the others reach at the address of this URL."""
    return next((m for m in members if host(peer_url) in map(host, m.peers)), None)


def promote(endpoints: list[dict[str, Any]], peer_url: str, timeout: float, check: bool) -> tuple[bool, list[Member]]:
    """Give the learner at `peer_url` a vote as soon as it is in sync; whether that was to be done, and all members.

    MembershipError when there is no such member, or it is not in sync after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    members = list_members(endpoints)
    member = at(members, peer_url)
    if member is None:
        if check:
            return True, members
        raise MembershipError(f"etcd has no member at {peer_url}; the same command again adds it")
    if not member.learner:
        return False, members
    if check:
        return True, members
    try:
        _ask(endpoints, "/v3/cluster/member/promote", {"ID": member.id}, deadline)
    except etcd.EtcdError as error:
        now = at(list_members(endpoints), peer_url)
        if now is None or now.learner:
            raise MembershipError(
                f"{member.title} stays a learner, which takes part in no vote: not promoted within {timeout:g} s: "
                f"{error}. The same command again goes on"
            ) from error
    return True, list_members(endpoints)


def remove(
    endpoints: list[dict[str, Any]], name: str, address: str, timeout: float, check: bool
) -> tuple[bool, list[Member]]:
    """Take the member of this name, or at this address, out of the cluster; whether it was in, and who is left.

    A leader hands its lead over before. MembershipError when the rest would have no quorum. With `check` nothing is
    changed.
    """
    deadline = time.monotonic() + timeout
    members = list_members(endpoints)
    member = find(members, name, address)
    if member is None:
        return False, members
    refusal = removal_refusal(members, member)
    if refusal:
        raise MembershipError(refusal)
    left = [m for m in members if m.id != member.id]
    if check:
        return True, left
    # A member that is removed answers nobody for long.
    others = [endpoint for endpoint in endpoints if host(endpoint["url"]) not in map(host, member.clients)] or endpoints
    _hand_over(others, members, member)
    try:
        _ask(others, "/v3/cluster/member/remove", {"ID": member.id}, deadline)
    except etcd.EtcdError:
        if member.id in [m.id for m in list_members(others)]:
            raise
    return True, list_members(others)


def _hand_over(endpoints: list[dict[str, Any]], members: list[Member], leaving: Member) -> None:
    """Move the lead away from a member that leaves: an election would hold writes up for a second. Best effort."""
    heirs = [m for m in voting(members) if m.healthy and m.id != leaving.id]
    for url in leaving.clients if heirs else ():
        endpoint = {**endpoints[0], "url": url}
        try:
            if etcd.leads(endpoint):
                etcd.ask(endpoint, "/v3/maintenance/transfer-leadership", {"targetID": heirs[0].id})
                return
        except (etcd.EtcdError, OSError):
            continue
