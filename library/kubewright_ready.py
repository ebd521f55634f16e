#!/usr/bin/python
"""Waits for a node; logic in src/kubewright/machine/ready.py."""

DOCUMENTATION = r"""
module: kubewright_ready
short_description: Waits until a node and the pods on it are ready
description:
  - Runs on a machine that reaches the API server and holds an administrator's certificate. Changes nothing; in check
    mode it does not wait.
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
  version:
    description: Version that its kubelet must report; empty is any.
    type: str
    default: ""
  timeout:
    description: Seconds to wait.
    type: float
    required: true
  look:
    description: Only tell which pods are ready now.
    type: bool
    default: false
  pods:
    description: Pods to wait for, as C(ready) of a look; others are left out. Without it all are waited for.
    type: list
    elements: str
author: kubewright
"""

EXAMPLES = r"""
- name: Back
  kubewright_ready:
    server: https://127.0.0.1:6443
    ca: /opt/kubernetes/ssl/ca.pem
    cert: /opt/kubernetes/ssl/admin.pem
    key: /opt/kubernetes/ssl/admin-key.pem
    node: node01
    timeout: 120
"""

RETURN = r"""
ready:
  description: UIDs of the pods of the node that are ready.
  type: list
  elements: str
  returned: by a look
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api, ready


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "node": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "timeout": {"type": "float", "required": True},
            "look": {"type": "bool", "default": False},
            "pods": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    p = module.params
    if module.check_mode:
        module.exit_json(changed=False, ready=[])

    def connect() -> api.Client:
        return api.Client(p["server"], p["ca"], p["cert"], p["key"])

    try:
        if p["look"]:
            module.exit_json(changed=False, ready=ready.look(connect, p["node"]))
        missing = ready.wait(connect, p["node"], p["version"], p["timeout"], p["pods"])
    except (api.ApiError, OSError) as error:
        module.fail_json(msg=str(error))
    if missing:
        module.fail_json(msg=f"{p['node']} is not back after {p['timeout']:g} s: {'; '.join(missing)}")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
