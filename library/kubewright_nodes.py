#!/usr/bin/python
"""Documentation of the action plugin kubewright_nodes."""

DOCUMENTATION = r"""
module: kubewright_nodes
short_description: Waits for the inventory's nodes and approves their serving certificates
description:
  - Approves a kubelet's serving certificate only when name and addresses are those of the inventory.
  - Sets labels and taints.
options:
  nodes:
    description: Machines of the fact C(cluster) that run a kubelet.
    type: list
    elements: dict
    required: true
  required:
    description: Names of those that have to register and answer.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait.
    type: float
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Nodes
  kubewright_nodes:
    nodes: "{{ cluster.machines.values() }}"
    required: "{{ ansible_play_hosts }}"
    timeout: 60
"""

RETURN = r"""
approved:
  description: Users whose requests were approved.
  type: list
  elements: str
  returned: success
late:
  description: Machine -> why it is not there, of those whose kubelets did not answer in time while others did.
  type: dict
  returned: when there are such
"""
