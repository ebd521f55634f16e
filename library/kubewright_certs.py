#!/usr/bin/python
"""Certificates of a machine; logic in src/kubewright/machine/certs.py."""

DOCUMENTATION = r"""
module: kubewright_certs
short_description: Collects the certificates of a machine, public parts only
description:
  - Certificates of files and kubeconfigs, what services were started with, and what they show in a TLS handshake.
options:
  paths:
    description: Files and directories to look through.
    type: list
    elements: path
    required: true
  served:
    description: Services to ask, as unit, address, port, file, server_name, cert and key (paths).
    type: list
    elements: dict
    default: []
author: kubewright
"""

EXAMPLES = r"""
- name: What lies there
  kubewright_certs:
    paths: [/opt/kubernetes/ssl]
    served: [{unit: kube-apiserver, address: 127.0.0.1, port: 6443, file: /opt/kubernetes/ssl/apiserver.pem}]
"""

RETURN = r"""
seen:
  description: Files with their certificates, components with what they were started with, what services showed.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import certs


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "served": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, seen=certs.collect(module.params["paths"], module.params["served"]))


if __name__ == "__main__":
    main()
