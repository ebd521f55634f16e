from __future__ import annotations

import json
import os
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
        run = {**RUN, "id": "20260102-030405-6", "result": "ok", "playbooks": ["site.yml"], "check": False, **changes}
        path = self.inventory / "journal"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{run['id']}.json").write_text(json.dumps({**run, "began": 1000.0, "ended": 1060.0}))

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


@pytest.mark.parametrize("changes", [{"playbooks": ["playbooks/ops/backup.yml"]}, {"check": True}])
def test_other_runs_are_not_it(build: Build, changes: dict[str, Any]) -> None:
    build.run()
    build.run(id="20260102-030406-6", stages={}, **changes)
    build.verify(1050.0)
    assert report.results(build.path, build.inventory)[0]["stages"]


@pytest.mark.parametrize("at", [900.0, 1100.0])
def test_a_verification_of_another_run_is_refused(build: Build, at: float) -> None:
    build.run()
    build.verify(at)
    with pytest.raises(UserError, match="did not get to the verification"):
        report.results(build.path, build.inventory)


def test_no_result_is_said(build: Build) -> None:
    with pytest.raises(UserError, match="no result of a run"):
        report.results(build.path, build.inventory)
    build.run()
    with pytest.raises(UserError, match="no result of a verification"):
        report.results(build.path, build.inventory)
