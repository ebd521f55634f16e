"""reset.yml with machines that cannot be reached: what it refuses by itself, and how it ends."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = """\
all:
  vars: {ansible_host: 127.0.0.1, ansible_port: 1, cluster_name: dead}
  children:
    etcd: {hosts: {m1: }}
    kube_master: {hosts: {m1: }}
    kube_node: {hosts: {n1: }}
"""


@pytest.fixture
def reset(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(INVENTORY)
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONPATH": str(ROOT / "src")}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", str(ROOT / "playbooks/ops/reset.yml"), "-i", str(inventory), *options]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    return run


def test_beside_another_run_it_is_refused(
    reset: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "journal").mkdir()
    with (tmp_path / "journal" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = reset("-e", "confirm=dead")
    assert done.returncode != 0
    assert "another run is under way with this inventory" in done.stdout
    assert "TASK [reset : Nodes]" not in done.stdout


def test_machines_that_cannot_be_reached_are_named(reset: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = reset("-e", "confirm=dead")
    assert done.returncode != 0
    assert "  n1, in 'Nodes': Failed to connect to the host via ssh" in done.stdout
