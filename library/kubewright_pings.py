#!/usr/bin/python
"""Documentation of the action plugin kubewright_pings."""

DOCUMENTATION = r"""
module: kubewright_pings
short_description: Has test pods ping each other while something is changed
description:
  - C(begin) has every test pod ping those on other nodes five times a second; C(end) ends that, and tells how many
    answers were missing. C(judge) fails when too many were.
options:
  step:
    description: What is to be done.
    type: str
    choices: [begin, end, judge]
    required: true
  pods:
    description: What C(kubewright_verify) has returned in its step C(start).
    type: dict
  result:
    description: What the step C(end) has returned, for C(judge).
    type: dict
  lost:
    description: How many pings may be lost, for C(judge).
    type: int
author: kubewright
"""

EXAMPLES = r"""
- name: Begin to ping
  kubewright_pings:
    step: begin
    pods: "{{ verify_pods }}"
"""

RETURN = r"""
lines:
  description: For people; all pings together, and each pair.
  type: list
  elements: str
  returned: step is end
lost:
  description: Pings without an answer.
  type: int
  returned: step is end
unknown:
  description: Pairs of which nothing is known, because a pod is gone.
  type: list
  elements: str
  returned: step is end
"""
