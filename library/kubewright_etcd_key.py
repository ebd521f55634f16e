#!/usr/bin/python
"""A key in etcd that is written once; logic in src/kubewright/machine/etcd.py and the action plugin of this name."""

DOCUMENTATION = r"""
module: kubewright_etcd_key
short_description: Writes flannel's configuration to etcd once, and refuses changes that would cut pods off
description:
  - Creates the key when it does not exist, and replaces what is there while no key below O(users) exists.
    Once it is in use, it is replaced by what a running flanneld takes over, such as a larger network.
    Fails otherwise, naming both values and the reasons.
  - In check mode on a machine where etcd is not set up yet nothing is asked.
options:
  urls:
    description: URLs of etcd members; the first one that answers is asked.
    type: list
    elements: str
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
  member_config:
    description: A file that exists where etcd is set up.
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
  users:
    description: Beginning of the keys that exist once somebody has acted on the value.
    type: str
    required: true
  replaces:
    description: A value that is replaced although keys below O(users) exist. Set by the action plugin.
    type: str
    default: ""
author: kubewright
"""

EXAMPLES = r"""
- name: Network configuration
  kubewright_etcd_key:
    urls: [https://192.0.2.10:2379, https://192.0.2.11:2379]
    ca: /opt/etcd/ssl/ca.pem
    cert: /opt/etcd/ssl/client.pem
    key: /opt/etcd/ssl/client-key.pem
    member_config: /opt/etcd/cfg/etcd
    name: /coreos.com/network/config
    value: {Network: 10.244.0.0/16}
    users: /coreos.com/network/subnets/
"""

RETURN = r"""
value:
  description: The value found or written.
  type: str
  returned: success
msg:
  description: What happens on the nodes, where they have subnets already.
  type: str
  returned: when a value that is in use was replaced
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import etcd


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "member_config": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "value": {"type": "dict", "required": True},
            "users": {"type": "str", "required": True},
            "replaces": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    p = module.params
    name, wanted = p["name"], p["value"]
    value = etcd.text(wanted)
    tls = {kind: p[kind] for kind in ("ca", "cert", "key")}
    before = None
    # Where an earlier stage of a check-mode run would first set etcd up, there is nobody to ask.
    if not module.check_mode or all(map(os.path.exists, [p["member_config"], *tls.values()])):
        try:
            before = etcd.first_answer(
                [{**tls, "url": url} for url in p["urls"]],
                lambda member: etcd.write_once(member, name, wanted, p["users"], p["replaces"], module.check_mode),
            )
        except etcd.InUseError as found:
            module.fail_json(
                in_use=str(found),
                wanted=value,
                msg=f"{name} in etcd is {found}, the inventory wants {value}; nodes have subnets of that network, "
                "and changing it cuts their pods off, so it is not done silently: set the variables back to what etcd "
                "holds. For another network all the same, stop kubelet and flanneld on all nodes, run "
                f"etcdctl del --prefix {p['users']} on an etcd member, then this again, and reboot the nodes",
            )
        except (etcd.EtcdError, OSError) as error:
            module.fail_json(msg=str(error))
    if before is not None and etcd.holds(before, wanted):
        module.exit_json(changed=False, value=before)
    headers = {"before_header": name, "after_header": name}
    if before is not None:
        in_use = before == p["replaces"]
        headers["before_header"] += f" ({'nodes have subnets of it' if in_use else 'no node has a subnet of it'})"
    module.exit_json(
        changed=True, value=value, diff={**headers, "before": f"{before}\n" if before else "", "after": f"{value}\n"}
    )


if __name__ == "__main__":
    main()
