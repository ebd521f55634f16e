#!/usr/bin/python
"""Documentation of the action plugin kubewright_upgrade."""

DOCUMENTATION = r"""
module: kubewright_upgrade
short_description: Plans upgrades and rollbacks, and refuses what must not be done
description:
  - Runs on the controller only, on what the preflight has learnt from the machines. Changes nothing.
options:
  step:
    description:
      - C(guard) fails when the artifacts are of other versions than those that run.
      - C(upgrade) and C(rollback) print what would change, fail with every reason why it must not, and give the fact
        C(upgrade).
      - C(keep) gives a machine the facts C(artifacts) and C(cluster) with the versions that it runs.
      - C(previous) gives them with the versions that it ran before the last upgrade, where that has reached it.
      - C(round) gives the fact C(cluster) with the version of a round.
    type: str
    choices: [guard, upgrade, rollback, keep, previous, round]
    required: true
  names:
    description: Artifacts of the lock file.
    type: list
    elements: str
  source:
    description: As of kubewright_artifacts.
    type: str
  lock_file:
    description: As of kubewright_artifacts.
    type: str
  mirror_url:
    description: As of kubewright_artifacts.
    type: str
  directory:
    description: As of kubewright_artifacts.
    type: str
  kubernetes_version:
    description: As of kubewright_artifacts.
    type: str
  via:
    description: Releases of Kubernetes between what runs and what is wanted.
    type: list
    elements: str
  live_restore:
    description: Whether containers go on while dockerd restarts.
    type: bool
  drain:
    description: When pods leave a node before it is changed (auto, always or never).
    type: str
  nodes_at_once:
    description: Number or percentage of nodes that are changed at the same time.
    type: str
  quiet:
    description: Whether the plan is not printed.
    type: bool
    default: false
  round:
    description: Number of the round, from 0.
    type: int
author: kubewright
"""

EXAMPLES = r"""
- name: Versions stay as they are
  kubewright_upgrade:
    step: guard
    names: [etcd]
    source: debian
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: >-
    C(upgrade) with the list C(rounds) of C(version), C(snapshot), and the machines C(etcd), C(masters), C(nodes) that
    change and C(drain) that are drained before; C(stages) of the run; C(at_once); C(lines) for the screen.
  type: dict
  returned: success
"""
