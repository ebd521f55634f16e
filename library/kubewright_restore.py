#!/usr/bin/python
"""Documentation of the action plugin kubewright_restore."""

DOCUMENTATION = r"""
module: kubewright_restore
short_description: The controller's part of a restore
description:
  - Opens backups, says what may be restored, hands snapshots to machines.
  - Reads the variables of the role etcd; the passphrase is no parameter, which logs could show.
options:
  step:
    description:
      - C(custody) gives a controller without pki and secrets those of the backup.
      - C(open) checks everything that can be known before, and says what the restore will do.
      - C(exchange) replaces pki and secrets of the controller by those of the backup, where that is asked for.
      - C(member) says what has to be done to give one member new data.
      - C(salvage) gets a snapshot out of the data of this machine. C(place) makes it the data of this machine's member.
      - C(rehearse) restores it into a member of its own, and removes that.
      - C(restart) restarts services that remember what was. C(check) waits until kubelets write to the API.
    type: str
    required: true
    choices: [custody, open, exchange, member, salvage, place, rehearse, restart, check]
  name:
    description: Name of the cluster, for C(custody), before it is computed.
    type: str
  machine:
    description: The machine whose member gets new data, for C(member).
    type: str
  source:
    description: What is restored, for C(custody), C(open) and C(exchange).
    type: str
  rehearsal:
    description: C(open) for a rehearsal, which touches no member.
    type: bool
    default: false
  members:
    description: Members of etcd as name and url, for C(open).
    type: list
    elements: dict
  directory:
    description: Where backups are kept, for C(custody), C(open) and C(exchange).
    type: path
  pki:
    description: The PKI directory, on the controller.
    type: path
  secrets:
    description: The inventory's secrets, on the controller.
    type: path
  data:
    description: Data directory of the member, for C(open), C(salvage) and C(place).
    type: path
  staging:
    description: Directory on the machine for snapshots, for C(salvage) and C(rehearse).
    type: path
  tls:
    description: Paths of ca, cert, key, server_cert and server_key on the machine.
    type: dict
  plan:
    description: What C(open) returned, for C(exchange), C(place) and C(rehearse).
    type: dict
  flannel_config:
    description: Key of flannel's configuration, for C(rehearse).
    type: str
  services:
    description: Services as unit, checks and timeout, for C(restart).
    type: list
    elements: dict
  access:
    description: How to reach the API, as server, ca, cert and key, for C(check).
    type: dict
  timeout:
    description: Seconds to wait, for C(check).
    type: int
author: kubewright
"""

EXAMPLES = r"""
- name: What can be restored
  kubewright_restore:
    step: open
    source: latest
    members: [{name: master01, url: "https://192.0.2.10:2379"}]
    directory: /srv/backups
    pki: /srv/inventory/pki
    secrets: /srv/inventory/secrets
    data: /var/lib/etcd
  run_once: true
"""

RETURN = r"""
lines:
  description: What was found or done, for people.
  type: list
  elements: str
  returned: success
doing:
  description: What has to be confirmed.
  type: str
  returned: by open
"""
