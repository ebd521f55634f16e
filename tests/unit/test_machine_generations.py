"""What a component ran before, and the way back there: real files below a temporary directory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kubewright import components
from kubewright.machine import api, component, etcd, files, generations, health, placed, ready, systemd, turnover

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are owned by root, as on machines")


class Machine:
    """A machine whose one service is healthy unless its binary says that it is bad. systemd is not here."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = tmp_path
        self.starts: list[str] = []
        self.reloads: list[str] = []
        self.sets: dict[str, str] = {}
        self.reloaded = 0.0
        monkeypatch.setattr(component, "STORE", str(tmp_path / "store"))
        monkeypatch.setattr(component, "RECORDS", str(tmp_path / "records"))
        monkeypatch.setattr(generations, "BEFORE", str(tmp_path / "before"))
        monkeypatch.setattr(placed, "PLACED", str(tmp_path / "placed.json"))
        monkeypatch.setattr(files.DigestCache.__init__, "__defaults__", (str(tmp_path / "digests.json"),))
        active = {"ActiveState": "active", "UnitFileState": "enabled"}
        monkeypatch.setattr(systemd, "states", lambda units: dict.fromkeys(units, active))
        monkeypatch.setattr(systemd, "daemon_reload", lambda: None)
        monkeypatch.setattr(systemd, "enable", lambda _: None)
        monkeypatch.setattr(systemd, "journal", lambda *_: ["it ended"])
        monkeypatch.setattr(systemd, "restart", lambda _: self.starts.append(self.binary()))
        monkeypatch.setattr(systemd, "reload", lambda _: self.reload())
        monkeypatch.setattr(turnover, "_RELOAD_SECONDS", 0.1)
        monkeypatch.setattr(health, "wait", lambda *_: "it does not answer" if self.is_bad() else "")

    @property
    def link(self) -> Path:
        return self.root / "bin" / "tool"

    @property
    def flags(self) -> Path:
        return self.root / "etc" / "flags"

    def binary(self) -> str:
        return self.link.read_text()

    def reload(self) -> str:
        self.reloads.append(self.flags.read_text())
        self.reloaded = time.monotonic()
        return ""

    def is_bad(self) -> bool:
        # What was there before a reload answers a little longer.
        return time.monotonic() > self.reloaded + 0.05 and "bad" in self.binary() + self.flags.read_text()

    def bring(self, version: str, flags: str, content: str = "", **more: Any) -> dict[str, Any]:
        """What the engine answers for this version of the service and these flags."""
        artifact = self.root / f"artifact-{version}"
        artifact.write_text(content or f"tool {version}")
        name = more.pop("artifact", "tool")
        known = {name: {"version": version, "sha256": files.sha256_of(str(artifact)), "path": str(artifact)}}
        spec = {
            "name": "x",
            "binaries": {name: str(self.link)},
            "files": [{"path": str(self.flags), "content": flags}],
            **more,
        }
        declared = components.expand(spec, lambda name: name, known)
        declared.wire["unit"] = "x.service"
        self.sets[version] = declared.wire["set"]
        found = component.inspect_all([declared.wire])
        contents, binaries = components.shipment([declared], found)
        staged = {}
        for digest, path in binaries.items():
            copy = Path(path).with_suffix(".staged")
            copy.write_bytes(Path(path).read_bytes())
            staged[digest] = str(copy)
        return turnover.apply_all([declared.wire], contents, staged)

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "records" / "x.json").read_text())
        return found

    def stored(self) -> list[str]:
        return sorted(path.name.rpartition("-")[0] for path in (self.root / "store" / "tool").iterdir())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_one_version_before_is_kept(machine: Machine) -> None:
    for version in ("1", "2", "3"):
        assert machine.bring(version, "a")["failure"] is None
    assert machine.stored() == ["2", "3"]
    assert machine.record()["previous"]["tool"]["version"] == "2"
    found = generations.describe(machine.record(), component.STORE)
    assert (found["artifacts"]["tool"]["version"], found["previous"]["tool"]["stored"]) == ("3", True)
    assert found["changed"]["by"] == machine.sets["3"]
    assert not list(machine.root.glob("before/*"))


def test_whoever_went_back_has_nothing_to_go_back_to(machine: Machine) -> None:
    machine.bring("1", "a")
    assert machine.record()["changed"] == {}, "a first installation is no change"
    machine.bring("2", "b")
    changed = machine.record()["changed"]
    machine.bring("1", "a")
    assert machine.record()["previous"] == {}
    assert machine.record()["changed"] == changed, "the upgrade that was undone is still the last one"
    assert machine.stored() == ["1"]


def test_other_flags_are_no_other_version(machine: Machine) -> None:
    machine.bring("1", "a")
    machine.bring("2", "a")
    machine.bring("2", "b")
    assert machine.record()["previous"]["tool"]["version"] == "1"


def test_a_version_that_is_not_healthy_goes_back_with_its_flags(machine: Machine) -> None:
    machine.bring("1", "flags of 1")
    before = machine.record()
    failure = machine.bring("bad", "flags of bad")["failure"]
    assert failure["rollback"] == {"to": {"tool": "1"}, "failure": "", "refused": ""}
    assert (machine.binary(), machine.flags.read_text()) == ("tool 1", "flags of 1")
    assert machine.starts == ["tool 1", "tool bad", "tool 1"]
    assert machine.record()["ingredients"] == before["ingredients"]
    assert machine.record()["changed"] == before["changed"]
    assert not list(machine.root.glob("before/*"))
    assert machine.bring("1", "flags of 1")["restarted"] == []


def test_what_was_tried_is_known_until_there_are_other_binaries(machine: Machine) -> None:
    machine.bring("1", "a")
    machine.bring("2", "a")
    assert machine.record()["tried"] == {}
    machine.bring("bad", "a")
    assert generations.describe(machine.record(), component.STORE)["tried"]["by"] == machine.sets["bad"]
    machine.bring("2", "other flags")
    assert machine.record()["tried"]["by"] == machine.sets["bad"]
    machine.bring("1", "bad flags")
    assert machine.record()["tried"]["by"] == machine.sets["bad"], "a way back is no upgrade"
    machine.bring("1", "a")
    assert machine.record()["tried"] == {}


def test_new_flags_of_the_same_version_stay_for_their_owner(machine: Machine) -> None:
    machine.bring("1", "a")
    failure = machine.bring("1", "bad flags")["failure"]
    assert failure["rollback"] is None
    assert machine.flags.read_text() == "bad flags"


def test_a_configuration_that_passes_its_check_and_does_not_work_is_taken_back(machine: Machine) -> None:
    judged = {"check": ["/bin/true"], "reload": [str(machine.flags)]}
    machine.bring("1", "a", **judged)
    before = machine.record()
    failure = machine.bring("1", "bad flags", **judged)["failure"]
    assert failure["rollback"] == {"to": {"tool": "1"}, "failure": "", "refused": ""}
    assert machine.flags.read_text() == "a"
    assert (machine.reloads, machine.starts) == (["bad flags", "a"], ["tool 1"])
    assert machine.record()["ingredients"] == before["ingredients"]
    assert not list(machine.root.glob("before/*"))


def test_a_hand_edited_file_does_not_lose_the_way_back(machine: Machine) -> None:
    machine.bring("1", "a")
    machine.flags.write_text("edited")
    failure = machine.bring("bad", "b")["failure"]
    assert failure["rollback"] == {"to": {"tool": "1"}, "failure": "", "refused": ""}
    assert (machine.binary(), machine.flags.read_text()) == ("tool 1", "edited")


@pytest.mark.parametrize(
    ("said", "stays"), [({"2": "3.5.0"}, True), ({"2": "3.4.0"}, False), ({}, False), ({"1": "3.4.0"}, False)]
)
def test_a_member_does_not_go_back_behind_the_version_of_its_cluster(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], stays: bool
) -> None:
    monkeypatch.setattr(etcd, "quorum_depends_on", lambda _: "")
    monkeypatch.setattr(etcd, "leads", lambda _: False)
    monkeypatch.setattr(etcd, "cluster_version", lambda endpoint: said.get(endpoint["url"], ""))
    member = {"member": {"url": "1", "ca": "", "cert": "", "key": "", "all": ["1", "2", "3"]}, "artifact": "etcd"}
    machine.bring("3.4.13", "a", **member)
    rollback = machine.bring("3.5.4", "bad", **member)["failure"]["rollback"]
    assert bool(rollback["refused"]) == stays
    assert machine.binary() == ("tool 3.5.4" if stays else "tool 3.4.13")
    if stays:
        assert rollback["refused"].startswith("the version of the etcd cluster is 3.5.0 already, and 3.4.13 does not")


def test_a_run_that_died_in_between_does_not_lose_the_way_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.bring("1", "flags of 1")

    def die(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(systemd, "restart", die)
        with pytest.raises(KeyboardInterrupt):
            machine.bring("bad", "flags of bad")
    assert machine.flags.read_text() == "flags of bad"
    assert machine.record()["tried"]["by"] == machine.sets["bad"]
    assert machine.bring("bad", "flags of bad")["failure"]["rollback"]["failure"] == ""
    assert (machine.binary(), machine.flags.read_text()) == ("tool 1", "flags of 1")


def test_records_of_before_say_their_versions_by_the_store(machine: Machine) -> None:
    machine.bring("1", "a")
    path = machine.root / "records" / "x.json"
    record = machine.record()
    path.write_text(json.dumps({"ingredients": record["ingredients"], "started": 1.0}))
    assert generations.artifacts(machine.record(), component.STORE) == record["artifacts"]
    machine.bring("2", "a")
    assert machine.record()["previous"] == record["artifacts"]


def test_the_last_one_that_answers_is_not_interrupted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turnover, "_PEER_SECONDS", 0)
    monkeypatch.setattr(turnover, "_PEER_POLL_SECONDS", 0)
    own, other = machine.root / "own-answers", machine.root / "other-answers"
    gates = {
        "health": {"checks": [{"kind": "exists", "path": str(own)}]},
        "peers": [{"kind": "exists", "path": str(other)}],
    }
    assert machine.bring("1", "a", **gates)["refusal"] == "", "one that answers nobody can be interrupted"
    own.touch()
    refused = machine.bring("2", "a", **gates)["refusal"]
    assert refused.startswith(f"restarting x here would leave none that answers: {other} does not exist. Nothing was")
    assert machine.binary() == "tool 1"
    other.touch()
    assert machine.bring("2", "a", **gates)["refusal"] == ""
    assert machine.binary() == "tool 2"


def test_the_picture_is_for_root_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.bring("1", "secret")
    monkeypatch.setattr(generations, "forget_picture", lambda _: None)
    machine.bring("2", "b")
    [picture] = (machine.root / "before").iterdir()
    assert picture.stat().st_mode & 0o777 == 0o600


def node(ready_: str, version: str) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready_, "message": "runtime is down"}]}
    return {"metadata": {"name": "n1"}, "status": {**status, "nodeInfo": {"kubeletVersion": version}}}


def pod(phase: str, state: str, uid: str = "1") -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": state}]
    metadata = {"namespace": "d", "name": f"p{uid}", "uid": uid}
    return {"metadata": metadata, "status": {"phase": phase, "conditions": conditions}}


def test_a_node_is_back_with_its_pods() -> None:
    assert ready.hindrances(node("True", "v1"), [pod("Running", "True"), pod("Succeeded", "False")], "v1") == []
    assert ready.hindrances(node("True", "v1.20.2-eks-1"), [], "v1.20.2") == []
    assert ready.hindrances(node("True", "v1.20.21"), [], "v1.20.2") == [
        "the kubelet of n1 reports v1.20.21, not v1.20.2"
    ]
    assert ready.hindrances(node("False", "v0"), [pod("Running", "False")], "v1") == [
        "n1 is not Ready: runtime is down",
        "the kubelet of n1 reports v0, not v1",
        "pod d/p1 is not ready (Running)",
    ]


def test_a_pod_that_was_not_ready_before_is_not_waited_for() -> None:
    broken, fine = pod("Running", "False", "1"), pod("Running", "True", "2")
    before = ready.ready_pods([broken, fine, pod("Pending", "False", "3")])
    assert before == ["2"]
    assert ready.hindrances(node("True", "v1"), [broken, fine], "v1", before) == []
    assert ready.hindrances(node("True", "v1"), [broken, pod("Running", "False", "2")], "v1", before) == [
        "pod d/p2 is not ready (Running)"
    ]
    assert ready.hindrances(node("True", "v1"), [broken], "v1", []) == []


class Server:
    """Answers of an API server, in order; None is silence."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def request(self, method: str, path: str) -> tuple[int, Any]:
        assert method == "GET"
        if "/pods?" in path:
            assert path.endswith("fieldSelector=spec.nodeName%3Dn1")
            return 200, {"items": []}
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise api.NoAnswerError("it restarts")
        return 200, answer


def test_an_api_server_that_restarts_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "_POLL_SECONDS", 0.0)
    server: Any = Server(None, node("False", "v1"), None, node("True", "v1"))
    assert ready.wait(lambda: server, "n1", "v1", 10.0) == []


def test_what_is_missing_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "_POLL_SECONDS", 0.01)
    silent: Any = Server(None)
    assert ready.wait(lambda: silent, "n1", "", 0.05) == ["it restarts"]
    down: Any = Server(node("False", "v1"))
    assert ready.wait(lambda: down, "n1", "v1", 0.05) == ["n1 is not Ready: runtime is down"]
