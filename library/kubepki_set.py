#!/usr/bin/python
"""Documentation of the action plugin kubepki_set."""

DOCUMENTATION = r"""
module: kubepki_set
short_description: Reconciles all CAs, key pairs and certificates of a specification in one call
description:
  - Runs on the controller. Keeps what is right, issues what is missing, changed or in the last third of its life.
  - Never replaces a CA. Supports check mode and diff; results hold no key material.
options:
  spec:
    description: CAs, key pairs and certificates; see docs/pki.md.
    type: dict
    required: true
  directory:
    description: The PKI directory.
    type: path
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Certificates
  kubepki_set:
    spec: "{{ cluster.pki_spec }}"
    directory: "{{ inventory_dir }}/pki"
"""

RETURN = r"""
certificates:
  description: Every decision.
  type: list
  elements: dict
  returned: success
issued:
  description: Names of what was issued.
  type: list
  elements: str
  returned: success
files:
  description: Names of the files in the directory that were written, or would be in check mode.
  type: list
  elements: str
  returned: success
"""
