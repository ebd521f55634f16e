#!/usr/bin/python
"""Operations on etcd from a machine; logic in src/kubewright/machine/etcd_*.py and the action plugins that use it."""

DOCUMENTATION = r"""
module: kubewright_etcd
short_description: Looks after etcd from a machine that has its client certificate
description:
  - A door without decisions, which the tasks of the role etcd and the action plugins C(kubewright_backup) and
    C(kubewright_restore) go through.
options:
  step:
    description: What to do. Each step is a function of the machine's side, O(arguments) are its parameters.
    type: str
    required: true
    choices:
      - survey
      - remains
      - standing
      - snapshot
      - keep
      - discard
      - maintain
      - rehearse
      - salvage
      - place
      - forget
      - room
      - empty
      - stop
      - restart
      - restored
  arguments:
    description: Parameters of the step.
    type: dict
    default: {}
author: kubewright
"""

EXAMPLES = r"""
- name: Ask all members
  kubewright_etcd:
    step: survey
    arguments:
      members: [{name: master01, url: "https://192.0.2.10:2379"}]
      tls: {ca: /opt/etcd/ssl/ca.pem, cert: /opt/etcd/ssl/client.pem, key: /opt/etcd/ssl/client-key.pem}
"""

RETURN = r"""
result:
  description: What the step returns.
  type: raw
  returned: success
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import (
    api,
    etcd,
    etcd_members,
    etcd_restore,
    etcd_scratch,
    etcd_snapshot,
    etcd_upkeep,
    restored,
)

# Step -> function, and whether it leaves the machine as it was.
STEPS: dict = {
    "survey": (etcd_snapshot.look, True),
    "remains": (etcd_restore.remains, True),
    "standing": (etcd_restore.standing, True),
    "snapshot": (etcd_snapshot.lend, False),
    "keep": (etcd_snapshot.keep, False),
    "discard": (etcd_snapshot.clear_partial, False),
    "rehearse": (etcd_scratch.rehearse, False),
    "salvage": (etcd_restore.salvage, False),
    "place": (etcd_restore.place, False),
    "forget": (etcd_upkeep.forget, False),
    "room": (etcd_snapshot.need_room, True),
    "empty": (etcd_restore.empty, False),
    "stop": (etcd_restore.stop, False),
    "restart": (etcd_restore.restart, False),
    "restored": (restored.wait, True),
}
FAILURES = (
    etcd_members.MembershipError,
    etcd.EtcdError,
    etcd_snapshot.SnapshotError,
    restored.RestoredError,
    api.ApiError,
    OSError,
    subprocess.SubprocessError,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "required": True, "choices": [*STEPS, "maintain"]},
            "arguments": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    step, arguments = module.params["step"], module.params["arguments"]
    try:
        if step == "maintain":
            result = etcd_upkeep.maintain(**arguments, check=module.check_mode)
            module.exit_json(changed=bool(result["done"] or result["told"]), result=result)
        function, harmless = STEPS[step]
        if module.check_mode and not harmless:
            module.exit_json(changed=True, result=None)
        module.exit_json(changed=not harmless, result=function(**arguments))
    except FAILURES as error:
        module.fail_json(msg=str(error))
    except (KeyError, ValueError) as error:
        # A proxy in front of etcd, or a version that nobody has seen yet.
        module.fail_json(msg=f"{step}: an answer is not what etcd's is known to be: {error!r}")


if __name__ == "__main__":
    main()
