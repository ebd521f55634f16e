#!/usr/bin/python
"""Documentation of the action plugin kubewright_certs_report."""

DOCUMENTATION = r"""
module: kubewright_certs_report
short_description: Prints every certificate of a cluster by its end, and fails when one ends soon
description:
  - Runs on the controller, over what M(kubewright_certs) has registered as C(pki_seen) on every machine.
  - Fails for certificates below the limits, damaged ones, and services that run with one that was replaced.
options:
  own:
    description: Files and directories of the controller that are part of the report.
    type: list
    elements: path
    required: true
  warn_days:
    description: A warning when fewer days are left.
    type: float
    required: true
  critical_days:
    description: Critical when fewer days are left.
    type: float
    required: true
  report:
    description: Where the report is written as JSON, relative to the project; empty for nowhere.
    type: str
    default: ""
  show:
    description: Print the table, write the report, and fail.
    type: bool
    default: true
author: kubewright
"""

EXAMPLES = r"""
- name: Report
  kubewright_certs_report:
    own: ["{{ inventory_dir }}/pki"]
    warn_days: 30
    critical_days: 7
  run_once: true
"""

RETURN = r"""
restart_for:
  description: Certificates whose renewal restarts services with a certificate in their memory that ends soon.
  type: list
  elements: str
  returned: success
counts:
  description: How many certificates in how many places, and the worst state.
  type: str
  returned: when shown
"""
