#!/usr/bin/python
"""Takes components away from a machine; logic in src/kubewright/machine/removal.py."""

DOCUMENTATION = r"""
module: kubewright_reset
short_description: Takes components of the cluster away from a machine
description:
  - Stops and removes units, ends containers, and removes what components were given and what their services made, from
    mounts to packet filter rules; puts back what was there before. What others have put there stays.
  - Needs no working cluster. The same call again goes on where one was interrupted.
  - In check mode with diff it lists everything that would be removed.
options:
  components:
    description: Names of components as in docs/components.md, with C(pki) and C(sysprep), or C(all).
    type: list
    elements: str
    required: true
  data:
    description: Remove etcd's data, and Docker's images, containers and volumes, too.
    type: bool
    default: false
  etcd_data:
    description: Data directory of the etcd member, where its own configuration does not tell any more.
    type: path
    default: /var/lib/etcd
  docker_data:
    description: Data directory of Docker, where its own configuration does not tell any more.
    type: path
    default: /var/lib/docker
  grace:
    description: Seconds that containers have to end before they are killed.
    type: float
    default: 10
author: kubewright
"""

EXAMPLES = r"""
- name: Everything
  kubewright_reset:
    components: [all]
    data: true
"""

RETURN = r"""
components:
  description: Those of the components of which there was something here.
  type: list
  elements: str
  returned: always
steps:
  description: What was removed or put back.
  type: list
  elements: str
  returned: always
left:
  description: What stays and why.
  type: list
  elements: str
  returned: always
member:
  description: Whether data of an etcd member is here (still).
  type: bool
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import places, removal


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "data": {"type": "bool", "default": False},
            "etcd_data": {"type": "path", "default": "/var/lib/etcd"},
            "docker_data": {"type": "path", "default": "/var/lib/docker"},
            "grace": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    asked = module.params
    options = places.Options(asked["data"], asked["etcd_data"], asked["docker_data"], asked["grace"])
    result = removal.run(asked["components"], options, check=module.check_mode)
    diff = {
        "prepared": "".join(f"{line}\n" for line in [*result["steps"], *(f"left: {one}" for one in result["left"])])
    }
    failures = result.pop("failures")
    if failures:
        count = f"{len(failures)} thing{'s' if failures[1:] else ''}"
        listed = "\n".join(f"  - {failure}" for failure in failures)
        module.fail_json(
            changed=True,
            msg=f"{count} could not be removed from this machine; the same command again goes on:\n{listed}",
            **result,
        )
    module.exit_json(changed=bool(result["steps"]), diff=diff, **result)


if __name__ == "__main__":
    main()
