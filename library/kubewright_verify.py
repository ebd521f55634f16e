#!/usr/bin/python
"""Documentation of the action plugin kubewright_verify."""

DOCUMENTATION = r"""
module: kubewright_verify
short_description: Proves that pods reach each other across machines
description:
  - C(start) makes test pods on every node and waits for them; C(finish) pings from every pod to every pod, adds what
    the machines found, writes the report and fails when anything was lost; C(clean) removes the pods.
options:
  step:
    description: Which half.
    type: str
    choices: [start, finish, clean]
    required: true
  namespace:
    description: Namespace of the test pods.
    type: str
    required: true
  image:
    description: Image of the test pods.
    type: str
    required: true
  alone:
    description: Whether pods of earlier runs in namespaces of this name are removed first, for C(start).
    type: bool
    default: false
  timeout:
    description: Seconds to wait for the pods.
    type: float
    required: true
  report:
    description: Path of the JSON report on the controller.
    type: path
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Test pods
  kubewright_verify:
    step: start
    namespace: kubewright-verify
    image: kubewright/busybox:1.35
    timeout: 60
    report: build/verify.json
"""

RETURN = r"""
pods:
  description: Node to pod address.
  type: dict
  returned: step is start
matrix:
  description: The table.
  type: str
  returned: step is finish
"""
