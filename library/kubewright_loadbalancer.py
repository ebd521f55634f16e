#!/usr/bin/python
"""Programs of a load balancer; logic in src/kubewright/machine/loadbalancer.py."""

DOCUMENTATION = r"""
module: kubewright_loadbalancer
short_description: Sees to it that nginx with its stream module, and keepalived, are there
description:
  - Installs the distribution's packages where a program is missing, and leaves machines alone that have it.
options:
  programs:
    description: What the machine needs, C(nginx) and C(keepalived).
    type: list
    elements: str
    required: true
  packages:
    description: Package manager (C(apt) or C(dnf)) to program to packages.
    type: dict
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Programs of a local proxy
  kubewright_loadbalancer:
    programs: [nginx]
    packages: {apt: {nginx: [nginx, libnginx-mod-stream]}}
"""

RETURN = r"""
nginx:
  description: Path of nginx.
  type: str
  returned: when it is there
stream_module:
  description: Path of nginx's stream module, empty when it is built in.
  type: str
  returned: when nginx is there
keepalived:
  description: Path of keepalived.
  type: str
  returned: when it is there
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import loadbalancer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "programs": {"type": "list", "elements": "str", "required": True},
            "packages": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params["programs"]
    found = loadbalancer.look()
    lacking = loadbalancer.missing(found, wanted)
    if not lacking:
        module.exit_json(changed=False, **found)
    try:
        manager, packages = loadbalancer.packages_for(lacking, module.params["packages"])
        diff = {"prepared": f"{manager}: install {' '.join(packages)}\n"}
        if module.check_mode:
            module.exit_json(changed=True, diff=diff, **found)
        loadbalancer.install(manager, packages, lacking)
    except loadbalancer.MissingError as error:
        module.fail_json(msg=str(error))
    found = loadbalancer.look()
    still = loadbalancer.missing(found, wanted)
    if still:
        module.fail_json(msg=f"{' '.join(packages)} installed, but {' and '.join(still)} still not there; see nginx -V")
    module.exit_json(changed=True, diff=diff, **found)


if __name__ == "__main__":
    main()
