#!/usr/bin/python
"""Tokens and Secrets through the API server; logic in src/kubewright/machine/tokens.py."""

DOCUMENTATION = r"""
module: kubewright_tokens
short_description: What pods have been given by the cluster, and Secrets written anew
description:
  - Runs on a master. Contents of Secrets do not leave it.
  - C(published) waits until the CA in O(ca) is published to pods. C(pods) lists running pods with a token that started
    before a time. C(sign) has tokens in Secrets signed by the key with the id O(key_id). C(rewrite) writes every Secret
    back, so that it is encrypted with the first key of the API server.
options:
  server:
    description: URL of the API server.
    type: str
    required: true
  ca:
    description: Path of the CA certificates.
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
  step:
    description: What to do.
    type: str
    choices: [published, pods, sign, rewrite]
    required: true
  before:
    description: A time in UTC, as the API writes it.
    type: str
    default: ""
  key_id:
    description: The id (C(kid)) of the public key.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the controller manager.
    type: int
    default: 120
author: kubewright
"""

EXAMPLES = r"""
- name: Encrypt every Secret with the first key
  kubewright_tokens:
    server: https://127.0.0.1:6443
    ca: /opt/kubernetes/ssl/ca.pem
    cert: /opt/kubernetes/ssl/admin.pem
    key: /opt/kubernetes/ssl/admin-key.pem
    step: rewrite
"""

RETURN = r"""
pods:
  description: NAMESPACE/NAME of the pods.
  type: list
  elements: str
  returned: for C(pods)
count:
  description: How many Secrets were written.
  type: int
  returned: for C(sign) and C(rewrite)
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api, files, tokens


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "step": {"type": "str", "choices": ["published", "pods", "sign", "rewrite"], "required": True},
            "before": {"type": "str", "default": ""},
            "key_id": {"type": "str", "default": "", "no_log": False},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    p = module.params
    if module.check_mode:
        module.exit_json(changed=p["step"] in ("sign", "rewrite"))
    try:
        client = api.Client(p["server"], p["ca"], p["cert"], p["key"])
        if p["step"] == "published":
            tokens.wait_for_root(client, files.read(p["ca"]), p["timeout"])
            module.exit_json(changed=False)
        if p["step"] == "pods":
            module.exit_json(changed=False, pods=tokens.old_pods(client, p["before"]))
        if p["step"] == "sign":
            count = tokens.sign_anew(client, p["key_id"], p["timeout"])
        else:
            count = tokens.rewrite_secrets(client)
        module.exit_json(changed=count > 0, count=count)
    except (api.ApiError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
