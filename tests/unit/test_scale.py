from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_topology import GROUPS, HA_GROUPS, HA_HOSTS, HOSTS, build, build_ha

from kubewright import scale
from kubewright.errors import UserError
from kubewright.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


def machines(**groups: Any) -> dict[str, Any]:
    return dict(build(groups).facts()["machines"])


def moved(*names: str, groups: Any = None) -> list[dict[str, Any]]:
    return scale.moving(names, {**GROUPS, **(groups or {})}, HOSTS, by_address=False)


def test_names_and_patterns() -> None:
    assert scale.names("a,b c") == ["a", "b", "c"]
    assert scale.names(None) == []
    assert scale.pattern(["kube_master"], "a,b") == "kube_master:!a:!b"
    assert scale.pattern(["a,b"], "") == "a:b"


def test_the_last_of_its_kind_stays() -> None:
    found = scale.leaving_problems(GROUPS, ["master01"])
    assert [problem.split(":")[0] for problem in found] == ["master01"]
    assert "no master would be left" in found[0]
    assert "no node would be left" in scale.leaving_problems(GROUPS, ["node01", "node02"])[0]
    assert "etcd members leave one at a time" in scale.leaving_problems(GROUPS, ["node01", "node02"])[1]
    assert scale.leaving_problems(GROUPS, ["node02"]) == []


def test_a_node_that_comes_or_goes_touches_nobody_else() -> None:
    stages = scale.stages(machines(etcd=["master01"]), moved("node02", groups={"etcd": ["master01"]}))
    assert stages["node02"] == ["sysprep", "pki", "flannel", "docker", "verify", "lb", "bootstrap", "proxy"]
    assert stages["node01"] == ["hosts"]
    assert stages["master01"] == ["hosts", "pki"]


def test_endpoints_of_etcd_are_those_of_api_servers_and_flanneld() -> None:
    groups = {"etcd": ["master01", "node01"]}
    stages = scale.stages(machines(**groups), moved("node01", groups=groups))
    assert stages["node02"] == ["hosts", "flannel"]
    assert stages["master01"] == ["hosts", "pki", "etcd", "master"]
    assert "etcd" in stages["node01"]
    # Its scheduled snapshots ask who else is a member.
    assert "etcd" in stages["master01"]


def test_a_master_changes_certificates_and_addresses() -> None:
    groups = {"kube_master": ["master01", "node01"], "kube_node": ["node02"]}
    stages = scale.stages(machines(**groups), moved("node01", groups={**groups, "etcd": ["master01"]}))
    assert stages["master01"] == ["hosts", "pki", "master"]
    assert stages["node02"] == ["hosts", "lb", "bootstrap", "proxy"]


def test_a_load_balancer_changes_its_partners_and_may_change_the_address() -> None:
    moved_lb = scale.moving(["lb01"], {**HA_GROUPS, "lb": ["lb01", "lb02"]}, HA_HOSTS, by_address=False)
    stages = scale.stages(build_ha().facts()["machines"], moved_lb)
    assert stages["lb01"] == ["sysprep", "pki", "lb"]
    assert stages["lb02"] == ["hosts", "lb"]
    assert stages["master01"] == ["hosts", "pki", "master"]
    assert stages["node01"] == ["hosts", "lb", "bootstrap", "proxy"]


def test_a_machine_that_is_gone_from_the_inventory_is_looked_for_everywhere() -> None:
    unknown = {"name": "gone", "address": "", "node_name": "gone", "known": False}
    assert moved("gone") == [{**unknown, "is_etcd": True, "is_master": True, "is_lb": True}]


def test_one_that_is_called_by_its_address_is_looked_for_there() -> None:
    assert moved("192.0.2.99")[0]["address"] == "192.0.2.99"


def typed(named: str, *, stages: Any = STAGES, check: bool = False) -> None:
    groups = {**GROUPS, "all": list(HOSTS), "ungrouped": []}
    addresses = {name: scale.address_of(name, host) for name, host in HOSTS.items()}
    scale.check_typed(scale.names(named), groups, addresses, stages, check=check)


PATTERNS = ["all", "kube_node", "ungrouped", "node01:node02", "node0[1:2]", "node*", "~node.*", "!node01", "&etcd"]


@pytest.mark.parametrize("name", [*PATTERNS, "localhost", "127.0.0.1", "node02,all"])
def test_only_machines_leave_and_no_patterns_of_ansible(name: str) -> None:
    with pytest.raises(UserError, match="nothing has been changed"):
        typed(name)
    # Again with --limit, where the play on the controller does not run.
    groups = {**GROUPS, "all": list(HOSTS), "ungrouped": []}
    assert "machine: " in scale.leaving_problems(groups, scale.names(name))[0]


def test_machines_are_called_as_the_inventory_calls_them() -> None:
    with pytest.raises(UserError, match=f"{HOSTS['node02']['ansible_host']} is the address of node02; say node02"):
        typed(HOSTS["node02"]["ansible_host"])
    with pytest.raises(UserError, match="not told which machine"):
        typed("")
    typed("node02, node-17.example")


def test_a_part_of_a_removal_is_only_looked_at() -> None:
    with pytest.raises(UserError, match="still need it: pki, lb would be left out"):
        typed("node02", stages=set(STAGES) - {"pki", "lb", "docker"})
    typed("node02", stages={"pki"}, check=True)


def test_a_name_that_nobody_knows_is_no_success() -> None:
    with pytest.raises(UserError, match=r"knows node2: nothing has been changed\n.*did you mean node02"):
        scale.check_known(["gone", "node2"], {"gone"}, ["node02", "master01"])
    scale.check_known(["gone"], {"gone"}, ["node02"])
    scale.check_known([], set(), [])


def test_who_failed_on_the_way_may_still_need_the_machine() -> None:
    with pytest.raises(UserError, match=r"^node01 failed on the way \(above\), so the removal of node02 stops"):
        scale.check_complete(["master01", "node01"], ["master01"], "the removal of node02")
    scale.check_complete(["master01"], ["master01", "node01"], "the removal of node02")


@pytest.mark.parametrize("playbook", ["add", "remove"])
def test_nothing_is_said_to_be_done_when_a_machine_failed_on_the_way(playbook: str) -> None:
    plays = yaml.safe_load((ROOT / f"playbooks/ops/{playbook}.yml").read_text())
    assert plays[-1]["name"] == "Summary"
    assert [task.get("kubewright_scale") for task in plays[-1]["tasks"]] == [{"operation": "complete"}, None]


def test_who_is_not_empty_has_not_left() -> None:
    scale.check_emptied({"node01": {"changed": True}})
    scale.check_emptied({})
    for result in (None, {"failed": True}, {"unreachable": True}):
        with pytest.raises(UserError, match=r"^node02 could not be emptied"):
            scale.check_emptied({"node01": {"changed": True}, "node02": result})


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="not told which machine"):
        scale.check_added([], machines(), [])
    with pytest.raises(UserError, match="did you mean node02"):
        scale.check_added(["node03"], machines(), [])
    with pytest.raises(UserError, match=r"^node02 cannot be reached, .* so it cannot join"):
        scale.check_added(["node01", "node02"], machines(), ["master01", "node01"])
    scale.check_added(["node02"], machines(), ["node02"])
    with pytest.raises(UserError, match="cannot be reached"):
        scale.check_leaving(moved("node02"), [], dead=False, limit=None)
    with pytest.raises(UserError, match="without --limit"):
        scale.check_leaving(moved("node02"), ["node02"], dead=False, limit="node02")
    scale.check_leaving(moved("node02"), [], dead=True, limit=None)
    scale.check_leaving(moved("gone"), [], dead=False, limit=None)


def test_the_plan_tells_the_quorum_that_is_left() -> None:
    rest = {name: one for name, one in machines().items() if name != "node02"}
    assert scale.plan(rest, moved("node02"), "leaves") == [
        "node02 leaves the cluster and etcd",
        "etcd: 2 members then, 2 of them must work, 0 may fail",
    ]
    assert scale.lines_to_delete(moved("node02"), GROUPS)[0].startswith(
        "now delete node02 from the inventory (groups etcd, kube_node,"
    )
