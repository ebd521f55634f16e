"""Plans of upgrades and rollbacks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kubewright import stages, upgrade, versions
from kubewright.errors import UserError

_PARTS = {
    "kube-apiserver": "kube-apiserver",
    "kubectl": "kube-apiserver",
    "kube-scheduler": "kube-scheduler",
    "kube-controller-manager": "kube-controller-manager",
    "kubelet": "kubelet",
    "kube-proxy": "kube-proxy",
    "etcd": "etcd",
    "dockerd": "docker",
    "runc": "docker",
    "flanneld": "flanneld",
    "cni-bridge": "flanneld",
}
MASTER = ("kube-apiserver", "kubectl", "kube-scheduler", "kube-controller-manager", "etcd")
NODE = ("kubelet", "kube-proxy", "dockerd", "runc", "flanneld", "cni-bridge")
RUNS = {
    **dict.fromkeys(upgrade.KUBERNETES, "1.20.2"),
    "etcd": "3.4.23",
    "dockerd": "20.10.24",
    "runc": "1.1.5",
    "flanneld": "0.1.0-aaaaaaaa",
    "cni-bridge": "1.1.1",
}


def digest(version: str) -> str:
    return version.ljust(64, "0")


def machine(
    names: tuple[str, ...],
    previous: dict[str, str] | None = None,
    *,
    stored: bool = True,
    changed: tuple[str, int] | None = None,
    **other: str,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        known = {"by": changed[0], "at": changed[1]} if changed else {}
        part = found.setdefault(_PARTS[name], {"artifacts": {}, "previous": {}, "changed": known})
        version = other.get(name.replace("-", "_"), RUNS[name])
        part["artifacts"][name] = {
            "link": f"/bin/{name}",
            "version": version,
            "sha256": digest(version),
            "stored": stored,
        }
        if previous and name in previous:
            then = previous[name]
            part["previous"][name] = {
                "link": f"/bin/{name}",
                "version": then,
                "sha256": digest(then),
                "stored": stored,
            }
    return found


def wanted(**other: str) -> dict[str, dict[str, str]]:
    asked = {**RUNS, **{name.replace("_", "-"): version for name, version in other.items()}}
    return {name: {"version": version, "sha256": digest(version)} for name, version in asked.items()}


def kubernetes(version: str) -> dict[str, str]:
    return {name.replace("-", "_"): version for name in upgrade.KUBERNETES}


CLUSTER = {"m1": machine(MASTER), "n1": machine(NODE), "n2": machine(NODE)}


def problems(target: dict[str, dict[str, str]], version: str, machines: Any = None, via: Any = ()) -> list[str]:
    return upgrade.plan(machines or CLUSTER, target, version, via, live_restore=True)[1]


def test_nothing_to_do() -> None:
    [only], found = upgrade.plan(CLUSTER, wanted(), "1.20.2", [], live_restore=True)
    assert found == []
    assert only.changes == ()
    assert only.facts()["nodes"] == []


def test_another_build_needs_no_drain_and_another_docker_does() -> None:
    built, found = upgrade.plan(CLUSTER, wanted(**kubernetes("1.20.2+kw2")), "1.20.2", [], live_restore=True)
    assert (found, built[0].drain) == ([], ())
    facts = built[0].facts()
    assert (facts["etcd"], facts["masters"], facts["nodes"]) == ([], ["m1"], ["n1", "n2"])
    docker, _ = upgrade.plan(CLUSTER, wanted(dockerd="26.1.5"), "1.20.2", [], live_restore=True)
    assert docker[0].drain == ("n1", "n2")
    patch, _ = upgrade.plan(CLUSTER, wanted(dockerd="20.10.25"), "1.20.2", [], live_restore=True)
    assert patch[0].drain == ()
    patch, _ = upgrade.plan(CLUSTER, wanted(dockerd="20.10.25"), "1.20.2", [], live_restore=False)
    assert patch[0].drain == ("n1", "n2")
    flannel, _ = upgrade.plan(CLUSTER, wanted(flanneld="0.1.0-bbbbbbbb"), "1.20.2", [], live_restore=True)
    assert (flannel[0].drain, flannel[0].facts()["nodes"]) == ((), ["n1", "n2"])
    always, _ = upgrade.plan(CLUSTER, wanted(flanneld="0.1.0-bb"), "1.20.2", [], live_restore=True, drain="always")
    assert always[0].drain == ("n1", "n2")


def test_machines_that_are_done_are_left_alone() -> None:
    half = {**CLUSTER, "n1": machine(NODE, kubelet="1.20.2+kw2", kube_proxy="1.20.2+kw2")}
    [only], _ = upgrade.plan(half, wanted(**kubernetes("1.20.2+kw2")), "1.20.2", [], live_restore=True)
    assert only.facts()["nodes"] == ["n2"]


def test_a_snapshot_only_before_the_first_member() -> None:
    members = {name: machine(("kube-apiserver", "etcd")) for name in ("e1", "e2", "e3")}
    first, _ = upgrade.plan(members, wanted(etcd="3.5.16"), "1.20.2", [], live_restore=True)
    assert first[0].facts()["snapshot"] is True
    members["e1"] = machine(("kube-apiserver", "etcd"), etcd="3.5.16")
    second, _ = upgrade.plan(members, wanted(etcd="3.5.16"), "1.20.2", [], live_restore=True)
    assert (second[0].facts()["snapshot"], second[0].facts()["etcd"]) == (False, ["e2", "e3"])


def test_a_snapshot_before_the_first_member_also_one_by_one() -> None:
    members = {name: machine(("kube-apiserver", "etcd")) for name in ("e1", "e2", "e3")}
    taken = []
    for name in members:
        [only], found = upgrade.plan(
            members, wanted(etcd="3.5.16"), "1.20.2", [], live_restore=True, concerned=lambda one, _, n=name: one == n
        )
        assert (found, only.facts()["etcd"]) == ([], [name])
        taken.append(only.snapshot)
        members[name] = machine(("kube-apiserver", "etcd"), etcd="3.5.16")
    assert taken == [True, False, False]


def test_a_rollback_leaves_the_snapshot_of_before_the_upgrade() -> None:
    members = {name: machine(("etcd",), {"etcd": "3.4.13"}) for name in ("e1", "e2")}
    found, refused = upgrade.ways_back(members)
    assert (len(found), refused) == (2, [])
    assert upgrade.way_back(found, "1.20.2", "auto").facts()["snapshot"] is False


def test_several_minor_versions_are_several_rounds() -> None:
    rounds, found = upgrade.plan(CLUSTER, wanted(**kubernetes("1.22.3")), "1.22.3", [], live_restore=True)
    assert found == []
    assert [one.version for one in rounds] == ["1.21.14", "1.22.3"]
    assert [one.drain for one in rounds] == [("n1", "n2"), ("n1", "n2")]
    assert {(c.old, c.new) for c in rounds[0].changes} == {("1.20.2", "1.21.14")}
    assert {(c.old, c.new) for c in rounds[1].changes} == {("1.21.14", "1.22.3")}
    # As the playbook does it: the roles of a round bring all that is not Kubernetes as well.
    other = wanted(etcd="3.5.9", dockerd="26.1.5", **kubernetes("1.22.3"))
    rounds, found = upgrade.plan(CLUSTER, other, "1.22.3", [], live_restore=True)
    assert found == []
    assert {c.artifact for c in rounds[0].changes} - set(upgrade.KUBERNETES) == {"etcd", "dockerd"}
    assert {c.artifact for c in rounds[1].changes} <= set(upgrade.KUBERNETES)
    assert [one.snapshot for one in rounds] == [True, False]
    via, _ = upgrade.plan(CLUSTER, wanted(**kubernetes("1.22.3")), "1.22.3", ["1.21.1"], live_restore=True)
    assert [one.version for one in via] == ["1.21.1", "1.22.3"]


@pytest.mark.parametrize(
    ("asked", "version", "via", "said"),
    [
        ({"kube_apiserver": "1.19.7"}, "1.19.7", (), "m1: kube-apiserver 1.20.2 cannot go back to 1.19.7"),
        ({"etcd": "3.3.27"}, "1.20.2", (), "etcd 3.4.23 cannot go back to 3.3.27: its data has moved on; allowed are"),
        ({"etcd": "3.6.1"}, "1.20.2", (), "m1: etcd 3.4.23 cannot go to 3.6.1 at once; the next step is 3.5"),
        ({"dockerd": "29.0.0"}, "1.20.2", (), "Docker 29.0.0 does not speak with kubelet 1.20.2"),
        (kubernetes("1.22.3"), "1.22.3", ("1.20.9",), "upgrade_via: ['1.21.14']"),
    ],
)
def test_forbidden_steps(asked: dict[str, str], version: str, via: tuple[str, ...], said: str) -> None:
    assert any(said in problem for problem in problems(wanted(**asked), version, via=via))


def masters(first: str, second: str, node: str = "1.20.2") -> dict[str, Any]:
    found = {name: machine(MASTER, **kubernetes(version)) for name, version in (("m1", first), ("m2", second))}
    return {**found, "n1": machine(NODE, **kubernetes(node))}


@pytest.mark.parametrize("via", [(), ("1.21.14",)])
def test_a_run_that_goes_on_leaves_out_what_is_done(via: tuple[str, ...]) -> None:
    target = wanted(**kubernetes("1.22.3"))
    for first, second in (("1.22.3", "1.21.14"), ("1.22.3", "1.22.3")):
        rounds, found = upgrade.plan(masters(first, second, "1.21.14"), target, "1.22.3", via, live_restore=True)
        assert found == []
        assert [one.version for one in rounds] == ["1.22.3"]
        assert {(c.machine, c.old, c.new) for c in rounds[0].changes if c.machine != "m1"} >= {
            ("n1", "1.21.14", "1.22.3")
        }
        assert all(c.machine != "m1" for c in rounds[0].changes)


def test_no_round_goes_back() -> None:
    half = masters("1.22.3", "1.21.14", "1.21.14")
    found = problems(wanted(**kubernetes("1.23.3")), "1.23.3", half, ("1.21.15", "1.22.3"))
    assert any("kube-apiserver 1.22.3 cannot go back to 1.21.15" in problem for problem in found)


def test_a_round_that_failed_ends_before_the_next_one_begins() -> None:
    cluster = {**masters("1.21.14", "1.21.14", "1.21.14"), "n2": machine(NODE)}
    rounds, found = upgrade.plan(cluster, wanted(**kubernetes("1.23.3")), "1.23.3", [], live_restore=True)
    assert found == []
    assert [one.version for one in rounds] == ["1.21.14", "1.22.17", "1.23.3"]
    assert {c.machine for c in rounds[0].changes} == {"n2"}
    assert rounds[0].drain == ("n2",)
    assert {(c.old, c.new) for c in rounds[1].changes} == {("1.21.14", "1.22.17")}
    # It may be two minor versions behind; only more rounds than one would leave it further behind.
    rounds, found = upgrade.plan(cluster, wanted(**kubernetes("1.22.3")), "1.22.3", [], live_restore=True)
    assert (found, [one.version for one in rounds]) == ([], ["1.22.3"])
    # What the masters may not have beside them is brought up first, too.
    older = {**masters("1.20.2", "1.20.2"), "n2": machine(NODE, **kubernetes("1.18.20"))}
    rounds, found = upgrade.plan(older, wanted(**kubernetes("1.22.3")), "1.22.3", [], live_restore=True)
    assert found == []
    assert [one.version for one in rounds] == ["1.20.2", "1.21.14", "1.22.3"]
    [problem] = problems(wanted(**kubernetes("1.23.3")), "1.23.3", older)
    assert problem == "1.20.2 -> 1.23.3 takes 4 rounds, one run does 3; first go to 1.22.17"


def test_more_rounds_than_one_run_does() -> None:
    old = {"m1": machine(MASTER, **kubernetes("1.18.2"))}
    [problem] = problems(wanted(**kubernetes("1.22.3")), "1.22.3", old)
    assert problem == "1.18.2 -> 1.22.3 takes 4 rounds, one run does 3; first go to 1.21.14"


def only(*parts: str) -> upgrade.Concerned:
    return lambda _, part: part in parts


_CONTROL_PLANE = ("kube-apiserver", "kube-scheduler", "kube-controller-manager")


def test_a_part_of_an_upgrade_changes_that_part_and_is_judged_by_all() -> None:
    target = wanted(etcd="3.5.16", dockerd="26.1.5", **kubernetes("1.20.9"))
    [etcd], found = upgrade.plan(CLUSTER, target, "1.20.9", [], live_restore=True, concerned=only("etcd"))
    assert (found, {change.artifact for change in etcd.changes}) == ([], {"etcd"})
    [docker], found = upgrade.plan(CLUSTER, target, "1.20.9", [], live_restore=True, concerned=only("docker"))
    assert (found, docker.facts()["nodes"], docker.drain) == ([], ["n1", "n2"], ("n1", "n2"))
    assert {change.artifact for change in docker.changes} == {"dockerd"}
    limited, found = upgrade.plan(
        CLUSTER, target, "1.20.9", [], live_restore=True, concerned=lambda name, _: name == "n2"
    )
    assert (found, limited[0].facts()["nodes"]) == ([], ["n2"])


@pytest.mark.parametrize(
    ("machines", "goal", "parts", "said"),
    [
        ({"n1": machine(NODE, kubelet="1.18.2")}, "1.21.14", _CONTROL_PLANE, "n1: kubelet 1.18.2 is 3 minor versions"),
        ({"n1": machine(NODE)}, "1.23.17", _CONTROL_PLANE, "n1: kubelet 1.20.2 is 3 minor versions behind"),
        ({"n1": machine(NODE)}, "1.21.14", ("kubelet",), "n1: kubelet 1.21.14 is newer than API servers of 1.20.2"),
        ({"m1": machine(MASTER, etcd="3.3.27")}, "1.22.17", _CONTROL_PLANE, "needs etcd 3.4 or newer, this is 3.3.27"),
    ],
)
def test_tags_do_not_switch_the_rules_off(
    machines: dict[str, Any], goal: str, parts: tuple[str, ...], said: str
) -> None:
    cluster = {"m1": machine(MASTER), **machines}
    target = wanted(etcd="3.5.16", **kubernetes(goal))
    rounds, found = upgrade.plan(cluster, target, goal, [], live_restore=True, concerned=only(*parts))
    assert rounds == []
    assert any(said in problem for problem in found), found


def test_one_master_at_a_time_by_limit_stays_beside_the_others() -> None:
    two = {"m1": machine(MASTER), "m2": machine(MASTER), "n1": machine(NODE)}
    target = wanted(**kubernetes("1.22.17"))
    _, found = upgrade.plan(two, target, "1.22.17", [], live_restore=True, concerned=lambda name, _: name == "m1")
    assert found == [
        "m2: kube-apiserver 1.20.2 is 2 minor versions behind API servers of 1.22.17; 1.21 is the oldest; bring it up "
        "first",
        "m2: kube-controller-manager 1.20.2 is 2 minor versions behind API servers of 1.22.17; 1.21 is the oldest; "
        "bring it up first",
        "m2: kube-scheduler 1.20.2 is 2 minor versions behind API servers of 1.22.17; 1.21 is the oldest; bring it up "
        "first",
    ]


def test_another_minor_version_needs_all_answers() -> None:
    def asked(goal: str, *parts: str) -> list[str]:
        target = wanted(etcd="3.5.16", **kubernetes(goal))
        return upgrade.plan(CLUSTER, target, goal, [], live_restore=True, concerned=only(*parts), silent=["n3", "n4"])[
            1
        ]

    assert [one.split(":")[0] for one in asked("1.21.14", *_CONTROL_PLANE)] == ["n3, n4"]
    assert "no answer" in asked("1.21.14", *_CONTROL_PLANE, "kubelet", "kube-proxy")[0]
    assert asked("1.20.15", *_CONTROL_PLANE) == []
    assert asked("1.21.14", "etcd") == []


@pytest.mark.parametrize("hop", ["latest", "1.21", "", "v"])
def test_a_release_between_that_is_none(hop: str) -> None:
    with pytest.raises(UserError, match=f"upgrade_via: '{hop}' is not a Kubernetes version"):
        problems(wanted(**kubernetes("1.22.3")), "1.22.3", via=[hop])


def test_skew_is_checked_against_the_next_api_server() -> None:
    late = {**CLUSTER, "n2": machine(NODE, kubelet="1.18.9")}
    [problem] = problems(wanted(**kubernetes("1.21.1")), "1.21.1", late)
    assert problem == (
        "n2: kubelet 1.18.9 is 3 minor versions behind API servers of 1.21.1; 1.19 is the oldest; bring it up first"
    )
    assert problems(wanted(**kubernetes("1.20.9")), "1.20.9", late) == []
    ahead = {**CLUSTER, "n2": machine(NODE, kubelet="1.21.1")}
    assert "kubelet 1.21.1 cannot go back to 1.20.2" in problems(wanted(), "1.20.2", ahead)[0]


def test_nothing_installed_is_no_upgrade() -> None:
    assert "site.yml installs a cluster" in problems(wanted(), "1.20.2", {"n1": machine(NODE)})[0]


def test_a_stage_changes_no_versions_in_passing() -> None:
    assert upgrade.unasked(CLUSTER, wanted(flanneld="0.1.0-bbbbbbbb")) == []
    rebuilt = wanted()
    rebuilt["kubelet"]["sha256"] = "f" * 64
    assert upgrade.unasked(CLUSTER, rebuilt) == []
    found = upgrade.unasked(CLUSTER, wanted(kubelet="1.20.3", runc="1.1.15"))
    assert upgrade.table(found) == [
        "kubelet      1.20.2 -> 1.20.3  n1, n2",
        "docker/runc  1.1.5 -> 1.1.15   n1, n2",
    ]


_PARTS_OF = {
    "m1": {"is_etcd": True, "is_master": True, "is_node": False},
    "n1": {"is_etcd": False, "is_master": False, "is_node": True},
    "n3": {"is_etcd": True, "is_master": False, "is_node": True},
}


def test_a_new_machine_gets_what_the_others_run() -> None:
    def found(machines: dict[str, Any], concerned: upgrade.Concerned, **other: str) -> list[tuple[str, str, str]]:
        strangers = upgrade.strange(machines, wanted(**other), _PARTS_OF, concerned)
        return [(one.machine, one.old, one.new) for one in strangers if one.component in ("etcd", "kubelet")]

    def anything(_machine: str, _component: str) -> bool:
        return True

    cluster = {"m1": CLUSTER["m1"], "n1": CLUSTER["n1"], "n3": {}}
    assert found(cluster, anything) == []
    assert found(cluster, anything, kubelet="1.21.14") == [("n3", "1.20.2", "1.21.14")]
    assert found(cluster, only("etcd"), kubelet="1.21.14", etcd="3.5.16") == [("n3", "3.4.23", "3.5.16")]
    # With --limit only masters are asked beside it: their API server speaks for all of Kubernetes.
    assert found({"m1": CLUSTER["m1"], "n3": {}}, anything, kubelet="1.21.14") == [("n3", "1.20.2", "1.21.14")]
    # Half-way through an upgrade either version is one of the cluster; with nothing there any is.
    assert found({**cluster, "n2": machine(NODE, kubelet="1.20.9")}, anything, kubelet="1.20.9") == []
    assert found({"m1": {}, "n3": {}}, anything, kubelet="1.23.17", etcd="3.5.16") == []


def test_back_to_what_ran_before() -> None:
    then = {"kubelet": "1.20.1", "dockerd": "19.3.15", "runc": "1.1.5"}
    machines = {"m1": machine(MASTER), "n1": machine(NODE, then)}
    found, refused = upgrade.ways_back(machines)
    assert refused == []
    assert {(c.machine, c.artifact, c.new) for c in found} == {
        ("n1", "kubelet", "1.20.1"),
        ("n1", "dockerd", "19.3.15"),
    }
    assert upgrade.way_back(found, "1.20.2", "auto").drain == ("n1",)
    known = {name: {**one, "path": f"/cache/{name}"} for name, one in wanted(etcd="3.5.16").items()}
    before = upgrade.of_machine(known, machines["n1"], "")
    assert (before["kubelet"]["version"], before["kubelet"]["path"]) == ("1.20.1", "")
    assert before["kube-proxy"] == known["kube-proxy"]


def test_a_machine_that_keeps_what_it_runs() -> None:
    known = {name: {**one, "path": f"/cache/{name}"} for name, one in wanted(kubelet="1.20.9", etcd="3.5.16").items()}
    kept = upgrade.of_machine(known, machine(NODE, {"kubelet": "1.20.1"}, changed=("set2", 2)))
    assert (kept["kubelet"]["version"], kept["kubelet"]["path"]) == ("1.20.2", "")
    assert kept["etcd"] == known["etcd"], "not there yet: what the inventory says"
    assert upgrade.release_of(machine((*MASTER, "kubelet"), kubelet="1.19.7", kube_apiserver="1.20.2+kw2")) == "1.20.2"
    assert upgrade.release_of(machine(("etcd",))) == ""


def test_what_runs_must_still_be_there_where_another_one_is_asked_for() -> None:
    known = {name: {**one, "path": f"/cache/{name}"} for name, one in wanted(kubelet="1.20.9", flanneld="0.2").items()}
    gone = machine(NODE, stored=False)
    with pytest.raises(
        UserError, match=r"(?s)^kubelet 1\.20\.2: what this machine runs is no longer in its .* artifacts_lock"
    ):
        upgrade.of_machine(known, gone)
    same = {**known, "kubelet": {**wanted()["kubelet"], "path": "/cache/kubelet"}}
    kept = upgrade.of_machine(same, gone)
    assert (kept["kubelet"], kept["flanneld"]) == (same["kubelet"], same["flanneld"])
    # Where it goes back to is another question, which ways_back has answered.
    back = machine(NODE, {"kubelet": "1.20.1"}, changed=("set", 1))
    back["kubelet"]["artifacts"]["kubelet"]["stored"] = False
    assert upgrade.of_machine(known, back, "set")["kubelet"]["version"] == "1.20.1"


def names(found: list[upgrade.Change]) -> set[tuple[str, str, str]]:
    return {(change.machine, change.artifact, change.new) for change in found}


def test_back_is_to_before_the_last_upgrade_only() -> None:
    reached = machine(NODE, {"kubelet": "1.20.5"}, changed=("march", 30), kubelet="1.20.9")
    untouched = machine(NODE, {"kubelet": "1.18.2"}, changed=("february", 20), kubelet="1.20.5")
    machines = {"n1": reached, "n2": untouched}
    found, refused = upgrade.ways_back(machines)
    assert (names(found), refused) == ({("n1", "kubelet", "1.20.5")}, [])
    known = wanted(kubelet="1.20.9")
    last = upgrade.last_set(machines)
    assert upgrade.of_machine(known, untouched, last)["kubelet"]["version"] == "1.20.5"
    assert upgrade.of_machine(known, reached, last)["kubelet"]["version"] == "1.20.5"
    # The component of a month before stays, whatever it could go back to.
    docker = machine(("dockerd",), {"dockerd": "19.3.15"}, changed=("january", 10))
    found, refused = upgrade.ways_back({"n1": {**reached, **docker}})
    assert (names(found), refused) == ({("n1", "kubelet", "1.20.5")}, [])


def test_an_upgrade_that_left_nothing_is_not_the_one_to_undo_unasked() -> None:
    now = machine(NODE, {"kubelet": "1.20.1"}, changed=("february", 20))
    assert (upgrade.last_change({"n1": now}), upgrade.in_vain({"n1": now})) == (20, 0)
    now["docker"]["tried"] = {"by": "march", "at": 30}
    assert (upgrade.last_change({"n1": now}), upgrade.in_vain({"n1": now})) == (20, 30)
    # Of the same set something is left, or it went well later.
    now["docker"]["tried"] = {"by": "february", "at": 30}
    assert upgrade.in_vain({"n1": now}) == 0
    now["docker"]["tried"] = {"by": "january", "at": 10}
    assert upgrade.in_vain({"n1": now}) == 0


def test_what_a_machine_outside_was_changed_to_counts() -> None:
    reached = machine(NODE, {"kubelet": "1.20.5"}, changed=("march", 30), kubelet="1.20.9")
    untouched = machine(NODE, {"dockerd": "20.10.20"}, changed=("february", 20))
    found, _ = upgrade.ways_back({"n1": untouched, "n2": reached}, lambda name, _: name == "n1")
    assert found == []


def test_back_once_is_not_back_twice() -> None:
    gone_back = machine(NODE, changed=("march", 30))
    untouched = machine(NODE, {"kubelet": "1.20.1"}, changed=("february", 20))
    assert upgrade.ways_back({"n1": gone_back, "n2": untouched}) == ([], [])


def test_back_with_tags_and_limit() -> None:
    node = machine(NODE, {"kubelet": "1.20.1", "dockerd": "19.3.15"}, changed=("march", 30))
    found, _ = upgrade.ways_back({"n1": node, "n2": node}, lambda name, part: name == "n1" and part == "docker")
    assert names(found) == {("n1", "dockerd", "19.3.15")}


def test_no_way_back() -> None:
    etcd = {"m1": machine(MASTER, {"etcd": "3.4.23", "kube-apiserver": "1.19.2"}, etcd="3.5.16")}
    _, refused = upgrade.ways_back(etcd)
    assert [problem.partition(":")[2].split(" cannot")[0] for problem in refused] == [
        " kube-apiserver 1.20.2",
        " etcd 3.5.16",
    ]
    _, refused = upgrade.ways_back({"n1": machine(NODE, {"kubelet": "1.20.1"}, stored=False)})
    assert "is no longer in /opt/kubewright/store there" in refused[0]


@pytest.mark.parametrize(("asked", "nodes", "number"), [("3", 2, 3), ("20%", 10, 2), ("20%", 9, 1), ("1%", 9, 1)])
def test_how_many_at_once(asked: str, nodes: int, number: int) -> None:
    assert upgrade.at_once(asked, nodes) == number


@pytest.mark.parametrize("asked", ["0", "-1", "half", "101%", "1.5", ""])
def test_how_many_at_once_is_a_number(asked: str) -> None:
    with pytest.raises(UserError, match=f"upgrade_nodes_at_once: '{asked}' is neither a number"):
        upgrade.at_once(asked, 3)


def test_components_have_stages() -> None:
    assert stages.of_component("kube-scheduler") == "master"
    assert stages.of_component("kubelet") == "bootstrap"
    assert stages.of_component("kube-lb-vip") == "lb"
    assert stages.of_component("nginx") == ""


def test_what_goes_with_what() -> None:
    assert versions.etcd_fits("3.3.2", "1.22.1") == "Kubernetes 1.22.1 needs etcd 3.4 or newer, this is 3.3.2"
    assert versions.etcd_fits("3.3.2", "1.20.2") == ""
    assert "is newer than 3.5" in versions.etcd_fits("3.6.0", "1.20.2")
    assert versions.skew("kube-scheduler", "1.20.1", "1.21.3") == ""
    assert "1.21 is the oldest" in versions.skew("kube-scheduler", "1.20.1", "1.22.3")
    assert versions.numbers("v1.20.2+kw2") == (1, 20, 2)
    assert versions.numbers("none") == ()
    assert versions.docker_fits("edge", "1.20.2") == ""


_OPERATIONS = Path(__file__).parents[2] / "playbooks" / "ops"


def _preflights() -> dict[str, str]:
    """Playbook -> what its preflight does about versions."""
    found = {}
    for path in _OPERATIONS.glob("*.yml"):
        for play in yaml.safe_load(path.read_text()):
            if play.get("ansible.builtin.import_playbook") == "../preflight.yml":
                found[path.stem] = play.get("vars", {}).get("artifacts_change", "guard")
    return found


def test_a_cluster_of_mixed_versions_can_be_operated() -> None:
    """Only new machines and another network need the versions: half-way through an upgrade nothing else stops."""
    preflights = _preflights()
    assert {name for name, what in preflights.items() if what == "guard"} == {"add", "network"}
    assert {name for name, what in preflights.items() if what == "none"} == {
        "backup",
        "certs_report",
        "etcd_maintain",
        "restore_rehearsal",
    }
