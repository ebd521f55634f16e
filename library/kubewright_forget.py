#!/usr/bin/python
"""The cluster forgets a machine that has left; logic in src/kubewright/machine/forget.py."""

DOCUMENTATION = r"""
module: kubewright_forget
short_description: Deletes the Node and flannel's lease of a machine that has left the cluster
description:
  - Runs on a master.
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
  etcd:
    description: Client URLs of etcd members as C(urls), and C(ca), C(cert), C(key).
    type: dict
    required: true
  prefix:
    description: Beginning of flannel's keys.
    type: str
    required: true
  node_name:
    description: Name of the node.
    type: str
    required: true
  address:
    description: Address of the machine; empty where it is not known, that of the node is taken then.
    type: str
    default: ""
  kept:
    description: Addresses of machines that stay; a lease of one of them is left alone.
    type: list
    elements: str
    default: []
author: kubewright
"""

EXAMPLES = r"""
- name: Forget a node
  kubewright_forget:
    server: https://127.0.0.1:6443
    ca: /opt/kubernetes/ssl/ca.pem
    cert: /opt/kubernetes/ssl/admin.pem
    key: /opt/kubernetes/ssl/admin-key.pem
    etcd:
      urls: [https://192.0.2.10:2379]
      ca: /opt/kubernetes/ssl/etcd-ca.pem
      cert: /opt/kubernetes/ssl/apiserver-etcd-client.pem
      key: /opt/kubernetes/ssl/apiserver-etcd-client-key.pem
    prefix: /coreos.com/network
    node_name: node02
    address: 192.0.2.12
"""

RETURN = r"""
found:
  description: Whether there was anything.
  type: bool
  returned: success
forgotten:
  description: What was deleted.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api, etcd, forget


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "etcd": {"type": "dict", "required": True},
            "prefix": {"type": "str", "required": True},
            "node_name": {"type": "str", "required": True},
            "address": {"type": "str", "default": ""},
            "kept": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    tls = {kind: p["etcd"][kind] for kind in ("ca", "cert", "key")}
    machine = {"node_name": p["node_name"], "address": p["address"]}
    try:
        client = api.Client(p["server"], p["ca"], p["cert"], p["key"])
        endpoints = [{**tls, "url": url} for url in p["etcd"]["urls"]]
        done = forget.forget(client, endpoints, machine, p["prefix"], p["kept"], module.check_mode)
    except (api.ApiError, etcd.EtcdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(done),
        found=bool(done),
        forgotten=done,
        diff={"prepared": "".join(f"delete {line}\n" for line in done)},
    )


if __name__ == "__main__":
    main()
