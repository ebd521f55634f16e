#!/usr/bin/python
"""Documentation of the action plugin kubewright_window."""

DOCUMENTATION = r"""
module: kubewright_window
short_description: So many machines of a play at a time, the next one as soon as any of them is done
description:
  - For plays with the strategy C(host_pinned), where each machine goes on at its own pace.
  - Runs on the controller only. A machine that has no place yet waits, and occupies one of the forks.
  - After a failure, or when a machine was lost, nobody gets a place any more.
options:
  name:
    description: Which window of the run it is.
    type: str
    required: true
  step:
    description: Whether a place is taken, or given back.
    type: str
    choices: [enter, leave]
    required: true
  hosts:
    description: All machines that come by, in the order in which they get places.
    type: list
    elements: str
    required: true
  size:
    description: How many machines have a place at the same time.
    type: int
    required: true
  failure:
    description: What went wrong with a machine that leaves; empty when all is well. The task fails with it.
    type: str
    default: ""
author: kubewright
"""

EXAMPLES = r"""
- name: A place
  kubewright_window: {name: nodes, step: enter, hosts: [node01, node02, node03], size: 2}
  register: entered

- name: Its work, unless another one has failed
  ansible.builtin.import_tasks: work.yml
  when: not entered.blocked_by

- name: The next one
  kubewright_window: {name: nodes, step: leave, hosts: [node01, node02, node03], size: 2}
  when: not entered.blocked_by
"""

RETURN = r"""
blocked_by:
  description: Machines that have failed or were lost, for which this one has no place; empty with a place.
  type: list
  elements: str
  returned: when entering
"""
