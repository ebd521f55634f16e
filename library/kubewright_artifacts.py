#!/usr/bin/python
"""Documentation of the action plugin kubewright_artifacts."""

DOCUMENTATION = r"""
module: kubewright_artifacts
short_description: Obtains artifacts on the controller and hands them out as the fact C(artifacts)
description:
  - Fetches or builds what is not in the cache, verifies it, and returns paths and digests. Check mode obtains nothing.
options:
  names:
    description: Artifacts of artifacts.lock.yml.
    type: list
    elements: str
    required: true
  source:
    description: Where they come from.
    type: str
    choices: [upstream, mirror, local, debian]
    required: true
  lock_file:
    description: The lock file; empty is artifacts.lock.yml of the project.
    type: str
  mirror_url:
    description: Base URL of a mirror.
    type: str
  directory:
    description: >-
      Directory of the source local; a static C(busybox) in it is what images are made of, whatever the source.
    type: str
  kubernetes_version:
    description: Version of Kubernetes; empty is the locked one.
    type: str
author: kubewright
"""

EXAMPLES = r"""
- name: Binaries
  kubewright_artifacts:
    names: [etcd, etcdctl]
    source: upstream
"""

RETURN = r"""
ansible_facts:
  description: >-
    The fact C(artifacts): by name version, kind (binary or image), path, sha256 and size in bytes of the file on the
    controller, and of images reference and id (C(image)). In check mode what is missing has an empty path and digest,
    and the size 0.
  type: dict
  returned: success
missing:
  description: Names of what was not in the cache before.
  type: list
  elements: str
  returned: success
"""
