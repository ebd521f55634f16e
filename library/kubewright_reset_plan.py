#!/usr/bin/python
"""Documentation of the action plugin kubewright_reset_plan."""

DOCUMENTATION = r"""
module: kubewright_reset_plan
short_description: Decides what a reset removes from which machines
description:
  - Runs on the controller only. Fails with everything that would break machines that stay, before anything is removed.
options:
  step:
    description: C(plan) returns the facts C(reset) and C(cluster), C(close) the words of the summary.
    type: str
    choices: [plan, close]
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Plan
  kubewright_reset_plan:
    step: plan
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The plan as the fact C(reset), with the components of each part, and the name of the C(cluster).
  type: dict
  returned: with the step plan
title:
  description: The first line of the summary.
  type: str
  returned: with the step close
lines:
  description: The other lines of the summary.
  type: list
  elements: str
  returned: with the step close
"""
