#!/usr/bin/python
"""Requests to the Kubernetes API from a machine; the door that action plugins use."""

DOCUMENTATION = r"""
module: kubewright_api
short_description: Sends a list of requests to the API server, from a machine that reaches it
description:
  - A door without decisions for the action plugins that decide on the controller.
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
  requests:
    description: Requests as method, path, body and content_type.
    type: list
    elements: dict
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: List nodes
  kubewright_api:
    server: https://127.0.0.1:6443
    ca: /opt/kubernetes/ssl/ca.pem
    cert: /opt/kubernetes/ssl/admin.pem
    key: /opt/kubernetes/ssl/admin-key.pem
    requests: [{method: GET, path: /api/v1/nodes}]
"""

RETURN = r"""
replies:
  description: Status and body of each request.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import api


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "requests": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    replies = []
    try:
        client = api.Client(p["server"], p["ca"], p["cert"], p["key"])
        for request in p["requests"]:
            status, body = client.request(
                request["method"], request["path"], request.get("body"), request.get("content_type", "application/json")
            )
            replies.append({"status": status, "body": body})
    except (api.ApiError, OSError) as error:
        module.fail_json(msg=str(error), answered=not isinstance(error, api.NoAnswerError))
    module.exit_json(changed=False, replies=replies)


if __name__ == "__main__":
    main()
