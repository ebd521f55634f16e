#!/usr/bin/python
"""Facts of a machine; logic in src/kubewright/machine/facts.py."""

DOCUMENTATION = r"""
module: kubewright_machine
short_description: Collects what a run needs to know of a machine
description:
  - One small call instead of a full fact gathering. The action plugin of the same name adds the clock's skew.
options:
  ports:
    description: TCP ports whose holder is reported.
    type: list
    elements: int
    default: []
  disks:
    description: Paths whose free space is reported.
    type: list
    elements: str
    default: []
  etcd_data:
    description: Data directory of the etcd member.
    type: path
    default: /var/lib/etcd
  cas:
    description: Files of CA certificates whose SHA-256 is reported.
    type: list
    elements: path
    default: []
  api_port:
    description: Port at which an API server of this machine would answer.
    type: int
    default: 0
  vip:
    description: Virtual address that this machine is to hold; the fact tells its interface, and who has it now.
    type: str
    default: ""
  lock:
    description:
      - The run that takes the cluster's lock, with C(id), C(who), C(pid), C(since), C(command), C(controller).
      - In a task it is true or false; the action plugin knows the run.
    type: dict
    default: {}
  facts:
    description: Collect facts; without them it is only about the lock.
    type: bool
    default: true
  break_lock:
    description: Name of a run whose lock is not respected.
    type: str
    default: ""
  look:
    description: Tell who holds the cluster's lock.
    type: bool
    default: false
author: kubewright
"""

EXAMPLES = r"""
- name: Ask every machine what it is
  kubewright_machine:
    ports: [2379, 6443]
    disks: [/var/lib]
"""

RETURN = r"""
facts:
  description: The facts.
  type: dict
  returned: success
lock:
  description: Who holds the cluster's lock, whether it was taken now, and from whom.
  type: dict
  returned: when asked for
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import facts, lock


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "default": []},
            "disks": {"type": "list", "elements": "str", "default": []},
            "etcd_data": {"type": "path", "default": "/var/lib/etcd"},
            "cas": {"type": "list", "elements": "path", "default": []},
            "api_port": {"type": "int", "default": 0},
            "vip": {"type": "str", "default": ""},
            "lock": {"type": "dict", "default": {}},
            "facts": {"type": "bool", "default": True},
            "break_lock": {"type": "str", "default": ""},
            "look": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    names = ("ports", "disks", "etcd_data", "cas", "api_port", "vip")
    try:
        found = {"facts": facts.collect(**{name: asked[name] for name in names})} if asked["facts"] else {}
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        module.fail_json(
            msg=f"this machine cannot be looked at: {where}{error.strerror or error}; "
            "who logs in there must be root, or set ansible_become: true"
        )
    try:
        if asked["lock"]:
            found["lock"] = lock.take(asked["lock"], asked["break_lock"])
        elif asked["look"]:
            found["lock"] = lock.look()
    except OSError as error:
        module.fail_json(
            msg=f"the lock of this run cannot be taken: {error.filename}: {error.strerror}; "
            "who logs in there must be root, or set ansible_become: true"
        )
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
