"""Which stage needs which: a tag alone must say what to run first on machines that are not that far."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kubewright.topology import Cluster, Machine

# In the order of site.yml.
STAGES = ("sysprep", "pki", "etcd", "flannel", "docker", "master", "lb", "bootstrap", "proxy", "verify")
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "etcd": ("pki",),
    "flannel": ("pki", "etcd"),
    "master": ("pki", "etcd"),
    "lb": ("pki", "master"),
    "bootstrap": ("pki", "docker", "master", "lb"),
    "proxy": ("pki", "master", "lb"),
    "verify": ("etcd", "flannel", "docker", "master", "lb", "bootstrap", "proxy"),
}
# Stage -> the component that was healthy at least once where the stage is done.
_PROOF: Mapping[str, str] = {
    "etcd": "etcd",
    "flannel": "flanneld",
    "docker": "docker",
    "master": "kube-apiserver",
    "lb": "kube-lb-check",
    "bootstrap": "kubelet",
    "proxy": "kube-proxy",
}

_OTHERS: Mapping[str, str] = {
    "kube-scheduler": "master",
    "kube-controller-manager": "master",
    "kube-lb": "lb",
    "kube-lb-vip": "lb",
}


def of_component(component: str) -> str:
    """The stage that brings a component; empty for one of no stage."""
    found = (stage for stage, proof in _PROOF.items() if proof == component)
    return _OTHERS.get(component) or next(found, "")


def of_run(run_tags: Collection[str], skip_tags: Collection[str]) -> set[str]:
    """The stages that a run with these --tags and --skip-tags contains."""
    chosen = set(STAGES) if "all" in run_tags else set(STAGES) & set(run_tags)
    return chosen - set(skip_tags)


def _concerns(stage: str, machine: Machine) -> bool:
    if stage == "etcd":
        return machine.is_etcd
    if stage == "lb":
        return machine.is_lb or machine.has_proxy
    return machine.is_master if stage == "master" else machine.is_node


def _done(stage: str, facts: Mapping[str, Any]) -> bool:
    return bool(facts["cas"]) if stage == "pki" else _PROOF[stage] in facts["components"]


def missing(cluster: Cluster, facts: Mapping[str, Mapping[str, Any]], run: Collection[str]) -> list[str]:
    """What the stages of a run need and neither is there nor comes with the run.

    `facts`: machine name -> its facts (`components`: healthy once, `cas` that it was given).
    """
    found = []
    for stage in STAGES:
        if stage not in run:
            continue
        needs = list(_NEEDS.get(stage, ()))
        if stage == "docker" and cluster.network_mode == "docker":
            needs.append("flannel")
        for need in needs:
            late = [
                name
                for name, known in facts.items()
                if (need == "pki" or _concerns(need, cluster.machine(name))) and not _done(need, known)
            ]
            if late and need not in run:
                found.append(
                    f"--tags {stage}: the stage {need} is not done on {', '.join(late)}; run --tags {need} first, "
                    "or all stages at once without --tags"
                )
    return found
