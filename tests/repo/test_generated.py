"""The generated reference and the example inventory, as they are in the repository."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubewright import topology
from kubewright.reference import pages, roles
from kubewright.reference.__main__ import stale

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = [roles.read(path) for path in sorted((ROOT / "roles").iterdir()) if path.is_dir()]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_specs_agree(role: roles.Role) -> None:
    assert roles.disagreements(role) == []


def test_what_is_generated_is_up_to_date() -> None:
    assert list(stale(ROOT)) == [], "run python -m kubewright.reference"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_an_example_file_without_its_comment_signs_is_the_defaults(role: roles.Role) -> None:
    lines = (ROOT / pages.example_path(role)).read_text().splitlines()
    assert all(not line or line.startswith(("#", "---")) for line in lines), "nothing may be set by the copy"
    behind_head = lines[lines.index("") :]
    bare = "\n".join(line.removeprefix("# ") for line in behind_head)
    assert yaml.safe_load(bare) == {entry.name: entry.value for entry in role.defaults}
    explained = " ".join(line.removeprefix("## ") for line in behind_head if line.startswith("## "))
    for entry in role.defaults:
        assert entry.comment in explained


@pytest.fixture(scope="module")
def inventory() -> dict[str, Any]:
    reply = subprocess.run(
        ["ansible-inventory", "-i", "inventories/example", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert reply.returncode == 0, reply.stderr
    assert not reply.stderr.strip(), reply.stderr
    found: dict[str, Any] = json.loads(reply.stdout)
    return found


def test_the_example_inventory_is_a_cluster(inventory: dict[str, Any]) -> None:
    hosts = inventory["_meta"]["hostvars"]
    groups = {name: inventory[name]["hosts"] for name in ("etcd", "kube_master", "kube_node")}
    cluster_wide = next(role for role in ROLES if role.name == "preflight")
    cluster, problems = topology.build({entry.name: entry.value for entry in cluster_wide.defaults}, hosts, groups)
    assert problems == []
    assert cluster
    assert [len(machines) for machines in (cluster.etcd_members(), cluster.masters(), cluster.nodes())] == [3, 1, 2]
    assert cluster.machine("node01").labels == {"disk": "ssd"}


def test_the_example_sets_how_to_connect_and_nothing_else(inventory: dict[str, Any]) -> None:
    for name, variables in inventory["_meta"]["hostvars"].items():
        others = {v for v in variables if not v.startswith("ansible_")} - {"kube_node_labels"}
        assert not others, name
        assert "known_hosts" in variables["ansible_ssh_common_args"], name
