"""What a failure in a stage that ends the run leaves undone, by ansible-playbook itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = """\
all:
  vars: {ansible_connection: local, ansible_python_interpreter: /usr/bin/python3}
  children:
    first: {hosts: {away: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}, m1: , m2: }}
    second: {hosts: {n1: }}
"""
PLAYS = """\
- name: Look
  hosts: first
  gather_facts: false
  tasks: [{name: One is lost, ansible.builtin.ping: }]
- name: Members
  hosts: first
  gather_facts: false
  any_errors_fatal: %(fatal)s
  tasks:
    - name: Guarded
      block:
        - {name: A step, ansible.builtin.command: "%(guarded)s"}
        - {name: More, ansible.builtin.import_tasks: more.yml}
      rescue: [{name: What helps, ansible.builtin.command: "true"}]
    - {name: A member, ansible.builtin.command: "%(plain)s", when: inventory_hostname == 'm1'}
- name: Nodes
  hosts: second
  gather_facts: false
  tasks: [{name: A node, ansible.builtin.command: "true"}]
"""


MORE = '- {name: An imported step, ansible.builtin.command: "%(imported)s"}\n'


def run(directory: Path, **commands: str) -> subprocess.CompletedProcess[str]:
    (directory / "hosts.yml").write_text(INVENTORY)
    wanted = {"fatal": "true", "guarded": "true", "imported": "true", "plain": "true", **commands}
    (directory / "plays.yml").write_text(PLAYS % wanted)
    (directory / "more.yml").write_text(MORE % wanted)
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        ["ansible-playbook", str(directory / "plays.yml"), "-i", str(directory / "hosts.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_nothing_follows_a_stage_that_ends_the_run_though_a_machine_was_lost_before(tmp_path: Path) -> None:
    done = run(tmp_path, plain="false")
    assert done.returncode != 0
    assert "TASK [A node]" not in done.stdout
    assert "PLAY [Nodes]" not in done.stdout
    assert "PLAY RECAP" in done.stdout
    assert "not begun, because Members failed: Nodes" in done.stdout


def test_a_stage_of_machines_for_themselves_ends_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, plain="false", fatal="false")
    assert done.returncode != 0
    assert "changed: [n1]" in done.stdout


@pytest.mark.parametrize("step", ["guarded", "imported"])
def test_what_was_rescued_or_lost_before_ends_nothing(tmp_path: Path, step: str) -> None:
    done = run(tmp_path, **{step: "false"})
    assert "TASK [What helps]" in done.stdout
    assert "changed: [n1]" in done.stdout
