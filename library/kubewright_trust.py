#!/usr/bin/python
"""Documentation of the action plugin kubewright_trust."""

DOCUMENTATION = r"""
module: kubewright_trust
short_description: First contact with all hosts of the play, over SSH
description:
  - Runs on the controller only, once for all hosts, in parallel, and not through Ansible's connections.
  - Records host keys beside the inventory, refuses changed ones, hands over the public key, and reports what it found.
  - Takes passwords from the variables C(trust_password) and C(ansible_password), never from its arguments.
    Asks for one in a terminal when a machine needs it.
options:
  public_key:
    description: Path of the public key to hand over; empty for the operator's own.
    type: str
    default: ""
  timeout:
    description: Seconds that each step with a machine may take.
    type: float
    default: 10
author: kubewright
"""

EXAMPLES = r"""
- name: Meet every machine
  kubewright_trust:
  run_once: true
"""

RETURN = r"""
hosts:
  description: What was found, by host; never a password.
  type: dict
  returned: success
known_hosts:
  description: Files that host keys were added to.
  type: list
  elements: str
  returned: success
"""
