#!/usr/bin/python
"""Documentation of the action plugin kubewright_preflight."""

DOCUMENTATION = r"""
module: kubewright_preflight
short_description: Checks inventory and machines and computes the cluster
description:
  - Runs on the controller only. Fails with all problems of all machines in one message.
  - Returns the fact C(cluster), from which every role takes names, addresses and flags.
author: kubewright
"""

EXAMPLES = r"""
- name: Check everything
  kubewright_preflight:
  run_once: true
"""

RETURN = r"""
ansible_facts:
  description: The fact C(cluster).
  type: dict
  returned: success
"""
