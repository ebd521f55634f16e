#!/usr/bin/python
"""Membership of a machine in etcd; logic in src/kubewright/machine/etcd_members.py."""

DOCUMENTATION = r"""
module: kubewright_etcd_member
short_description: Makes a machine a member of a living etcd cluster, or takes it out
description:
  - Asks the first member of O(urls) that answers. Runs wherever a client certificate of etcd is.
  - A new member is a C(learner) first, is started, and becomes a C(voter) when it is in sync.
  - Refuses what would leave the cluster without a quorum. The same task again goes on where it was.
options:
  urls:
    description: Client URLs of members.
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
  name:
    description: Name of the member.
    type: str
    required: true
  peer_url:
    description: Where the other members reach it; with C(absent) only for one that never started: it has no name.
    type: str
    default: ""
  state:
    description: What it is to be. A member that is a voter already is not made a learner.
    type: str
    choices: [learner, voter, absent]
    required: true
  timeout:
    description: Seconds until etcd must have made the change.
    type: float
    default: 60
author: kubewright
"""

EXAMPLES = r"""
- name: Join etcd
  kubewright_etcd_member:
    urls: [https://192.0.2.10:2379, https://192.0.2.11:2379]
    ca: /opt/etcd/ssl/ca.pem
    cert: /opt/etcd/ssl/client.pem
    key: /opt/etcd/ssl/client-key.pem
    name: node03
    peer_url: https://192.0.2.13:2380
    state: learner
"""

RETURN = r"""
found:
  description: With C(absent), whether it was a member.
  type: bool
  returned: success
initial_cluster:
  description: The members of now as ETCD_INITIAL_CLUSTER, with which this one can start.
  type: str
  returned: success
members:
  description: Names of the members, or addresses of those that have never started.
  type: list
  elements: str
  returned: success
outlook:
  description: How many members there are and how many may fail.
  type: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import etcd, etcd_members

_DONE = {"learner": "joins etcd as a learner", "voter": "gets a vote in etcd", "absent": "leaves etcd"}


def _bring(module: AnsibleModule) -> tuple:
    p, check = module.params, module.check_mode
    endpoints = [{"url": url, "ca": p["ca"], "cert": p["cert"], "key": p["key"]} for url in p["urls"]]
    if p["state"] == "learner":
        return etcd_members.join(endpoints, p["name"], p["peer_url"], p["timeout"], check)
    if p["state"] == "voter":
        return etcd_members.promote(endpoints, p["peer_url"], p["timeout"], check)
    address = etcd_members.host(p["peer_url"]) if p["peer_url"] else ""
    return etcd_members.remove(endpoints, p["name"], address, p["timeout"], check)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "name": {"type": "str", "required": True},
            "peer_url": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["learner", "voter", "absent"], "required": True},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    try:
        changed, members = _bring(module)
    except FileNotFoundError as error:
        if module.check_mode:
            # An earlier stage of the same run would put the certificates there.
            ahead = {"prepared": f"{p['name']} {_DONE[p['state']]}\n"}
            module.exit_json(changed=True, initial_cluster="", members=[], outlook="", diff=ahead)
        module.fail_json(msg=str(error))
    except (etcd_members.MembershipError, etcd.EtcdError, OSError) as error:
        module.fail_json(msg=str(error))
    outlook = etcd_members.outlook(members)
    module.exit_json(
        changed=changed,
        found=changed and p["state"] == "absent",
        initial_cluster=etcd_members.initial_cluster(members, p["name"], p["peer_url"]),
        members=[member.title for member in members],
        outlook=outlook,
        diff={"prepared": f"{p['name']} {_DONE[p['state']]}; {outlook}\n" if changed else ""},
    )


if __name__ == "__main__":
    main()
