from __future__ import annotations

from typing import Any

import pytest

from kubewright import variables


def test_misspelt_variables() -> None:
    known = ["etcd_data_dir", "pod_cidr", "kube_version"]
    used = {
        "etcd_datadir": ["a"],
        "pod_cird": ["b"],
        "etcd_unknown_thing": ["a"],
        "my_own": ["a"],
        "pod_cidr": ["a"],
        "kube_team": ["a"],
    }
    found = variables.misspelt(used, known, ["etcd_"])
    assert [line.split(":")[0] for line in found] == ["etcd_datadir", "etcd_unknown_thing", "pod_cird"]
    assert "did you mean etcd_data_dir?" in found[0]
    assert "did you mean pod_cidr?" in found[2]


@pytest.mark.parametrize(
    ("spec", "value", "reason"),
    [
        ({"type": "bool"}, "false", "'false' is not true or false"),
        ({"type": "str"}, False, "write it in quotes"),
        ({"type": "str", "choices": ["cni", "docker"]}, "dokcer", "did you mean docker?"),
        ({"type": "str", "choices": ["cni", "docker"]}, "zzz", "is none of cni, docker"),
        ({"type": "int"}, "4GB", "is not of the type int"),
        ({"type": "list"}, "overlay", "is not a list"),
        ({"type": "dict"}, "vxlan", "is not a mapping"),
    ],
)
def test_values_that_are_wrong(spec: dict[str, Any], value: object, reason: str) -> None:
    [found] = variables.wrong({"n1": {"x": value}, "n2": {"x": value}}, {"x": spec})
    assert found.startswith("x: ")
    assert reason in found
    assert found.endswith("(set for n1, n2)")


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ({"type": "bool"}, True),
        ({"type": "int"}, "150"),
        ({"type": "int"}, 0),
        ({"type": "float"}, 2),
        ({"type": "str", "choices": ["off"]}, "off"),
        ({"type": "list", "elements": "str"}, []),
        ({"type": "dict"}, {"Type": "vxlan"}),
    ],
)
def test_values_that_are_right(spec: dict[str, Any], value: object) -> None:
    assert variables.wrong({"n1": {"x": value}}, {"x": spec}) == []


def test_what_the_whole_cluster_must_agree_on() -> None:
    specs = {"pod_cidr": {"type": "str", "default": "10.244.0.0/16"}, "api_port": {"type": "int", "default": 6443}}
    values = {"n1": {"pod_cidr": "10.1.0.0/16"}, "n2": {}, "n3": {"api_port": 6443}}
    [found] = variables.differing(values, specs)
    assert "'10.1.0.0/16' for n1, '10.244.0.0/16' for n2, n3" in found
