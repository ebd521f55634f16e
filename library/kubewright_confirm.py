#!/usr/bin/python
"""Documentation of the action plugin kubewright_confirm."""

DOCUMENTATION = r"""
module: kubewright_confirm
short_description: Asks for the cluster's name before something that cannot be undone
description:
  - Runs on the controller only. Goes on when the variable C(confirm) is the name of the cluster, or when somebody at
    a terminal types it; fails otherwise. In check mode nothing is asked.
options:
  doing:
    description: What is to be confirmed; it goes on after "This", as in C(removes every member's data).
    type: str
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Be sure
  kubewright_confirm:
    doing: takes the machines back to what they were before kubewright
  run_once: true
"""

RETURN = r"""# """
