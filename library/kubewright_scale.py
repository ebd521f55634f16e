#!/usr/bin/python
"""Documentation of the action plugin kubewright_scale."""

DOCUMENTATION = r"""
module: kubewright_scale
short_description: Plans that machines are added to the cluster or leave it
description:
  - Runs on the controller only, after the preflight, and changes nothing.
  - Reads the variables C(machine) and C(dead) of the command line, and refuses what cannot be.
options:
  operation:
    description: What happens to the machines.
    type: str
    choices: [add, remove]
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Plan
  kubewright_scale:
    operation: remove
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The fact C(scale) with the machines and the stages of all machines.
  type: dict
  returned: success
"""
