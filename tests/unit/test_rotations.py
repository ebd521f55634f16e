"""The actions that rotate CAs and keys, on a PKI directory of kubepki, fed with what machines would show."""

from __future__ import annotations

import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.plugins.action import ActionBase
from test_certreport import of_kubelet, told
from test_topology import build

from kubepki import reconcile, rotation, spec
from kubepki.compare import Renewal
from kubewright import ca_rotation, certificates, keyring

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINES = ("master01", "node01", "node02")


def action(name: str, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """What an action plugin returns."""
    found = importlib.util.spec_from_file_location(name, ROOT / "action_plugins" / f"{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    task = SimpleNamespace(args=arguments, check_mode=False, diff=False, async_val=0, delegate_to=None)
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
    plugin = module.ActionModule(task, connection, SimpleNamespace(), None, None, None)
    result: dict[str, Any] = plugin.run(None, variables)
    return result


def wanted() -> spec.Spec:
    return spec.parse(certificates.spec(build()))


class Ca:
    """The rotation of CA etcd, whose consumers run on `machines`."""

    def __init__(self, path: Path) -> None:
        self.pki, self.journals = path / "pki", path / "rotations"
        reconcile.apply(wanted(), self.pki, datetime.now(UTC))
        self.name = "etcd"
        self.unseen: set[str] = set()
        self.spec = certificates.spec(build())

    def step(self, step: str, **more: Any) -> dict[str, Any]:
        files = {machine: certificates.distribution(build(), machine) for machine in MACHINES}
        cluster = {"pki_spec": self.spec, "pki_files": files, "api_access": {}}
        seen = {machine: {"pki_seen": {"seen": told(self.pki, machine)}} for machine in MACHINES}
        known = {machine: {} if machine in self.unseen else told for machine, told in seen.items()}
        variables = {"ansible_facts": {"cluster": cluster}, "hostvars": known, "ansible_play_hosts": list(MACHINES)}
        places = {"directory": str(self.pki), "journals": str(self.journals)}
        return action("kubewright_rotate_ca", {"step": step, "ca": self.name, **places, **more}, variables)

    def done(self, *steps: str) -> None:
        for step in steps:
            result = self.step(step)
            assert not result.get("failed"), result

    @property
    def phase(self) -> str:
        return rotation.state(wanted(), self.pki, self.name).phase

    @property
    def journal(self) -> str:
        path = self.journals / f"ca-{self.name}.json"
        return str(json.loads(path.read_text())["step"]) if path.exists() else ""

    def forget(self, consumer: str) -> None:
        """As if the machine had come into the inventory after everybody was confirmed."""
        path = self.pki / "etcd-ca-rotation.json"
        record = json.loads(path.read_text())
        for kind in ("trust", "shown"):
            record[kind].pop(consumer, None)
        path.write_text(json.dumps(record))


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path)


def test_a_ca_is_rotated_step_by_step(ca: Ca) -> None:
    assert "next: trust" in ca.step("begin")["lines"][0]
    early = ca.step("issue")
    assert "the step trust is not done yet" in early["msg"]
    assert ca.journal == ""
    ca.done("trust", "trusted", "issue")
    reconcile.apply(wanted(), ca.pki, datetime.now(UTC))
    ca.done("issued", "drop", "end")
    assert (ca.phase, ca.journal) == (rotation.SETTLED, "")


def test_who_comes_between_trust_and_issue_is_confirmed_then(ca: Ca) -> None:
    ca.done("trust", "trusted")
    ca.forget("etcd@node02")
    # --tags issue, a week later.
    ca.done("trusted", "issue")
    assert ca.phase == rotation.ISSUE_FROM_NEW


def test_what_is_issued_between_issue_and_drop_is_confirmed_then(ca: Ca) -> None:
    ca.done("trust", "trusted", "issue")
    reconcile.apply(wanted(), ca.pki, datetime.now(UTC))
    ca.done("issued")
    ca.forget("etcd@node02")
    reconcile.apply(wanted(), ca.pki, datetime.now(UTC), renewal=Renewal(["etcd-peer-node01"]))
    # --tags drop, a week later.
    ca.done("issued", "drop", "end")
    assert ca.phase == rotation.SETTLED


def test_a_machine_that_shows_nothing_stops_it(ca: Ca) -> None:
    ca.done("trust")
    ca.unseen = {"node02"}
    said = ca.step("trusted")["msg"]
    assert "not every consumer has taken it over" in said
    assert "node02 is not part of this run" in said
    assert ca.journal in ("", "trust")


def test_a_directory_that_went_back_begins_anew(ca: Ca) -> None:
    ca.done("trust", "trusted")
    assert ca.journal == "issue"
    rotation.abort(wanted(), ca.pki, "etcd", datetime.now(UTC))
    assert "next: trust" in ca.step("begin")["lines"][0]
    assert "the step trust is not done yet" in ca.step("issue")["msg"]
    ca.done("trust", "trusted", "issue")


def test_a_password_may_change_during_a_rotation(ca: Ca, tmp_path: Path) -> None:
    source = {}
    for which in ("before", "after"):
        (tmp_path / which).write_text(f"the word of {which}\n")
        source[which] = f"file:{tmp_path / which}"
    ca.spec["cas"]["etcd"]["password"] = source["before"]
    ca.done("trust", "trusted")
    ca.spec["cas"]["etcd"]["password"] = source["after"]
    assert "cannot be decrypted" in ca.step("issue")["msg"]
    assert ca.step("issue", old_password=source["before"])["changed"]


def test_no_operation_on_certificates_restarts_the_last_api_server() -> None:
    found = 0
    for path in (ROOT / "playbooks/ops").glob("*.yml"):
        if path.stem in ("hand_out", "renew") or path.stem.startswith("rotate_"):
            for play in yaml.safe_load(path.read_text()):
                if play.get("ansible.builtin.import_playbook") == "../master.yml":
                    assert play["vars"] == {"master_spares_api": True}, path
                    found += 1
    assert found == 9


@pytest.mark.parametrize(
    ("phase", "known", "is_new", "step"),
    [
        (rotation.SETTLED, "", True, ""),
        (rotation.SETTLED, "issue", True, "trust"),
        (rotation.SETTLED, "drop", True, "drop"),
        # A backup from before the rotation was restored.
        (rotation.SETTLED, "drop", False, "trust"),
        (rotation.TRUST_BOTH, "", False, "trust"),
        (rotation.TRUST_BOTH, "issue", False, "issue"),
        (rotation.TRUST_BOTH, "drop", False, "trust"),
        (rotation.ISSUE_FROM_NEW, "trust", False, "issue"),
        (rotation.ISSUE_FROM_NEW, "drop", False, "drop"),
    ],
)
def test_the_directory_wins_over_the_journal(phase: str, known: str, *, is_new: bool, step: str) -> None:
    assert ca_rotation.in_hand(phase, known, is_new=is_new) == step


GOOD: dict[str, Any] = {"differences": [], "restarted": [], "stopped": []}
OLD = "a" * 32


class Encryption:
    """The rotation of the encryption key of a cluster with one master."""

    def __init__(self, path: Path) -> None:
        self.secrets = path / "secrets"
        self.secrets.mkdir()
        self.running: dict[str, Any] = dict(GOOD)
        self.key.write_text(OLD)

    @property
    def key(self) -> Path:
        return self.secrets / "encryption_key"

    @property
    def names(self) -> list[str]:
        return [one.name for one in keyring.parse(self.key.read_text())]

    def step(self, step: str, **changes: Any) -> dict[str, Any]:
        cluster = {"machines": {"master01": {"is_master": True, "is_node": True}}, "pki_spec": {}}
        variables = {
            "ansible_facts": {"cluster": cluster},
            "hostvars": {"master01": {"master_running": self.running}},
            "ansible_play_hosts": ["master01"],
            "ansible_run_tags": ["all"],
            "ansible_skip_tags": [],
        }
        places = {"pki": str(self.secrets), "secrets": str(self.secrets)}
        arguments = {"key": "encryption", "step": step, **places}
        return action("kubewright_rotate_key", arguments, {**variables, **changes})


@pytest.fixture
def encryption(tmp_path: Path) -> Encryption:
    return Encryption(tmp_path)


@pytest.mark.parametrize("step", ["begin", "add", "promote"])
def test_a_part_of_the_rotation_of_a_key_is_refused(encryption: Encryption, step: str) -> None:
    for chosen in ({"ansible_skip_tags": ["master"]}, {"ansible_run_tags": ["master"]}):
        assert "without --tags and --skip-tags" in encryption.step(step, **chosen)["msg"]
    assert encryption.key.read_text() == OLD


@pytest.mark.parametrize(
    ("running", "says"),
    [
        ({**GOOD, "restarted": ["kube-apiserver.service"]}, "restart of kube-apiserver.service"),
        ({**GOOD, "differences": [{"path": "/x/encryption.yml"}]}, "/x/encryption.yml"),
        ({"skipped": True}, "nobody asked it"),
        ({}, "nobody asked it"),
    ],
)
def test_no_key_encrypts_that_an_api_server_does_not_know(
    encryption: Encryption, running: dict[str, Any], says: str
) -> None:
    encryption.step("add")
    encryption.running = running
    said = encryption.step("promote")["msg"]
    assert "not every master runs with what the step before has made" in said
    assert f"- master01: {says}" in said
    assert encryption.names == ["key1", "key2"]


def test_a_unit_that_ends_itself_now_and_then_holds_nothing_up(encryption: Encryption) -> None:
    encryption.step("add")
    unit = "kube-scheduler.service"
    encryption.running = {**GOOD, "restarted": [unit], "stopped": [unit]}
    assert not encryption.step("promote").get("failed")
    assert encryption.names == ["key2", "key1"]


def test_the_key_that_a_rotation_made_is_the_one_that_stays(encryption: Encryption) -> None:
    encryption.key.write_text(f"key2:{'b' * 32}\nkey1:{OLD}\n")
    for step in ("begin", "add", "add", "promote"):
        assert not encryption.step(step).get("failed")
    assert encryption.names == ["key3", "key2", "key1"]


def test_a_kubelet_without_its_serving_certificate_is_not_restarted_once_more(
    ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def machine(_self: Any, *, module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        asked.append(module_args["step"])
        return {"held": {"client": of_kubelet(ca.pki), "server": ""}}

    monkeypatch.setattr(ActionBase, "_execute_module", machine)
    place = str(ca.pki / "kubelet-signer-ca.pem")
    said = action("kubewright_kubelet_certs", {"ca": place, "conclude": True}, {})
    assert "the server certificates of the kubelet are not from" in said["msg"]
    assert asked == ["look"]
    assert action("kubewright_kubelet_certs", {"ca": place}, {})["renewed"]
    assert asked == ["look", "look", "renew"]
