from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from test_topology import build, build_ha

from kubewright import stages

ROOT = Path(__file__).resolve().parents[2]
ALL = ["etcd", "flanneld", "docker", "kube-apiserver", "kubelet", "kube-proxy"]


def facts(components: list[str], *, has_pki: bool = True) -> dict[str, Any]:
    return {
        name: {"components": components, "cas": {"/opt/kubernetes/ssl/ca.pem": ["1"]} if has_pki else {}}
        for name in ("master01", "node01", "node02")
    }


def test_the_table_has_the_stages_of_the_site() -> None:
    names = [play["ansible.builtin.import_playbook"] for play in yaml.safe_load((ROOT / "site.yml").read_text())]
    assert names[0] == "playbooks/preflight.yml"
    tags = [yaml.safe_load((ROOT / name).read_text())[0]["tags"] for name in names[1:]]
    assert tags == [[stage] for stage in stages.STAGES]


def test_a_whole_run_needs_nothing() -> None:
    assert stages.missing(build(), facts([], has_pki=False), stages.of_run(["all"], [])) == []


def test_a_tag_alone_names_what_to_run_first_and_where() -> None:
    found = stages.missing(build(), facts(["etcd", "docker"]), stages.of_run(["bootstrap"], []))
    assert len(found) == 1
    assert found[0].startswith("--tags bootstrap: the stage master is not done on master01; run --tags master first")


def test_what_comes_with_the_run_is_not_missing() -> None:
    bare = facts([], has_pki=False)
    assert stages.missing(build(), bare, stages.of_run(["pki", "etcd"], [])) == []
    assert "the stage pki is not done" in stages.missing(build(), bare, stages.of_run(["etcd"], []))[0]
    assert "the stage etcd" in stages.missing(build(), facts([]), stages.of_run(["all"], ["etcd"]))[0]


def test_docker_needs_flannel_only_where_its_bridge_is_the_pod_network() -> None:
    run = stages.of_run(["docker"], [])
    assert stages.missing(build(), facts([]), run) == []
    assert "the stage flannel" in stages.missing(build(network_mode="docker"), facts([]), run)[0]


def test_nodes_need_the_load_balancer_where_there_is_one() -> None:
    cluster = build_ha()
    known = {m.name: {"components": ALL, "cas": {"/opt/kubernetes/ssl/ca.pem": ["1"]}} for m in cluster.machines}
    [found] = stages.missing(cluster, known, {"bootstrap"})
    assert "the stage lb is not done on lb01, lb02; run --tags lb first" in found
    for name in ("lb01", "lb02"):
        known[name]["components"] = ["kube-lb", "kube-lb-check", "kube-lb-vip"]
    assert stages.missing(cluster, known, {"bootstrap", "proxy", "verify"}) == []


def test_a_finished_cluster_takes_every_tag() -> None:
    for stage in stages.STAGES:
        assert stages.missing(build(), facts(ALL), stages.of_run([stage], [])) == []
