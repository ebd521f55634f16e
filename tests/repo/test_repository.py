"""The repository's own rules."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = sorted(p for p in (ROOT / "roles").iterdir() if p.is_dir())


def tracked() -> list[Path]:
    reply = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in reply.stdout.split("\0") if name]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_role_has_the_same_files(role: Path) -> None:
    for name in ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (role / name).is_file(), name


def test_roles_name_no_inventory_group_but_the_documented_ones() -> None:
    for path in (ROOT / "roles").rglob("tasks/*.yml"):
        for group in re.findall(r"groups\['(\w+)'\]", path.read_text()):
            assert group in ("etcd", "kube_master", "kube_node"), f"{path}: {group}"


def test_command_and_shell_say_when_they_changed_something() -> None:
    for path in [*(ROOT / "roles").rglob("tasks/*.yml"), *(ROOT / "playbooks").rglob("*.yml")]:
        text = path.read_text()
        assert "ignore_errors" not in text, path
        if re.search(r"ansible\.builtin\.(command|shell):", text):
            assert "changed_when" in text, path


def test_nothing_secret_is_tracked() -> None:
    for path in tracked():
        if path.suffix in (".py", ".md") or not path.is_file():
            continue
        assert "PRIVATE KEY-----" not in path.read_text(errors="replace"), path


def test_machine_code_stays_within_the_standard_library() -> None:
    for path in (ROOT / "src/kubewright/machine").glob("*.py"):
        for line in re.findall(r"^(?:from|import) (\S+)", path.read_text(), re.MULTILINE):
            assert not line.startswith(("kubewright", "cryptography", "yaml", "ansible", "pyroute2")), f"{path}: {line}"


def test_all_tests_share_one_cache_wherever_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test"))
    seen = []

    def run(*_: object) -> bool:
        seen.append(os.environ["KUBEWRIGHT_CACHE"])
        return True

    monkeypatch.setenv("KUBEWRIGHT_CACHE", "build/cache")
    monkeypatch.chdir(ROOT)
    main = script["main"]
    monkeypatch.setitem(main.__globals__, "run", run)
    monkeypatch.setitem(main.__globals__, "SUITES", [])
    assert main() == 0
    assert set(seen) == {str(ROOT / "build" / "cache")}
