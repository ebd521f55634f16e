#!/usr/bin/python
"""The machine's side of the component action; logic in src/kubewright/machine/component.py and turnover.py."""

DOCUMENTATION = r"""
module: kubewright_component
short_description: Brings a component of the cluster to its declaration
description:
  - Compares directories, binaries, files, the systemd unit and the running service with the declaration, ships only
    what differs, applies it atomically, restarts the service only when something it depends on changed, and waits
    until the service itself answers.
  - Supports check mode and diff, also on machines where nothing is installed yet.
  - Runs together with the action plugin of the same name, which renders templates and finds artifacts.
options:
  components:
    description: The components in the order in which their services are started. See docs/components.md.
    type: list
    elements: dict
    required: true
  rolling:
    description: Restart running services on one machine at a time, the leader last.
    type: bool
    default: false
  among:
    description: The machines that do this task, where not all of the play do; nobody waits for the others.
    type: list
    elements: str
author: kubewright
"""

EXAMPLES = r"""
- name: Etcd member
  kubewright_component:
    rolling: true
    components:
      - name: etcd
        binaries: {etcd: /opt/etcd/bin/etcd}
        files: [opt/etcd/cfg/etcd]
        unit: etcd.service
        health:
          checks: [{kind: etcd, url: "https://127.0.0.1:2379"}]
"""

RETURN = r"""
restarted:
  description: Units that were restarted.
  type: list
  elements: str
  returned: always
reloaded:
  description: Units that were reloaded.
  type: list
  elements: str
  returned: always
stopped:
  description: Of the units to be restarted those that do not run now, and ran last with all that is declared.
  type: list
  elements: str
  returned: always
differences:
  description: What differed, with its reason.
  type: list
  elements: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import component, turnover


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["inspect", "apply"], "required": True},
            "components": {"type": "list", "elements": "dict", "required": True},
            "contents": {"type": "dict", "default": {}, "no_log": True},
            "staged": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    arguments = module.params
    try:
        if arguments["step"] == "inspect":
            module.exit_json(found=component.inspect_all(arguments["components"]))
        result = turnover.apply_all(arguments["components"], arguments["contents"], arguments["staged"])
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error))
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
