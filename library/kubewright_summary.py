#!/usr/bin/python
"""Documentation of the action plugin kubewright_summary."""

DOCUMENTATION = r"""
module: kubewright_summary
short_description: Prints the closing words of a playbook
description:
  - Runs on the controller only, changes nothing.
options:
  title:
    description: What was done.
    type: str
    required: true
  lines:
    description: One per line of the screen; empty ones are left out.
    type: list
    elements: str
author: kubewright
"""

EXAMPLES = r"""
- name: Summary
  kubewright_summary:
    title: Removed node02
    lines: ["delete node02 from the inventory"]
  run_once: true
"""

RETURN = r"""# """
