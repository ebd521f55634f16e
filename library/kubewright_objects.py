#!/usr/bin/python
"""Kubernetes objects by server-side apply; logic in src/kubewright/machine/api.py."""

DOCUMENTATION = r"""
module: kubewright_objects
short_description: Brings Kubernetes objects to their manifests
description:
  - Runs on a machine that reaches the API server and holds an administrator's certificate.
  - Check mode asks the server for a dry run; where no server answers yet, every object counts as missing.
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
  objects:
    description: Manifests as JSON. One text, so that it can be kept out of logs whole; they may hold Secrets.
    type: str
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Bootstrap rights
  kubewright_objects:
    server: https://127.0.0.1:6443
    ca: /opt/kubernetes/ssl/ca.pem
    cert: /opt/kubernetes/ssl/admin.pem
    key: /opt/kubernetes/ssl/admin-key.pem
    objects: "{{ [] | to_json }}"
"""

RETURN = r"""
objects:
  description: What was changed, as kind/name.
  type: list
  elements: str
  returned: always
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "objects": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    objects = json.loads(p["objects"])
    try:
        client = api.Client(p["server"], p["ca"], p["cert"], p["key"])
        changed = api.reconcile(client, objects, module.check_mode)
    except (api.ApiError, OSError) as error:
        if not module.check_mode or not isinstance(error, api.NoAnswerError):
            module.fail_json(msg=str(error))
        changed = [
            {"kind": o["kind"], "name": o["metadata"]["name"], "before": {}, "after": api.shown(o)} for o in objects
        ]
    diff = [
        {
            "before_header": f"{c['kind']}/{c['name']}",
            "after_header": f"{c['kind']}/{c['name']}",
            "before": json.dumps(c["before"], indent=1, sort_keys=True) + "\n",
            "after": json.dumps(c["after"], indent=1, sort_keys=True) + "\n",
        }
        for c in changed
    ]
    module.exit_json(changed=bool(changed), objects=[f"{c['kind']}/{c['name']}" for c in changed], diff=diff)


if __name__ == "__main__":
    main()
