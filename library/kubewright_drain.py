#!/usr/bin/python
"""Pods leave a node; logic in src/kubewright/machine/drain.py."""

DOCUMENTATION = r"""
module: kubewright_drain
short_description: Drains a node within its disruption budgets, or lets pods onto it again
description:
  - Runs on a machine that reaches the API server and holds an administrator's certificate.
  - Evicts by the eviction API, and asks again while a budget forbids it. Pods of DaemonSets, of the kubelet's own files
    and finished ones stay. When pods are left after the timeout, a node that kubewright cordoned is uncordoned again.
  - A node that a person cordoned is drained too, and stays cordoned.
options:
  server:
    description: URL of the API server.
    type: str
    required: true
  ca:
    description: Path of the CA certificate.
    type: path
    required: true
  cert:
    description: Path of the client certificate.
    type: path
    required: true
  key:
    description: Path of the client key.
    type: path
    required: true
  node:
    description: Name of the node.
    type: str
    required: true
  state:
    description: Whether pods leave, or may come again.
    type: str
    choices: [drained, uncordoned]
    default: drained
  timeout:
    description: Seconds until all pods must have left.
    type: float
    default: 300
  emptydir_data:
    description: Pods with emptyDir volumes may go, and their data with them.
    type: bool
    default: false
  unmanaged:
    description: Pods may go that no controller makes anew.
    type: bool
    default: false
  force:
    description: What is left after the timeout is deleted at once, past all budgets.
    type: bool
    default: false
  absent_ok:
    description: Whether there may be no node of this name; nothing is done then.
    type: bool
    default: false
  before:
    description: Nodes that were drained for the same end; when this one cannot be, they take pods again, too.
    type: list
    elements: str
    default: []
author: kubewright
"""

EXAMPLES = r"""
- name: Pods leave the node
  kubewright_drain:
    server: "{{ cluster.api_access.server }}"
    ca: "{{ cluster.api_access.ca }}"
    cert: "{{ cluster.api_access.cert }}"
    key: "{{ cluster.api_access.key }}"
    node: node02
    timeout: 120
"""

RETURN = r"""
pods:
  description: Pods that have left, or would in check mode, as namespace/name.
  type: list
  elements: str
  returned: success
found:
  description: Whether there is a node of this name.
  type: bool
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api, drain


def _drained(module: AnsibleModule, one: drain.Drain, node: dict) -> None:
    p = module.params
    rules = drain.Rules(p["emptydir_data"], p["unmanaged"], p["force"])
    if module.check_mode:
        going = sorted(map(drain.title, drain.leaving(one.pods(), rules)))
    else:
        going = sorted(one.drain(node, p["timeout"], rules, p["before"]))
    cordons = not node["spec"].get("unschedulable")
    lines = [f"cordon {p['node']}"] * cordons + [f"evict {name}" for name in going]
    changed = bool(going or cordons)
    module.exit_json(changed=changed, found=True, pods=going, diff={"prepared": "".join(f"{x}\n" for x in lines)})


def _uncordoned(module: AnsibleModule, one: drain.Drain, node: dict) -> None:
    ours = drain.MARK in (node["metadata"].get("annotations") or {})
    if ours and not module.check_mode:
        one.uncordon(node)
    prepared = f"uncordon {module.params['node']}\n" if ours else ""
    module.exit_json(changed=ours, found=True, pods=[], diff={"prepared": prepared})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "node": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "uncordoned"], "default": "drained"},
            "timeout": {"type": "float", "default": 300},
            "emptydir_data": {"type": "bool", "default": False},
            "unmanaged": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "absent_ok": {"type": "bool", "default": False},
            "before": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    access = (p["server"], p["ca"], p["cert"], p["key"])
    one = drain.Drain(lambda: api.Client(*access), p["node"])
    try:
        node = one.node()
        if node is None:
            if p["absent_ok"]:
                module.exit_json(changed=False, found=False, pods=[])
            module.fail_json(msg=f"there is no node {p['node']} in the cluster; see kubectl get nodes")
        (_drained if p["state"] == "drained" else _uncordoned)(module, one, node)
    except (drain.DrainError, api.ApiError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
