"""The module kubewright_etcd_key, run by Ansible against a real etcd with TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flannel_lab import PREFIX, Lab, Pki, Tools, lab

ROOT = Path(__file__).resolve().parent.parent.parent
DEAD = "https://127.0.0.1:2371"
VXLAN = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
OTHER = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, tools: Tools, pyz: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("etcd"), tools, pyz) as made:
        yield made


def ask(made: Lab, value: dict[str, Any], *flags: str, **arguments: Any) -> dict[str, Any]:
    """One task; returns what the module answered, and all that Ansible printed as `output`."""
    pki = made.pki
    given = {
        "urls": [DEAD, made.etcd.url],
        "ca": str(pki.ca),
        "cert": str(pki.client),
        "key": str(Pki.key(pki.client)),
        "member_config": str(pki.ca),
        "name": f"{PREFIX}/config",
        "value": value,
        "users": f"{PREFIX}/subnets/",
        **arguments,
    }
    command = ["ip", "netns", "exec", made.switch, str(Path(sys.executable).parent / "ansible"), "localhost"]
    command += ["-c", "local", "-m", "kubewright_etcd_key", "-a", json.dumps(given), *flags]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=ROOT)
    assert " => " in done.stdout, done.stdout + done.stderr
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout.split(" => ", 1)[1])[0]
    return {"output": done.stdout, **answer}


def stored(made: Lab) -> Any:
    found = made.etcd.client("get", f"{PREFIX}/config")
    return found and json.loads(found[1])


def test_written_once_and_replaced_only_while_nobody_has_a_subnet(etcd: Lab, tmp_path: Path) -> None:
    # In check mode, where etcd is not set up yet: it would be written, and nobody is asked.
    foreseen = ask(etcd, VXLAN, "--check", urls=[DEAD], member_config=str(tmp_path / "none"))
    assert foreseen["changed"]
    # Where it is set up, no answer is a failure: nothing can be foreseen.
    silent = ask(etcd, VXLAN, "--check", urls=[DEAD])
    assert "changed" not in silent or not silent["changed"]
    assert f"etcd at {DEAD} does not answer" in silent["msg"]
    assert silent["msg"].endswith("run --tags etcd first")
    assert stored(etcd) is None

    # A member that is down does not matter.
    assert ask(etcd, VXLAN)["changed"]
    assert stored(etcd) == VXLAN
    assert not ask(etcd, VXLAN)["changed"]

    # Nobody has a subnet: another value is harmless.
    assert ask(etcd, OTHER, "--check")["changed"]
    assert stored(etcd) == VXLAN
    shown = ask(etcd, OTHER, "--diff")
    assert stored(etcd) == OTHER
    assert f"--- before: {PREFIX}/config (no node has a subnet of it)" in shown["output"]
    assert '+{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}' in shown["output"]

    etcd.etcd.client("put", f"{PREFIX}/subnets/10.244.7.0-24", "{}")
    refused = ask(etcd, VXLAN)
    assert not refused["changed"]
    assert "set the variables back" in refused["msg"]
    assert f"etcdctl del --prefix {PREFIX}/subnets/" in refused["msg"]
    assert "Running flannelds would not take it over: the backend's settings differ: vni is null" in refused["msg"]
    assert stored(etcd) == OTHER
    assert not ask(etcd, OTHER)["changed"]

    # What running flannelds take over is written although nodes have subnets.
    larger = {**OTHER, "Network": "10.240.0.0/12", "SubnetLen": 24}
    foreseen = ask(etcd, larger, "--check", "--diff")
    assert foreseen["changed"]
    assert f"--- before: {PREFIX}/config (nodes have subnets of it)" in foreseen["output"]
    assert stored(etcd) == OTHER
    written = ask(etcd, larger)
    assert written["changed"]
    assert "every node keeps its subnet" in written["msg"]
    assert stored(etcd) == larger
    assert not ask(etcd, larger)["changed"]
    narrowed = {**larger, "SubnetMin": "10.241.0.0"}
    assert ask(etcd, narrowed)["changed"]
    assert stored(etcd) == narrowed
    for change, reason in (
        ({"Network": "10.244.0.0/16"}, "the network 10.244.0.0/16 does not contain the present one, 10.240.0.0/12"),
        ({"SubnetLen": 25}, "SubnetLen is 25 instead of 24"),
    ):
        refused = ask(etcd, {**larger, **change})
        assert reason in refused["msg"]
        assert stored(etcd) == narrowed
    etcd.etcd.client("put", f"{PREFIX}/config", "not json")
    assert "the network configuration is not JSON" in ask(etcd, larger)["msg"]
