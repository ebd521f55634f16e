from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubewright import report
from kubewright.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
PROBE = {"source": "pod a", "target": "pod b", "address": "1", "kind": "ping", "ok": True, "milliseconds": 0.2}
VERIFY = {"ok": True, "problems": [], "versions": ["API server v1.20.2"], "results": [PROBE]}
RUN: dict[str, Any] = {
    "seconds": 48.8,
    "stages": {"Etcd cluster": 3.1},
    "hosts": {"alpha": {"ok": 12, "changed": 5, "failures": 0}, "zulu": {"ok": 9, "changed": 5, "failures": 0}},
}


def test_the_page_has_everything_a_user_looks_for() -> None:
    text = report.summary(RUN, VERIFY, "inventories/lab", "zulu")
    for expected in ("alpha: 12 tasks", "API server v1.20.2", "Etcd cluster", "1 probes, 0 lost", "0.20 ms"):
        assert expected in text
    assert "inventories/lab/secrets/admin.kubeconfig" in text
    assert "exec zulu -- kubectl --kubeconfig /opt/kubernetes/cfg/admin.kubeconfig" in text
    assert text.endswith("  make down")
    assert report.summary(RUN, VERIFY, "elsewhere", "zulu").endswith("  make down INVENTORY=elsewhere")


def test_what_the_page_says_to_type_is_in_the_readme_too() -> None:
    typed = report.summary(RUN, VERIFY, "inventories/lab", "master01").partition("next:\n")[2]
    assert typed in (ROOT / "README.md").read_text()


class Build:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "build"
        self.inventory = directory / "inventory"
        self.path.mkdir()

    def run(self, **changes: Any) -> None:
        run = {**RUN, "inventory": [str(self.inventory)], "began": 1000.0, "ended": 1060.0, **changes}
        (self.path / "run.json").write_text(json.dumps(run))

    def verify(self, at: float) -> None:
        (self.path / "verify.json").write_text(json.dumps(VERIFY))
        os.utime(self.path / "verify.json", (at, at))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_results_of_one_run(build: Build) -> None:
    build.run()
    build.verify(1050.0)
    assert report.results(build.path, build.inventory)[1] == VERIFY


def test_a_run_on_another_inventory_is_refused(build: Build) -> None:
    build.run(inventory=["/somewhere/else"])
    build.verify(1050.0)
    with pytest.raises(UserError, match=r"was on /somewhere/else, not on .*/inventory"):
        report.results(build.path, build.inventory)


@pytest.mark.parametrize("at", [900.0, 1100.0])
def test_a_verification_of_another_run_is_refused(build: Build, at: float) -> None:
    build.run()
    build.verify(at)
    with pytest.raises(UserError, match="did not get to the verification"):
        report.results(build.path, build.inventory)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": {}}'])
def test_no_result_is_said(build: Build, text: str) -> None:
    with pytest.raises(UserError, match="no result of a run"):
        report.results(build.path, build.inventory)
    (build.path / "run.json").write_text(text)
    with pytest.raises(UserError, match="no result of a run"):
        report.results(build.path, build.inventory)
    build.run()
    with pytest.raises(UserError, match="no result of a verification"):
        report.results(build.path, build.inventory)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with the callback and a site.yml that needs no machines."""
    plugins = tmp_path / "callback_plugins"
    plugins.mkdir()
    shutil.copy(ROOT / "callback_plugins/kubewright_timing.py", plugins)
    (tmp_path / "ansible.cfg").write_text(
        "[defaults]\ncallbacks_enabled = kubewright_timing\ncallback_plugins = callback_plugins\n"
    )
    play = [{"name": "A stage", "hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.meta": "noop"}]}]
    for name in ("site.yml", "other.yml"):
        (tmp_path / name).write_text(json.dumps(play))
    (tmp_path / "hosts.json").write_text('{"all": {"hosts": {"one": {}}}}')
    return tmp_path


def play(checkout: Path, playbook: str) -> str:
    command = [Path(sys.executable).with_name("ansible-playbook"), playbook, "-i", "hosts.json"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A stage" in done.stdout
    return done.stdout + done.stderr


def test_only_runs_of_site_yml_are_kept(checkout: Path) -> None:
    play(checkout, "other.yml")
    assert not (checkout / "build").exists()
    play(checkout, "site.yml")
    run = json.loads((checkout / "build/run.json").read_text())
    assert run["inventory"] == [str(checkout / "hosts.json")]
    assert run["began"] < run["ended"]


def test_a_directory_that_cannot_be_written_is_a_warning(checkout: Path) -> None:
    (checkout / "build").write_text("in the way")
    said = " ".join(play(checkout, "site.yml").split())
    assert "the times of this run are not kept" in said
    assert "Traceback" not in said
