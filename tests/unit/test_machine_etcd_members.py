"""Joining and leaving etcd: the arithmetic, and a real etcd on addresses of the loopback."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked

from kubewright.machine import etcd, etcd_members, etcd_restore, health
from kubewright.machine.etcd_members import Member

CLIENT, PEER = 42379, 42380


def member(name: str, *, healthy: bool = True, learner: bool = False) -> Member:
    number = name[-1]
    return Member(
        number, name, (f"https://192.0.2.{number}:2380",), (f"https://192.0.2.{number}:2379",), learner, healthy
    )


ONE, TWO, THREE = member("m1"), member("m2"), member("m3")
DOWN = member("m3", healthy=False)


def test_the_last_member_stays() -> None:
    assert "last member" in etcd_members.removal_refusal([ONE], ONE)


def test_a_dead_member_goes_and_a_healthy_one_stays_while_another_is_dead() -> None:
    members = [ONE, TWO, DOWN]
    assert etcd_members.removal_refusal(members, DOWN) == ""
    assert "not healthy: m3" in etcd_members.removal_refusal(members, TWO)


def test_without_a_quorum_nothing_can_be_removed() -> None:
    dead = member("m2", healthy=False)
    assert "no quorum: not healthy of 3 members: m2, m3, and 2 must" in etcd_members.removal_refusal(
        [ONE, dead, DOWN], DOWN
    )


def test_one_of_two_may_go() -> None:
    assert etcd_members.removal_refusal([ONE, TWO], TWO) == ""
    assert "no quorum" in etcd_members.removal_refusal([ONE, member("m2", healthy=False)], ONE)


def test_a_learner_may_always_go() -> None:
    assert (
        etcd_members.removal_refusal([ONE, member("m2", learner=True, healthy=False)], member("m2", learner=True)) == ""
    )


def test_who_may_join() -> None:
    url = "https://192.0.2.4:2380"
    assert etcd_members.addition_refusal([ONE, TWO, THREE], "m4", url) == ""
    assert etcd_members.addition_refusal([ONE, TWO, DOWN], "m4", url) == ""
    assert "not healthy of 3 members: m2, m3; with" in etcd_members.addition_refusal(
        [ONE, member("m2", healthy=False), DOWN], "m4", url
    )
    assert "has a member m3 already" in etcd_members.addition_refusal([ONE, TWO, THREE], "m3", url)
    assert "m2 has joined as a learner" in etcd_members.addition_refusal([ONE, member("m2", learner=True)], "m4", url)
    # It can be taken out by the only name that it has.
    unstarted = Member("99", "", ("https://192.0.2.5:2380",), (), True, False)
    said = etcd_members.addition_refusal([ONE, unstarted], "m4", url)
    assert "remove.yml -e machine=192.0.2.5," in said
    assert etcd_members.find([ONE, unstarted], "192.0.2.5", "192.0.2.5") == unstarted


def test_a_member_that_inherited_an_address_is_not_the_one_that_left() -> None:
    assert etcd_members.find([ONE, TWO], "m0", "192.0.2.1") is None
    assert etcd_members.find([ONE, TWO], "m2", "192.0.2.1") == TWO
    unstarted = Member("99", "", ("https://192.0.2.5:2380",), (), True, False)
    assert etcd_members.find([ONE, unstarted], "") is None
    assert etcd_members.at([ONE, TWO], "https://192.0.2.2:2379") == TWO


def test_the_first_start_names_exactly_the_members_that_there_are() -> None:
    waiting = Member("77", "", ("https://192.0.2.5:2380",), (), False, False)
    unstarted = Member("99", "", ("https://192.0.2.4:2380",), (), True, False)
    said = etcd_members.initial_cluster([ONE, waiting, unstarted], "m4", "https://192.0.2.4:2380")
    assert said == "m1=https://192.0.2.1:2380,77=https://192.0.2.5:2380,m4=https://192.0.2.4:2380"


def test_the_outlook_counts_voters() -> None:
    assert etcd_members.outlook([ONE, TWO, member("m3", learner=True)]) == "etcd has 2 members: 2 must work, 0 may fail"


Start = Callable[[int, str, str], subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def started(number: int, cluster: str, state: str) -> subprocess.Popen[bytes]:
        peer, client = f"http://127.0.0.{number}:{PEER}", f"http://127.0.0.{number}:{CLIENT}"
        with (tmp_path / f"m{number}.log").open("ab") as log:
            processes.append(
                subprocess.Popen(
                    [
                        unpacked("etcd", ["etcd-server"]) / "usr/bin/etcd",
                        f"--name=m{number}",
                        f"--data-dir={tmp_path}/m{number}",
                        f"--listen-client-urls={client}",
                        f"--advertise-client-urls={client}",
                        f"--listen-peer-urls={peer}",
                        f"--initial-advertise-peer-urls={peer}",
                        f"--initial-cluster={cluster}",
                        f"--initial-cluster-state={state}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
        healthy(number)
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait(20)


def endpoint(number: int) -> dict[str, Any]:
    return {"url": f"http://127.0.0.{number}:{CLIENT}"}


def peer(number: int) -> str:
    return f"http://127.0.0.{number}:{PEER}"


def healthy(number: int) -> None:
    deadline = time.monotonic() + 30
    while reason := health.probe({**endpoint(number), "kind": "etcd"}):
        assert time.monotonic() < deadline, reason
        time.sleep(0.1)


def test_members_join_one_after_the_other_and_leave(start: Start) -> None:
    start(1, f"m1={peer(1)}", "new")
    every = [endpoint(3), endpoint(1), endpoint(2)]  # one that does not answer yet goes first
    for number in (2, 3):
        name = f"m{number}"
        assert etcd_members.join(every, name, peer(number), 20, True)[0]
        changed, members = etcd_members.join(every, name, peer(number), 20, False)
        assert changed
        assert not etcd_members.join(every, name, peer(number), 20, False)[0]
        start(number, etcd_members.initial_cluster(members, name, peer(number)), "existing")
        assert etcd.learns(endpoint(number))
        assert etcd_members.promote(every, peer(number), 20, False)[0]
        assert not etcd_members.promote(every, peer(number), 20, False)[0]
        assert not etcd.learns(endpoint(number))
    assert sorted(m.name for m in etcd_members.list_members(every) if m.healthy) == ["m1", "m2", "m3"]

    # The data of one differs: it is still a member of a quorum, or nobody could replace it.
    listed = etcd_members.list_members(every)
    bad = next(m for m in listed if m.name == "m2")
    etcd.ask(endpoint(1), "/v3/maintenance/alarm", {"action": "ACTIVATE", "memberID": bad.id, "alarm": "CORRUPT"})
    seen = [{"name": m.name, "url": m.clients[0]} for m in listed]
    assert etcd_restore.standing(seen, {}, "m2") == {"state": "replace", "refusal": ""}
    assert etcd_restore.standing(seen, {}, "m1") == {"state": "healthy", "refusal": ""}
    alone = [{"name": "m2", "url": endpoint(2)["url"]}, {"name": "m9", "url": endpoint(9)["url"]}]
    assert "no other member can be asked (m9: etcd at" in etcd_restore.standing(alone, {}, "m2")["refusal"]
    assert "run --tags etcd" not in etcd_restore.standing(alone, {}, "m2")["refusal"]
    etcd.ask(endpoint(1), "/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": bad.id, "alarm": "CORRUPT"})

    # The leader leaves, having handed its lead over.
    leader = next(number for number in (1, 2, 3) if etcd.leads(endpoint(number)))
    changed, left = etcd_members.remove(every, f"m{leader}", "", 20, False)
    assert changed
    assert f"m{leader}" not in [m.name for m in left]
    assert not etcd_members.remove(every, f"m{leader}", "", 20, False)[0]


def test_a_member_that_would_take_the_quorum_along_stays(start: Start) -> None:
    start(1, f"m1={peer(1)}", "new")
    _, members = etcd_members.join([endpoint(1)], "m2", peer(2), 20, False)
    second = start(2, etcd_members.initial_cluster(members, "m2", peer(2)), "existing")
    etcd_members.promote([endpoint(1)], peer(2), 20, False)
    second.kill()
    second.wait(20)
    with pytest.raises(etcd_members.MembershipError, match="no quorum: not healthy of 2 members: m1, m2"):
        etcd_members.remove([endpoint(1)], "m2", "", 20, False)


def test_only_where_nobody_answers_is_the_stage_named(start: Start) -> None:
    start(1, f"m1={peer(1)}", "new")
    with pytest.raises(etcd.EtcdError, match="member not found") as refused:
        etcd.first_answer([endpoint(1)], lambda one: etcd.ask(one, "/v3/cluster/member/remove", {"ID": "7"}))
    assert "--tags" not in str(refused.value)
    with pytest.raises(etcd.EtcdError, match="run --tags etcd first"):
        etcd.first_answer([endpoint(9)], etcd.members)
