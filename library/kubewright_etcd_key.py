#!/usr/bin/python
"""A key in etcd that is written once; logic in src/kubewright/machine/etcd.py."""

DOCUMENTATION = r"""
module: kubewright_etcd_key
short_description: Writes a JSON value to an etcd key once, and refuses to change it silently
description:
  - Creates the key when it does not exist. Fails, naming both values, when it holds something else.
options:
  url:
    description: URL of an etcd member.
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
  name:
    description: The etcd key.
    type: str
    required: true
  value:
    description: The value, stored as compact JSON.
    type: dict
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Network configuration
  kubewright_etcd_key:
    url: https://127.0.0.1:2379
    ca: /opt/etcd/ssl/ca.pem
    cert: /opt/etcd/ssl/client.pem
    key: /opt/etcd/ssl/client-key.pem
    name: /coreos.com/network/config
    value: {Network: 10.244.0.0/16}
"""

RETURN = r"""
value:
  description: The value found or written.
  type: str
  returned: success
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import etcd


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "name": {"type": "str", "required": True},
            "value": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    endpoint = {name: p[name] for name in ("url", "ca", "cert", "key")}
    value = json.dumps(p["value"], separators=(",", ":"))
    diff = {"before_header": p["name"], "after_header": p["name"], "before": "", "after": value + "\n"}
    try:
        found = etcd.get(endpoint, p["name"])
        if found is None and not module.check_mode:
            etcd.create(endpoint, p["name"], value)
            found_now = etcd.get(endpoint, p["name"])
            if found_now != value:
                module.fail_json(msg=f"{p['name']}: another writer was faster and wrote {found_now}; run again")
    except (etcd.EtcdError, OSError) as error:
        if module.check_mode:
            module.exit_json(changed=True, value=value, diff=diff)
        module.fail_json(msg=str(error))
    if found is None:
        module.exit_json(changed=True, value=value, diff=diff)
    try:
        same = json.loads(found) == p["value"]
    except ValueError:
        same = False
    if not same:
        module.fail_json(
            msg=f"{p['name']} in etcd is {found}, the inventory wants {value}; changing the pod network of a living "
            "cluster cuts its pods off, so it is not done silently: set the variables back to what etcd holds"
        )
    module.exit_json(changed=False, value=found)


if __name__ == "__main__":
    main()
