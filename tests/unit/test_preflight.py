from __future__ import annotations

from typing import Any

from test_topology import build, build_ha

from kubewright import preflight, stages

ROOMS = [preflight.Room("/opt", 1 << 30), preflight.Room("/var/lib", 2 << 30, "docker")]
LIMITS = preflight.Limits("amd64", 2.0, ROOMS)
GOOD: dict[str, Any] = {
    "architecture": "x86_64",
    "python": "3.11.2",
    "systemd": True,
    "free_bytes": {"/opt": 1 << 40, "/var/lib": 1 << 40},
    "skew_seconds": 0.0,
    "held_ports": {},
    "networks": [("host0", "192.168.80.0/24"), ("flannel.1", "10.244.3.0/24"), ("cni0", "10.244.3.0/24")],
    "machine_id": "a",
    "components": [],
    "etcd_data": False,
    "etcd_peer": "",
    "etcd_learner": False,
}

LB = {"macs": ["02:00:00:00:00:31"], "vip": {"interface": "host0", "holder": ""}}
NGINX = {"name": "nginx", "ours": False}


def facts(**by_machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {**GOOD, "machine_id": name, **by_machine.get(name, {})} for name in ("master01", "node01", "node02")}


def problems(found: dict[str, dict[str, Any]]) -> list[str]:
    cluster = build()
    machines = preflight.machines_problems(found, LIMITS, cluster)
    return machines + preflight.cluster_problems(cluster, found)


def vip_problems(**by_machine: dict[str, Any]) -> list[str]:
    cluster = build_ha()
    found: dict[str, Any] = {m.name: {**GOOD, "macs": [m.address], "vip": {}} for m in cluster.machines}
    for name in ("lb01", "lb02"):
        found[name] = {**found[name], **LB, "macs": [f"mac of {name}"], **by_machine.get(name, {})}
    return preflight.vip_problems(cluster, found)


def test_a_virtual_address_that_somebody_has_is_refused() -> None:
    assert vip_problems() == []
    [found] = vip_problems(lb01={"vip": {"interface": "host0", "holder": "02:00:00:00:00:99"}})
    assert found == (
        "lb01: api_vip 192.168.80.100 is already taken: 02:00:00:00:00:99 answers for it on host0; choose an address "
        "that nobody has"
    )
    [found] = vip_problems(lb01={"vip": {"interface": "host0", "holder": "192.168.80.11"}})
    assert "192.168.80.11 (that is node01) answers for it" in found


def test_the_other_load_balancer_may_have_the_virtual_address() -> None:
    assert vip_problems(lb02={"vip": {"interface": "host0", "holder": "mac of lb01"}}) == []


def test_a_new_load_balancer_is_not_brought_up_without_the_one_that_may_be_the_holder() -> None:
    known = {"lb02": {**GOOD, **LB, "vip": {"interface": "host0", "holder": "02:00:00:00:00:99"}}}
    [found] = preflight.vip_problems(build_ha(), known)
    assert found.endswith("choose an address that nobody has, or, if lb01 has it, bring that into this run")
    known["lb02"]["vip"]["holder"] = ""
    assert preflight.vip_problems(build_ha(), known) == []


def test_a_load_balancer_that_was_forgotten_would_take_the_virtual_address() -> None:
    vip = {"interface": "host0", "holder": "", "partners": ["192.168.80.32", "192.168.80.99"]}
    [found] = vip_problems(lb01={"vip": vip})
    assert found.startswith("lb01: 192.168.80.99 has shared api_vip with it, is not in the group lb any more, and is")
    assert found.endswith("delete it from unicast_peer in /opt/kubernetes/lb/keepalived.conf of lb01")
    known = {"lb01": {**GOOD, **LB, "vip": vip}}
    assert preflight.vip_problems(build_ha(), known, ["192.168.80.99"]) == []
    # It is a node now: the run takes the address from it, when it is in the run.
    vip["partners"] = [build_ha().machine("node01").address]
    assert vip_problems(lb01={"vip": vip}) == []
    assert len(preflight.vip_problems(build_ha(), {"lb01": {**GOOD, **LB, "vip": vip}})) == 1


def test_only_runs_that_change_load_balancers_are_refused_for_who_holds_the_virtual_address() -> None:
    every = set(stages.STAGES)
    assert preflight.changes_balancers(every, None, restoring=False)
    assert preflight.changes_balancers(every, "keep", restoring=False)
    assert not preflight.changes_balancers(every - {"lb"}, None, restoring=False)
    assert not preflight.changes_balancers(every, "keep", restoring=True)
    assert not preflight.changes_balancers(every, "none", restoring=False)


def test_a_virtual_address_of_no_network_of_the_machine() -> None:
    [found] = vip_problems(lb01={"vip": {"interface": "", "holder": ""}})
    assert found.startswith("lb01: api_vip 192.168.80.100 is in none of its networks (host0 192.168.80.0/24")


def test_who_has_parts_of_a_load_balancer_and_none_in_it() -> None:
    all_three = {"components": ["kubelet", "kube-lb", "kube-lb-check", "kube-lb-vip"]}
    found = dict.fromkeys(["lb01", "node01"], all_three) | {"master01": {"components": ["kube-apiserver"]}}
    assert preflight.lb_leavings(build_ha(), found) == {"node01": ["kube-lb-vip", "kube-lb-check", "kube-lb"]}
    assert preflight.lb_leavings(build_ha(lb=False), {"node01": all_three}) == {"node01": ["kube-lb-vip"]}


def test_helpers_are_those_that_answer_before_those_that_do_not() -> None:
    facts = {"b": {"api_ready": False}, "c": {"api_ready": True}}
    assert preflight.helpers(["a", "b", "c"], facts, "api_ready") == ["c", "b", "a"]
    assert preflight.helpers(["a", "b", "c"], facts) == ["b", "c", "a"]


def test_who_is_asked_outside_of_the_run() -> None:
    groups = {"etcd": ["m1", "m2"], "kube_master": ["m1", "m2"], "kube_node": ["n1", "n2"]}
    assert preflight.outside(groups, ["n1"]) == ["m1", "m2"]
    assert preflight.outside(groups, ["m1", "n1"]) == []
    assert preflight.outside(groups, ["m1", "m2"], everybody=True) == ["n1", "n2"]
    assert preflight.outside(groups, ["n2"], everybody=True) == ["m1", "m2", "n1"]


def test_good_machines_have_no_problems() -> None:
    assert problems(facts()) == []


def test_every_problem_of_every_machine_at_once() -> None:
    found = facts(
        master01={"architecture": "aarch64", "held_ports": {"6443": NGINX}},
        node01={"skew_seconds": 7.25, "free_bytes": {"/opt": 5 << 20, "/var/lib": 1 << 40}},
    )
    del found["node02"]
    text = "\n".join(problems(found))
    for expected in (
        "master01: architecture is aarch64",
        "port 6443 is held by 'nginx', kube-apiserver needs it",
        "node01: its clock is off by 7.2 s",
        "/opt has 5 MiB free, 1024 MiB are needed",
    ):
        assert expected in text


def test_a_port_may_be_held_by_the_service_itself() -> None:
    held = {"10257": {"name": "kube-controller", "ours": True}, "2379": {"name": "etcd", "ours": True}}
    assert problems(facts(master01={"held_ports": held})) == []


def test_somebody_elses_service_of_the_same_name_is_somebody_elses() -> None:
    held = {"2379": {"name": "etcd", "ours": False}, "10252": {"name": "kube-controller", "ours": False}}
    assert problems(facts(master01={"held_ports": held})) == [
        "master01: port 2379 is held by another 'etcd', etcd needs it; stop that process or move it",
        "master01: port 10252 is held by another 'kube-controller', kube-controller-manager needs it; stop that "
        "process or move it",
    ]


def test_room_is_needed_where_something_is_to_come() -> None:
    full = {"free_bytes": {"/opt": 0, "/var/lib": 0}}
    assert len(problems(facts(node01=full))) == 2
    # master01 is no node: it gets no Docker.
    assert len(problems(facts(master01=full))) == 1
    assert problems(facts(node01={**full, "components": ["docker"]})) == []
    assert len(problems(facts(node01={**full, "components": ["flanneld"]}))) == 1


def test_only_ports_that_the_machine_needs_matter() -> None:
    assert problems(facts(node01={"held_ports": {"6443": NGINX}})) == []


def test_cloned_machine_ids() -> None:
    found = problems(facts(node01={"machine_id": "x"}, node02={"machine_id": "x"}))
    assert any("node02: has the same /etc/machine-id as node01" in problem for problem in found)


def test_etcd_is_new_only_when_no_member_was_ever_healthy() -> None:
    assert preflight.etcd_is_new(build(), facts())
    assert not preflight.etcd_is_new(build(), facts(node01={"components": ["etcd"]}))
    unseen = facts()
    del unseen["node02"]
    assert not preflight.etcd_is_new(build(), unseen)


def test_a_first_run_that_was_killed_may_go_on() -> None:
    assert problems(facts(node01={"etcd_data": True})) == []


def test_who_joins_a_living_etcd() -> None:
    lived = {"components": ["etcd"], "etcd_data": True}
    assert preflight.etcd_joining(build(), facts()) == []
    assert preflight.etcd_joining(build(), facts(master01=lived)) == ["node01", "node02"]
    # One that was started and not promoted, because a run ended in between.
    learner = {**lived, "etcd_learner": True}
    assert preflight.etcd_joining(build(), facts(master01=lived, node01=lived, node02=learner)) == ["node02"]
    unseen = facts(master01=lived, node01=lived)
    del unseen["node02"]
    assert preflight.etcd_joining(build(), unseen) == []


def test_an_even_number_of_members_forms_no_cluster_but_may_live() -> None:
    even = build({"etcd": ["master01", "node01"]})
    found, warnings = preflight.etcd_count_problems(even, facts())
    assert found[0].startswith("etcd: 2 members (master01, node01); an even number")
    assert warnings == []
    lived = {"components": ["etcd"], "etcd_data": True}
    assert preflight.etcd_count_problems(even, facts(master01=lived))[0] == []
    assert preflight.etcd_count_problems(even, facts(master01=lived))[1] == found
    assert preflight.etcd_count_problems(build(), facts()) == ([], [])


def test_a_member_keeps_its_address() -> None:
    lived = {"components": ["etcd"], "etcd_data": True}
    known = {
        "master01": {**lived, "etcd_peer": "192.168.80.10"},
        "node01": {**lived, "etcd_peer": "192.168.80.91"},
        "node02": lived,
    }
    found = problems(facts(**known))
    assert len(found) == 1
    assert found[0].startswith(
        "node01: the other etcd members know it at 192.168.80.91, the inventory has 192.168.80.11"
    )


def test_lost_etcd_data_never_becomes_a_new_member() -> None:
    lived = {"components": ["etcd"], "etcd_data": True}
    found = problems(facts(master01=lived, node01=lived, node02={"components": ["etcd"], "etcd_data": False}))
    assert any("node02: its etcd member ran before and its data" in problem for problem in found)


def test_a_machine_in_a_network_of_ours() -> None:
    found = problems(facts(node01={"networks": [["eth1", "10.244.8.0/22"]]}))
    assert found == [
        "node01: its interface eth1 is in 10.244.8.0/22, which overlaps pod_cidr 10.244.0.0/16; change pod_cidr"
    ]
