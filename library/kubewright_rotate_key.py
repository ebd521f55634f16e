#!/usr/bin/python
"""Documentation of the action plugin kubewright_rotate_key."""

DOCUMENTATION = r"""
module: kubewright_rotate_key
short_description: A step of the rotation of a key that masters share, or of the bootstrap token
description:
  - Changes files of the controller, and asks the API where a step needs that. What a step has made is handed out by the
    stages before the next. Where the rotation stands is kept in C(secrets/rotations), so every step can be run again.
options:
  key:
    description: What is rotated.
    type: str
    choices: [service-account, encryption, bootstrap-token]
    required: true
  step:
    description: C(begin), a step of the key, or C(end).
    type: str
    required: true
  pki:
    description: The PKI directory.
    type: path
    required: true
  secrets:
    description: The directory of secrets beside the inventory.
    type: path
    required: true
  grace_minutes:
    description: For how long the old key of service accounts stays trusted.
    type: int
    default: 0
author: kubewright
"""

EXAMPLES = r"""
- name: Make the new key
  kubewright_rotate_key:
    key: encryption
    step: add
    pki: "{{ inventory_dir }}/pki"
    secrets: "{{ inventory_dir }}/secrets"
  run_once: true
"""

RETURN = r"""
lines:
  description: Where it stands, for people.
  type: list
  elements: str
  returned: success
"""
