from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kubewright import network_change
from kubewright.errors import UserError
from kubewright.network_change import Node

ROOT = Path(__file__).resolve().parents[2]
VXLAN, DIRECT, HOST_GW = {"Type": "vxlan"}, {"Type": "vxlan", "DirectRouting": True}, {"Type": "host-gw"}


def config(backend: dict[str, Any], network: str = "10.244.0.0/16", length: int = 24) -> dict[str, Any]:
    return {"Network": network, "SubnetLen": length, "Backend": backend}


def way(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    return network_change.steps(json.dumps(before), after)


@pytest.mark.parametrize(
    ("before", "after", "backends"),
    [
        (VXLAN, VXLAN, []),
        (VXLAN, HOST_GW, [DIRECT, HOST_GW]),
        (DIRECT, HOST_GW, [HOST_GW]),
        (HOST_GW, VXLAN, [DIRECT, VXLAN]),
        (HOST_GW, DIRECT, [DIRECT]),
        (VXLAN, DIRECT, [DIRECT]),
        (DIRECT, VXLAN, [VXLAN]),
        (HOST_GW, {"type": "VXLAN", "VNI": 7}, [{"Type": "VXLAN", "VNI": 7, "DirectRouting": True}, None]),
        ({"type": "vxlan", "directrouting": False, "port": 4789}, HOST_GW, [None, HOST_GW]),
    ],
)
def test_the_way_from_one_backend_to_another(
    before: dict[str, Any], after: dict[str, Any], backends: list[dict[str, Any] | None]
) -> None:
    found = [one["Backend"] for one in way(config(before), config(after))]
    assert [one for one, wanted in zip(found, backends, strict=True) if wanted not in (None, one)] == []
    if found:
        assert found[-1] == after
    # Each step is between backends that understand each other.
    for one, other in zip([before, *found], found, strict=False):
        kinds = {str({key.lower(): value for key, value in each.items()}["type"]).lower() for each in (one, other)}
        if len(kinds) == 2:
            vxlan = next(each for each in (one, other) if "host-gw" not in each.values())
            assert {key.lower(): value for key, value in vxlan.items()}.get("directrouting") is True


def test_the_settings_of_the_tunnel_stay_until_it_is_gone() -> None:
    first, _ = way(config({"Type": "vxlan", "VNI": 7, "Port": 4789}), config(HOST_GW))
    lowered = {key.lower(): value for key, value in first["Backend"].items()}
    assert lowered == {"type": "vxlan", "vni": 7, "port": 4789, "directrouting": True}


def test_a_larger_network_comes_first_and_with_the_backend_of_before() -> None:
    larger = "10.244.0.0/15"
    assert way(config(VXLAN), config(VXLAN, larger)) == [config(VXLAN, larger)]
    assert way(config(VXLAN), config(HOST_GW, larger)) == [
        config(VXLAN, larger),
        config({"Type": "vxlan", "DirectRouting": True}, larger),
        config(HOST_GW, larger),
    ]


def test_the_last_step_is_what_the_inventory_says_to_the_letter() -> None:
    # A run of site.yml compares JSON: it must find nothing to do afterwards.
    assert way(config({"type": "VXLAN"}), config(VXLAN)) == [config(VXLAN)]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (config(VXLAN), config(VXLAN, "10.244.0.0/17"), "does not contain the present one, 10.244.0.0/16"),
        (config(VXLAN), config(HOST_GW, "10.60.0.0/16"), "does not contain the present one"),
        (config(VXLAN), config(VXLAN, length=25), "SubnetLen is 25 instead of 24"),
        (config(VXLAN), config({"Type": "vxlan", "VNI": 7}), "vni of vxlan cannot be changed while pods go on"),
        (config(VXLAN), config({"Type": "udp"}), "from vxlan to udp cannot be changed while pods go on"),
        (config({"Type": "udp"}), config(HOST_GW), "from udp to host-gw cannot be changed"),
        ({"Network": "nonsense"}, config(VXLAN), "cannot be used"),
    ],
)
def test_ways_that_there_are_not(before: dict[str, Any], after: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        way(before, after)
    assert network_change.hint(json.dumps(before), after) == ""


def test_a_run_that_refuses_names_the_playbook_that_does_not() -> None:
    assert "playbooks/ops/network.yml" in network_change.hint(json.dumps(config(VXLAN)), config(HOST_GW))


def nodes(**changes: Any) -> list[Node]:
    running = network_change.expected(json.dumps(config(VXLAN)))
    first = Node("a", config=running, address="192.0.2.1", gateways={"192.0.2.2": ""})
    second = Node("b", config=running, address="192.0.2.2", gateways={"192.0.2.1": ""})
    return [first, Node(**{**vars(second), **changes})]


def refused(after: dict[str, Any], found: list[Node]) -> list[str]:
    before = json.dumps(config(VXLAN))
    return network_change.refusals(before, network_change.steps(before, after), found)


def test_nodes_on_one_link_may_change() -> None:
    assert refused(config(HOST_GW), nodes()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gateways": {"192.0.2.1": "192.0.2.254"}}, "b: the way to a (192.0.2.1) leads through 192.0.2.254"),
        ({"strict": ["net.ipv4.conf.eth0.rp_filter"]}, "sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
        ({"gateways": {"192.0.2.1": "", "192.0.2.9": ""}}, "192.0.2.9 has a lease of the pod network and is no node"),
        ({"trouble": "the overlay is not as it should be"}, "b: the overlay is not as it should be"),
    ],
)
def test_what_another_backend_would_cut_off(changes: dict[str, Any], reason: str) -> None:
    [found] = refused(config(HOST_GW), nodes(**changes))
    assert reason in found
    # A larger network needs nothing but daemons that are well.
    assert bool(refused(config(VXLAN, "10.244.0.0/15"), nodes(**changes))) == ("trouble" in changes)


def test_direct_routing_goes_with_routers() -> None:
    away = network_change.steps(json.dumps(config(HOST_GW)), config(VXLAN))
    routed = nodes(gateways={"192.0.2.1": "192.0.2.254"}, config=network_change.expected(json.dumps(config(HOST_GW))))
    routed[0] = Node("a", config=routed[1].config, address="192.0.2.1", gateways={"192.0.2.2": ""})
    assert network_change.refusals(json.dumps(config(HOST_GW)), away, routed) == []
    assert refused(config(DIRECT), nodes(gateways={"192.0.2.1": "192.0.2.254"})) == []


def test_who_is_behind_after_an_interruption() -> None:
    before = json.dumps(config(DIRECT))
    late = nodes(config=network_change.expected(before))
    assert network_change.behind(before, [], late) == ["a"]
    assert network_change.behind(before, [config(HOST_GW)], late) == ["a"]
    assert network_change.summary(before, [config(HOST_GW)], ["a"]) == [
        "etcd has 10.244.0.0/16, vxlan with DirectRouting",
        "what an interrupted run has left: a take that over",
        "then all nodes: 10.244.0.0/16, host-gw",
    ]


def test_a_change_that_is_taken_back_goes_no_further_first() -> None:
    # Both nodes with DirectRouting might be what does not work there.
    before = json.dumps(config(DIRECT))
    late = nodes(config=network_change.expected(before))
    assert network_change.behind(before, [config(VXLAN)], late) == []


@pytest.mark.parametrize("config_of_it", [None, config(DIRECT)])
def test_a_node_that_the_change_has_broken_does_not_keep_it_from_being_taken_back(
    config_of_it: dict[str, Any] | None,
) -> None:
    before = json.dumps(config(DIRECT))
    running = config_of_it and network_change.expected(before)
    broken = nodes(trouble="it does not come up", config=running, address="", gateways=None)
    back, forward = [config(VXLAN)], [config(HOST_GW)]
    assert network_change.cut_off(config(VXLAN), before, back, broken) == ["b"]
    assert network_change.refusals(before, back, broken, ["b"]) == []
    assert network_change.behind(before, back, broken) == []
    assert "taken back because of b" in network_change.summary(before, back, [], ["b"])[1]
    # Where all others have come along as well.
    along = Node("c", config=network_change.expected(before), address="192.0.2.3")
    assert network_change.cut_off(config(VXLAN), before, back, [along, broken[1]]) == ["b"]
    # Also with a network that has become larger on the way, but not when it becomes larger now.
    larger = [config(VXLAN, "10.244.0.0/15")]
    assert network_change.cut_off(config(VXLAN), json.dumps(config(DIRECT, "10.244.0.0/15")), larger, broken) == ["b"]
    assert network_change.cut_off(config(VXLAN), before, larger, broken) == []
    # Interrupted after its last write, there is no way left.
    written = json.dumps(config(VXLAN))
    assert network_change.cut_off(config(VXLAN), written, [], broken) == ["b"]
    assert "taken back because of b" in network_change.summary(written, [], [], ["b"])[1]
    # Not forward, nor where no change is under way, nor for one that was not asked.
    assert network_change.cut_off(config(VXLAN), before, forward, broken) == []
    assert network_change.cut_off(None, before, back, broken) == []
    assert network_change.cut_off(config(VXLAN), written, larger, broken) == []
    assert network_change.refusals(before, forward, broken) == ["b: it does not come up"]
    unasked = [broken[0], network_change.node("b", None)]
    assert network_change.cut_off(config(VXLAN), before, back, unasked) == []


def test_where_a_change_that_is_under_way_comes_from() -> None:
    noted = json.dumps(network_change.note(config(VXLAN), config(HOST_GW)))
    before, there = json.dumps(config(DIRECT)), json.dumps(config(HOST_GW))
    assert network_change.start(None, before, nodes()) is None
    assert network_change.start(noted, before, nodes()) == config(VXLAN)
    assert network_change.start(noted, there, nodes()) == config(VXLAN)
    done = [Node(one.name, config=network_change.expected(there)) for one in nodes()]
    assert network_change.start(noted, there, done) is None, "the run was killed after its last step"
    assert network_change.start(noted, there, [done[0], Node("b", trouble="down")]) == config(VXLAN)
    larger = json.dumps(config(HOST_GW, "10.244.0.0/15"))
    grown = [Node(one.name, config=network_change.expected(larger)) for one in nodes()]
    assert network_change.start(noted, larger, grown) is None, "and made larger by another one"
    only_larger = json.dumps(network_change.note(config(VXLAN), config(VXLAN, "10.244.0.0/15")))
    assert network_change.start(only_larger, before, nodes()) is None, "which cannot be taken back"


def test_settings_that_mean_the_same_are_the_way_back() -> None:
    said = config({"Type": "VXLAN", "DirectRouting": False})
    assert network_change.goes_back(config(VXLAN), json.dumps(config(DIRECT)), [said])


def test_what_takes_a_change_back_is_said() -> None:
    broken = nodes(trouble="it does not come up")
    assert 'flannel_backend: {"Type": "vxlan"}, ' in network_change.way_out(config(VXLAN), broken)[0]
    assert network_change.way_out(None, broken) == []
    assert network_change.way_out(config(VXLAN), nodes()) == []


def test_nobody_is_taken_over_to_what_cuts_it_off() -> None:
    # Somebody has written it into etcd by hand, or etcd was restored.
    there = json.dumps(config(HOST_GW))
    for way in ([], network_change.steps(there, config(VXLAN))):
        found = network_change.refusals(there, way, nodes())
        assert [line.partition(":")[0] for line in found] == ["a", "b"]
        assert "flanneld runs with 10.244.0.0/16, vxlan, and etcd has 10.244.0.0/16, host-gw" in found[0]
    direct = [Node(one.name, config=network_change.expected(json.dumps(config(DIRECT)))) for one in nodes()]
    assert network_change.refusals(there, [], direct) == []
    # What restarts of nodes that are behind would cut off is refused like that of other ones.
    strict = [direct[0], Node("b", config=direct[1].config, strict=["net.ipv4.conf.eth0.rp_filter"])]
    assert "rp_filter" in network_change.refusals(there, [], strict)[0]


@pytest.mark.parametrize("noted", ["", "[]", "{}", '{"from": 1, "to": {}}', '{"from": {}, "to": {"Network": "x"}}'])
def test_a_note_that_says_nothing(noted: str) -> None:
    with pytest.raises(UserError, match=r"(?s)the note of a change.*etcdctl del"):
        network_change.start(noted, json.dumps(config(VXLAN)), nodes())


def test_docker_without_live_restore_ends_pods_at_a_restart_only() -> None:
    def found(after: dict[str, Any]) -> list[str]:
        before = json.dumps(config(VXLAN))
        return network_change.refusals(before, network_change.steps(before, after), nodes(), ends_pods=True)

    assert "docker_live_restore" in found(config(HOST_GW))[0]
    assert found(config(VXLAN, "10.244.0.0/15")) == []


def network_action(
    arguments: dict[str, Any], here: list[str], running: Any = None, failure: str = "", **plan: Any
) -> tuple[dict[str, Any], list[Any]]:
    """What the action returns on machine a, and what it asked of the module there."""
    path = ROOT / "action_plugins/kubewright_network.py"
    found = importlib.util.spec_from_file_location("network_action", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    task = SimpleNamespace(args=arguments, check_mode=False, diff=False, async_val=0, delegate_to=None, _uuid="network")
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
    plugin = module.ActionModule(task, connection, SimpleNamespace(), None, None, None)
    asked: list[Any] = []

    def execute(module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        asked.append(module_args)
        return {"status": {"config": running}} if module_args["step"] == "look" else {"failure": failure}

    plugin._execute_module = execute
    addresses = {"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3", "d": ""}
    usual = {"cut_off": [], "down": [], "back": False, "returns": True, "steps": [{"config": arguments.get("config")}]}
    facts = {"cluster": {}, "network_change": {"addresses": addresses, **usual, **plan}}
    variables = {
        "ansible_facts": facts,
        "ansible_play_hosts": here,
        "inventory_hostname": "a",
        "flannel_look": {"gateways": dict.fromkeys(("192.0.2.2", "192.0.2.3"), "")},
    }
    return plugin.run(None, variables), asked


def test_no_step_begins_without_a_node_of_the_plan() -> None:
    assert not network_action({"step": "present"}, ["m", "a", "b", "c", "d"])[0]["failed"]
    result, _ = network_action({"step": "present"}, ["m", "a", "c", "d"])
    assert result["failed"]
    assert result["msg"].startswith("b: this run has lost it")
    tasks = yaml.safe_load((ROOT / "roles/flannel/tasks/change.yml").read_text())
    assert tasks[0]["kubewright_network"] == {"step": "present"}, "before etcd is written"


def test_a_node_that_fails_before_the_steps_ends_the_run() -> None:
    plays = yaml.safe_load((ROOT / "playbooks/ops/network.yml").read_text())
    assert [play["name"] for play in plays if not play.get("any_errors_fatal")] == ["Preflight", "Summary"]


def test_nobody_waits_for_a_node_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", str(tmp_path))
    arguments = {"step": "follow", "config": config(VXLAN), "pods": {}, "docker": False, "timeout": 1}
    result, asked = network_action(arguments, ["a"], cut_off=["c"])
    assert not result.get("failed")
    assert asked[-1]["others"] == ["192.0.2.2"]
    assert asked[-1]["restart"]


def test_what_is_cut_off_goes_to_the_end_of_the_way_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", str(tmp_path))
    way = [{"config": config(DIRECT)}, {"config": config(VXLAN)}]

    def follow(to: dict[str, Any], down: list[str], failure: str = "") -> tuple[dict[str, Any], list[Any]]:
        arguments = {"step": "follow", "config": to, "pods": {}, "docker": False, "timeout": 1}
        plan = {"steps": way, "cut_off": ["a"], "down": down, "back": True, "returns": False}
        return network_action(arguments, ["a", "b"], failure=failure, **plan)

    assert follow(config(DIRECT), ["a"]) == ({"changed": False, "skipped": True}, [])
    others = tmp_path / "turn-network"
    others.mkdir()
    (others / "b.state").write_text("done")
    assert follow(config(VXLAN), ["a"])[1][-1]["restart"]
    # One that runs takes every step, which need not make it ready before the last one.
    assert not follow(config(DIRECT), [], "it is not ready")[0].get("failed")
    assert "a does not come back: it is not ready" in follow(config(VXLAN), [], "it is not ready")[0]["msg"]
    (others / "b.state").write_text("failed")
    result, asked = follow(config(VXLAN), ["a"])
    assert "left as it was, because b failed" in result["msg"]
    assert asked == []


def test_who_judges_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", str(tmp_path))
    pods = {"a": "10.244.1.2", "b": "10.244.2.2", "d": "10.244.4.2"}
    arguments = {"step": "follow", "config": config(DIRECT), "pods": pods, "docker": False, "timeout": 1}

    def asked(running: dict[str, Any], **plan: Any) -> tuple[list[str], list[str]]:
        [last] = network_action(arguments, ["a"], network_change.expected(json.dumps(running)), **plan)[1][-1:]
        return last["others"], last["pods"]

    # Those that it reached before: d, which has no lease, is not waited for.
    assert asked(config(VXLAN)) == (["192.0.2.2", "192.0.2.3"], {"b": "10.244.2.2"})
    assert asked(config(DIRECT)) == ([], {}), "it has nothing to take over"
    assert asked(config(VXLAN), back=True) == (["192.0.2.2", "192.0.2.3"], {}), "pods may be what does not work"


def test_what_cannot_be_taken_back_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", str(tmp_path))
    arguments = {"step": "follow", "config": config(VXLAN), "pods": {}, "docker": False, "timeout": 1}
    assert "set flannel_backend back" in network_action(arguments, ["a"], failure="x")[0]["msg"]
    assert "set flannel_backend back" not in network_action(arguments, ["a"], failure="x", returns=False)[0]["msg"]


def test_only_what_running_daemons_do_not_take_over_is_a_restart() -> None:
    running = network_change.expected(json.dumps(config(VXLAN)))
    assert network_change.must_restart(running, json.dumps(config(DIRECT)))
    assert not network_change.must_restart(running, json.dumps(config(VXLAN, "10.244.0.0/15")))


def test_what_a_node_says() -> None:
    answer = {"gateways": {}, "strict": []}
    assert "all nodes must take part" in network_change.node("a", None).trouble
    assert "it is down" in network_change.node("a", {"status": {"running": False, "reason": "it is down"}}).trouble
    assert "no network configuration yet" in network_change.node("a", {**answer, "status": {"running": True}}).trouble
    running = network_change.expected(json.dumps(config(VXLAN)))
    status = {"running": True, "trouble": "", "config": running, "interface": {"announced": {"4": "192.0.2.1"}}}
    found = network_change.node("a", {"status": status, "gateways": {}, "strict": []})
    assert (found.trouble, found.address) == ("", "192.0.2.1")
