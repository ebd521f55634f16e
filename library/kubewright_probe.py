#!/usr/bin/python
"""Pings from a machine; logic in src/kubewright/machine/probe.py."""

DOCUMENTATION = r"""
module: kubewright_probe
short_description: Pings addresses and fetches from Services, from a machine
options:
  addresses:
    description: Addresses to ping.
    type: list
    elements: str
    required: true
  services:
    description: Addresses to fetch from by HTTP on port 80.
    type: list
    elements: str
    default: []
  peers:
    description: Addresses of the other machines.
    type: list
    elements: str
    default: []
author: kubewright
"""

EXAMPLES = r"""
- name: Ping
  kubewright_probe:
    addresses: [10.244.1.0]
"""

RETURN = r"""
results:
  description: One entry per address.
  type: list
  elements: dict
  returned: success
path:
  description: This machine's part of the way to every address.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import probe


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str", "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    asked = module.params
    module.exit_json(changed=False, **probe.run(asked["addresses"], asked["services"], asked["peers"]))


if __name__ == "__main__":
    main()
