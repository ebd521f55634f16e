#!/usr/bin/python
"""Documentation of the action plugin kubepki_set."""

DOCUMENTATION = r"""
module: kubepki_set
short_description: Reconciles all CAs, key pairs and certificates of a specification in one call
description:
  - Runs on the controller. Keeps what is right, issues what is missing, changed or in the last third of its life, and
    repairs what only lies there wrongly (mode, owner, encryption of a CA's key, trust bundle).
  - Never replaces a CA. Supports check mode and diff; results hold no key material.
options:
  spec:
    description: CAs, key pairs and certificates; see docs/pki.md. Paths of passwords in it must be absolute.
    type: dict
    required: true
  directory:
    description: The PKI directory.
    type: path
    required: true
  old_password:
    description:
      - Where the password is (C(env:NAME) or C(file:PATH)) that CA keys are encrypted with, when the specification
        names another one, or none any more.
    type: str
    default: ""
  spec_file:
    description: Where the specification is kept as YAML, for kubepki's commands; empty for nowhere.
    type: path
    default: ""
  renew_names:
    description: Certificates that are issued anew although they are right.
    type: list
    elements: str
    default: []
  renew_within_days:
    description: Certificates that end within so many days are issued anew as well.
    type: float
    default: 0
  renew_all:
    description: Issue every certificate anew; CAs stay.
    type: bool
    default: false
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
  description:
    - Every decision, with name, action (C(keep), C(issue), C(repair)), reasons, serial (hexadecimal), not_after, files,
      consumers. Serial and end of life are empty for what a check-mode run would issue.
  type: list
  elements: dict
  returned: success
issued:
  description: Names of what was issued, or would be in check mode.
  type: list
  elements: str
  returned: success
repaired:
  description: Names of what was repaired, or would be in check mode.
  type: list
  elements: str
  returned: success
files:
  description: Names of the files in the directory that got another content, or would in check mode.
  type: list
  elements: str
  returned: success
same_as:
  description: Those of the files that are copies of others, which are there already.
  type: dict
  returned: success
consumers:
  description: Who is to be restarted or reloaded, and because of which certificates.
  type: dict
  returned: success
"""
