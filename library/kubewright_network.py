#!/usr/bin/python
"""Another pod network on a living cluster, the machine's side; logic in src/kubewright/machine/podnet.py."""

DOCUMENTATION = r"""
module: kubewright_network
short_description: Takes flanneld on a living cluster over to another network configuration
description:
  - C(look) tells what a node runs with. C(plan) is done once on a machine that reaches etcd, finds the way from what
    etcd holds to O(wanted), refuses what would cut pods off, and gives the fact C(network_change). C(present) refuses
    to begin a step when a node of the plan is not in the play any more. C(begin) notes in etcd where the change comes
    from, so that it can be taken back, and C(end) removes that note. C(follow) has flanneld run with O(config), one
    node after the other, and waits until the pods of the other nodes answer.
  - Runs together with the action plugin of the same name.
options:
  step:
    description: What is to be done. C(read) is the action plugin's own.
    type: str
    choices: [look, plan, present, read, begin, follow, end]
    required: true
  urls:
    description: URLs of etcd members; the first one that answers is asked.
    type: list
    elements: str
    default: []
  ca:
    description: Path of the CA certificate.
    type: path
  cert:
    description: Path of the client certificate.
    type: path
  key:
    description: Path of the client key.
    type: path
  prefix:
    description: Beginning of flannel's keys.
    type: str
  wanted:
    description: The configuration that the inventory asks for.
    type: dict
    default: {}
  note:
    description: Where the change comes from, and where it leads. Set by the action plugin.
    type: dict
    default: {}
  live_restore:
    description: Whether containers go on while docker restarts.
    type: bool
    default: true
  config:
    description: The configuration that flanneld is to run with.
    type: dict
    default: {}
  restart:
    description: Whether running daemons do not take it over by themselves. Set by the action plugin.
    type: bool
    default: false
  others:
    description: Addresses of the other nodes. Set by the action plugin.
    type: list
    elements: str
    default: []
  pods:
    description: Test pods by machine; those on the other nodes have to answer.
    type: dict
    default: {}
  docker:
    description: Whether docker is restarted along with flanneld.
    type: bool
    default: false
  timeout:
    description: Seconds until a node must be done.
    type: float
    default: 60
author: kubewright
"""

EXAMPLES = r"""
- name: What every node runs with
  kubewright_network:
    step: look
  register: flannel_look
"""

RETURN = r"""
status:
  description: What flanneld says of itself.
  type: dict
  returned: step is look
ansible_facts:
  description: >-
    The fact C(network_change), with C(steps), C(lines), C(addresses), C(cut_off), C(down), C(back), C(returns),
    C(note), C(noted) and C(pings).
  type: dict
  returned: step is plan
restarted:
  description: Units that were restarted.
  type: list
  elements: str
  returned: step is follow
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import etcd, podnet

_STEPS = ["look", "plan", "present", "read", "begin", "follow", "end"]


def _in_etcd(p: dict[str, Any], check: bool) -> dict[str, Any]:
    """What one of the steps `read`, `begin`, `end` has to say; they are done with etcd alone."""
    members = [{"url": url, **{kind: p[kind] for kind in ("ca", "cert", "key")}} for url in p["urls"]]
    change = f"{p['prefix']}/change"
    noted = etcd.first_answer(members, lambda member: etcd.value(member, change))
    if p["step"] == "read":
        found = etcd.first_answer(members, lambda member: etcd.value(member, f"{p['prefix']}/config"))
        return {"changed": False, "value": found, "noted": noted}
    if p["step"] == "begin":
        changed = noted is None or not etcd.holds(noted, p["note"])
        if changed and not check:
            etcd.first_answer(members, lambda member: etcd.put(member, change, etcd.text(p["note"])))
        return {"changed": changed}
    if noted is not None and not check:
        etcd.first_answer(members, lambda member: etcd.delete(member, change))
    return {"changed": noted is not None}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": _STEPS, "required": True},
            "urls": {"type": "list", "elements": "str", "default": []},
            "ca": {"type": "path"},
            "cert": {"type": "path"},
            "key": {"type": "path", "no_log": False},
            "prefix": {"type": "str"},
            "wanted": {"type": "dict", "default": {}},
            "note": {"type": "dict", "default": {}},
            "live_restore": {"type": "bool", "default": True},
            "config": {"type": "dict", "default": {}},
            "restart": {"type": "bool", "default": False},
            "others": {"type": "list", "elements": "str", "default": []},
            "pods": {"type": "dict", "default": {}},
            "docker": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        if p["step"] == "look":
            module.exit_json(changed=False, **podnet.look())
        if p["step"] in ("read", "begin", "end"):
            module.exit_json(**_in_etcd(p, module.check_mode))
        pods = list(p["pods"].values())
        done = podnet.follow(p["config"], p["restart"], p["others"], pods, p["docker"], p["timeout"])
    except (etcd.EtcdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(done["restarted"]), **done)


if __name__ == "__main__":
    main()
