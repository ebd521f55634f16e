#!/usr/bin/python
"""Documentation of the action plugin kubewright_backup."""

DOCUMENTATION = r"""
module: kubewright_backup
short_description: Takes a backup of the cluster into one encrypted file on the controller
description:
  - A snapshot of a healthy member of etcd, verified on the machine, with the PKI directory and the inventory's secrets.
  - The passphrase comes from the variables of the role etcd, not from a parameter, which logs could show.
  - Everything that can be known to be wrong is said before anything is done; nothing half-written stays.
options:
  members:
    description: Members of etcd as name and url.
    type: list
    elements: dict
    required: true
  tls:
    description: Paths of ca, cert and key on the machine.
    type: dict
    required: true
  staging:
    description: Directory on the machine in which the snapshot is written.
    type: path
    required: true
  directory:
    description: Where backups are kept, on the controller.
    type: path
    required: true
  keep:
    description: How many backups stay.
    type: int
    required: true
  targets:
    description: Where to copy the file, each a directory or a command.
    type: list
    elements: dict
    default: []
  pki:
    description: The PKI directory, on the controller.
    type: path
    required: true
  secrets:
    description: The inventory's secrets, on the controller.
    type: path
    required: true
author: kubewright
"""

EXAMPLES = r"""
- name: Backup
  kubewright_backup:
    members: [{name: master01, url: "https://192.0.2.10:2379"}]
    tls: {ca: /opt/etcd/ssl/ca.pem, cert: /opt/etcd/ssl/client.pem, key: /opt/etcd/ssl/client-key.pem}
    staging: /var/lib/etcd-snapshots
    directory: /srv/backups
    keep: 7
    pki: /srv/inventory/pki
    secrets: /srv/inventory/secrets
  run_once: true
"""

RETURN = r"""
lines:
  description: What was done, for people.
  type: list
  elements: str
  returned: success
path:
  description: The backup.
  type: str
  returned: success
"""
