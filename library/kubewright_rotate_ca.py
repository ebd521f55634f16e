#!/usr/bin/python
"""Documentation of the action plugin kubewright_rotate_ca."""

DOCUMENTATION = r"""
module: kubewright_rotate_ca
short_description: A step of the rotation of CAs
description:
  - Steps of kubepki's state machine on the controller, confirmed by what M(kubewright_certs) has registered as
    C(pki_seen) on every machine. Where the rotation stands is kept in C(journals), so every step can be run again.
options:
  step:
    description: C(begin) looks; C(trust), C(issue) and C(drop) change; the others prove and conclude these.
    type: str
    choices: [begin, trust, trusted, issue, issued, drop, end]
  ca:
    description: Names of CAs with commas between them, or all.
    type: str
    default: ""
  directory:
    description: The PKI directory.
    type: path
    required: true
  journals:
    description: Where it is written down which step is in hand.
    type: path
    required: true
  old_pods:
    description: Whether pods with a token that started before the new CA was published to pods stop the rotation.
    type: str
    choices: [stop, ignore]
    default: stop
  old_password:
    description: Where the password is that encrypted the keys of the CAs before, as in M(kubepki_set).
    type: str
    default: ""
author: kubewright
"""

EXAMPLES = r"""
- name: Make the new CA
  kubewright_rotate_ca:
    step: trust
    ca: etcd
    directory: "{{ inventory_dir }}/pki"
    journals: "{{ inventory_dir }}/secrets/rotations"
  run_once: true
"""

RETURN = r"""
steps:
  description: CA -> the step in hand, empty when none is.
  type: dict
  returned: success
lines:
  description: Where each CA stands, for people.
  type: list
  elements: str
  returned: when not in check mode
"""
