"""What only the controller has, and a cluster cannot do without: CAs, and the key that its Secrets are encrypted with.

A controller without them (a fresh clone, somebody else's machine) would make new ones, and hand those to machines that
live on the old: every member and kubelet refused, every Secret unreadable for good. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

# CA certificate on the controller -> where machines have it; in a rotation beside the other one of the two.
CAS: Mapping[str, str] = {
    "kubernetes-ca.pem": "/opt/kubernetes/ssl/ca.pem",
    "etcd-ca.pem": "/opt/etcd/ssl/ca.pem",
    # On masters; a machine without these files is asked for nothing.
    "kubelet-signer-ca.pem": "/opt/kubernetes/ssl/kubelet-signer-ca.pem",
    "front-proxy-ca.pem": "/opt/kubernetes/ssl/front-proxy-ca.pem",
}
ENCRYPTION_KEY = "encryption_key"
# A new one does as well, as soon as the API server has heard of it, which is the stage master.
# Of the virtual address. Machines with two of them would both hold it.
VRRP = "vrrp_password"
TOKEN = ("bootstrap_token_id", "bootstrap_token_secret")


def problems(
    facts: Mapping[str, Mapping[str, Any]],
    cas: Mapping[str, Iterable[str]],
    pki: str,
    secrets: Collection[str],
    directory: str,
    run: Collection[str],
) -> list[str]:
    """What the machines have been given and this controller does not have.

    `facts`: machine -> {cas: path -> SHA-256 of each certificate, components}. `cas`: the same of the controller's CAs
    with their bundles, of those that are there, in the directory `pki`; one in common is enough, because a rotation has
    two. `secrets`: names of the files in `directory`. `run`: the stages of this run.
    """
    found = []
    for name, path in CAS.items():
        own = set(cas.get(name, ()))
        others = [who for who, known in facts.items() if path in known["cas"] and not own & set(known["cas"][path])]
        if others:
            state = "has another" if name in cas else "has no"
            found.append(
                f"{', '.join(others)}: trust a CA ({path}) that this controller does not have: {pki} {state} {name}; "
                "copy pki/ and secrets/ from the controller that made the cluster, or from a backup. With new ones "
                "every machine would be cut off"
            )
    masters = [machine for machine, known in facts.items() if "kube-apiserver" in known["components"]]
    if masters and ENCRYPTION_KEY not in secrets:
        found.append(
            f"{', '.join(masters)}: run an API server, and {directory} lacks {ENCRYPTION_KEY}; copy secrets/ from the "
            "controller that made the cluster, or from a backup. With a new key every Secret is lost"
        )
    balancers = [machine for machine, known in facts.items() if "kube-lb-vip" in known["components"]]
    if balancers and VRRP not in secrets:
        found.append(
            f"{', '.join(balancers)}: share a virtual address by a password, and {directory} lacks {VRRP}; copy "
            "secrets/ from the controller that made the cluster, or from a backup"
        )
    if "bootstrap" in run and "master" not in run and not set(TOKEN) <= set(secrets):
        found.append(f"--tags bootstrap: {directory} has no bootstrap token; run --tags master first")
    return found
