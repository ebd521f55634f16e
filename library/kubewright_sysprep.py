#!/usr/bin/python
"""Basic settings of a machine; logic in src/kubewright/machine/sysprep.py."""

DOCUMENTATION = r"""
module: kubewright_sysprep
short_description: Brings the basic settings of a machine about in one call
description:
  - Host name, /etc/hosts, firewall, SELinux, swap, kernel modules, sysctls, limits, time synchronisation.
  - Supports check mode and diff.
options:
  settings:
    description: Setting name to its parameters; a setting that is absent or empty is left alone.
    type: dict
    required: true
  programs:
    description: Programs that must be on the machine.
    type: list
    elements: str
    default: []
author: kubewright
"""

EXAMPLES = r"""
- name: Basic settings
  kubewright_sysprep:
    settings:
      swap: {state: 'off'}
"""

RETURN = r"""
settings:
  description: What differed.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import sysprep


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "programs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    missing = sysprep.lacking(module.params["settings"], module.params["programs"])
    if missing:
        module.fail_json(msg=missing)
    try:
        found = sysprep.reconcile(module.params["settings"], module.check_mode)
    except OSError as error:
        module.fail_json(msg=str(error))
    diff = [
        {
            "before_header": d["what"],
            "after_header": d["what"],
            "before": d["before"] + "\n",
            "after": d["after"] + "\n",
        }
        for d in found
    ]
    module.exit_json(changed=bool(found), settings=[d["what"] for d in found], diff=diff)


if __name__ == "__main__":
    main()
