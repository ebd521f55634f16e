"""The repository's own rules."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = sorted(p for p in (ROOT / "roles").iterdir() if p.is_dir())


def tracked() -> list[Path]:
    reply = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in reply.stdout.split("\0") if name]


def test_git_sees_no_keys() -> None:
    for inventory in ("inventories/mine", "molecule/inventory", "molecule/etcd-restore/inventory"):
        for name in (".partial-1-x/encryption_key", "pki.before-NOW/ca-key.pem", "secrets/encryption_key"):
            asked = ["git", "check-ignore", "-q", "--no-index", f"{inventory}/{name}"]
            assert subprocess.run(asked, cwd=ROOT, check=False).returncode == 0, f"{inventory}/{name}"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_role_has_the_same_files(role: Path) -> None:
    for name in ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (role / name).is_file(), name


def test_roles_name_no_inventory_group_but_the_documented_ones() -> None:
    for path in (ROOT / "roles").rglob("tasks/*.yml"):
        for group in re.findall(r"groups\['(\w+)'\]", path.read_text()):
            assert group in ("etcd", "kube_master", "kube_node", "lb"), f"{path}: {group}"


def test_whoever_asks_the_api_asks_a_master_that_has_one() -> None:
    for path in (ROOT / "roles").rglob("*.yml"):
        assert "groups['kube_master'] | intersect(ansible_play_hosts)" not in path.read_text(), path


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
            assert not line.startswith(("kubewright", "cryptography", "yaml", "ansible")), f"{path}: {line}"


def test_all_tests_share_one_cache_wherever_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test"))
    seen = {}

    def run(title: str, *_: object) -> str:
        seen[title] = os.environ["KUBEWRIGHT_CACHE"]
        return ""

    monkeypatch.setenv("KUBEWRIGHT_CACHE", "build/cache")
    monkeypatch.chdir(ROOT)
    main = script["main"]
    monkeypatch.setitem(main.__globals__, "run", run)
    monkeypatch.setitem(main.__globals__, "suites", lambda: None)
    assert main() == 0
    assert set(seen.values()) == {str(ROOT / "build" / "cache")}
    assert set(seen) >= {f"scenario {name}" for name in script["SCENARIOS"]}


def run_suite(script: dict[str, Any], path: Path) -> None:
    (ROOT / "build").mkdir(exist_ok=True)
    try:
        script["suite"](str(path))
    finally:
        (ROOT / "build" / f"{str(path).strip('/').replace('/', '-')}.xml").unlink(missing_ok=True)


def test_the_last_lines_name_what_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test"))
    suite = tmp_path / "test_broken.py"
    suite.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_sum(n): assert n == 1, f'{n} is not one\\nand more'\n"
        "@pytest.mark.skip(reason='no time')\n"
        "def test_later(): pass\n"
    )
    run_suite(script, suite)
    assert not script["step"]("linters", ["sh", "-c", "echo a.py:1: error: wrong >&2; echo 1 file; exit 2"])
    assert not script["step"]("scenario cluster", ["sh", "-c", "exit 3"])
    assert script["step"]("well", ["true"])
    assert script["conclude"]() == 1
    lines = capfd.readouterr().out.splitlines()
    end = lines[lines.index("==> what failed") :]
    assert re.fullmatch(r"  \S*test_broken::test_sum\[2\]: failure: AssertionError: 2 is not one", end[1])
    assert re.fullmatch(r"  \S*test_broken::test_later: skipped: no time", end[2])
    assert end[3:] == [
        "  linters: a.py:1: error: wrong",
        "  scenario cluster: status 3",
        "2 passed, 3 failed, 1 skipped",
    ]


def test_a_suite_that_cannot_begin_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test"))
    run_suite(script, tmp_path / "missing")
    assert script["conclude"]() == 1
    assert "  " + str(tmp_path / "missing") + ": ERROR: " in capfd.readouterr().out


def test_every_suite_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "test"))
    suites = script["suites"]
    seen: list[str] = []
    monkeypatch.setitem(suites.__globals__, "suite", lambda path, *_: seen.append(path))
    suites()
    there = {f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/test_*.py")}
    assert sorted(seen) == sorted(there)
