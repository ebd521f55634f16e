#!/usr/bin/python
"""Documentation of the action plugin kubewright_scale."""

DOCUMENTATION = r"""
module: kubewright_scale
short_description: Plans that machines are added to the cluster or leave it
description:
  - Runs on the controller only, and changes nothing. C(add) and C(remove) come after the preflight and make the plan.
  - What is refused for a removal comes in turn, C(typed) before anybody is asked, C(known) where the plan has machines
    that are not in the inventory, C(complete) before others are changed and before the machine is stopped, C(emptied)
    before the cluster forgets it.
  - An addition is not done when a machine failed on the way, C(complete).
  - Reads the variables C(machine) and C(dead) of the command line, and refuses what cannot be.
options:
  operation:
    description: What happens to the machines, or what is to be looked at.
    type: str
    choices: [add, remove, typed, known, complete, emptied]
    required: true
  found:
    description: With C(known), what loops over the machines of the fact registered, with C(found) in each result.
    type: list
    elements: dict
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
  returned: with add and remove
"""
