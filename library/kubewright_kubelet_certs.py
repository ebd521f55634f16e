#!/usr/bin/python
"""The machine's side of the action of this name; logic in src/kubewright/machine/kubelet.py."""

DOCUMENTATION = r"""
module: kubewright_kubelet_certs
short_description: Has a kubelet ask for certificates from the CA that issues now
description:
  - The action plugin of the same name looks who issued what the kubelet has; where that is another CA, the kubelet is
    restarted without its certificates and introduces itself again. When it does not come back, it gets the former ones.
options:
  ca:
    description: File of the CA certificate on the controller.
    type: path
    required: true
  timeout:
    description: Seconds to wait for the kubelet.
    type: int
    default: 60
  conclude:
    description: Forget the former certificates, and fail where the present ones are from another CA.
    type: bool
    default: false
author: kubewright
"""

EXAMPLES = r"""
- name: Certificates from the CA that issues now
  kubewright_kubelet_certs:
    ca: "{{ inventory_dir }}/pki/kubelet-signer-ca.pem"
"""

RETURN = r"""
held:
  description: The certificates that the kubelet has, as PEM.
  type: dict
  returned: success
renewed:
  description: Whether the kubelet was restarted for new ones.
  type: bool
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kubewright.machine import kubelet


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "renew", "conclude"], "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if module.params["step"] == "conclude" and not module.check_mode:
        module.exit_json(changed=kubelet.conclude(), held=kubelet.held())
    if module.params["step"] == "renew" and not module.check_mode:
        reason = kubelet.renew(module.params["timeout"])
        if reason:
            module.fail_json(msg=f"the kubelet did not get new certificates: {reason}")
    module.exit_json(changed=module.params["step"] == "renew", held=kubelet.held())


if __name__ == "__main__":
    main()
