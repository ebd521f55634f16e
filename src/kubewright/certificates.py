"""Every certificate of a cluster: who needs it, under which names, and where it goes.

The CAs' keys stay on the controller. The one exception has a CA of its own: the controller manager signs the
certificates that kubelets ask for, so masters hold the key of `kubelet-signer`, which is trusted for nothing else but
client certificates and kubelets' serving certificates. Source of names, organisations and usages: "PKI certificates and
requirements" of the Kubernetes documentation, and etcd's security guide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubewright.topology import Cluster, Machine

_KUBE = "/opt/kubernetes/ssl"
_ETCD = "/opt/etcd/ssl"
_FLANNEL = "/opt/flannel/ssl"
_API = ("kube-apiserver",)


def _certificate(
    name: str,
    ca: str,
    cn: str,
    profile: str,
    expiry: str,
    role: str,
    consumers: tuple[str, ...] = (),
    *,
    hosts: list[str] | None = None,
    o: str = "",
) -> dict[str, Any]:
    """One entry of the specification; `consumers` are UNIT@MACHINE, systemd units without their suffix."""
    return {
        "name": name,
        "ca": ca,
        "cn": cn,
        "o": [o] if o else [],
        "hosts": hosts or [],
        "profile": profile,
        "expiry": expiry,
        "role": role,
        "consumers": list(consumers),
    }


def _api_names(cluster: Cluster) -> list[str]:
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{cluster.dns_domain}",
        "localhost",
        "127.0.0.1",
        cluster.api_service_address,
    ]
    for master in cluster.masters():
        names += [master.name, master.address]
    names += [name for name in (cluster.api_vip, cluster.api_endpoint.rpartition(":")[0]) if name]
    return list(dict.fromkeys([*names, *cluster.api_extra_sans]))


# Certificate of a client -> (CA, common name, role, units that present it).
_CLIENTS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "apiserver-kubelet-client": ("kubernetes", "kube-apiserver-kubelet-client", "apiserver-kubelet-client", _API),
    "apiserver-etcd-client": ("etcd", "kube-apiserver-etcd-client", "apiserver-etcd-client", _API),
    "front-proxy-client": ("front-proxy", "front-proxy-client", "front-proxy-client", _API),
    "kube-controller-manager": (
        "kubernetes",
        "system:kube-controller-manager",
        "controller-manager",
        ("kube-controller-manager",),
    ),
    "kube-scheduler": ("kubernetes", "system:kube-scheduler", "scheduler", ("kube-scheduler",)),
    "kube-proxy": ("kubernetes", "system:kube-proxy", "kube-proxy", ("kube-proxy",)),
    "etcd-client": ("etcd", "kube-etcd-healthcheck-client", "etcd-client", ()),
    "flanneld": ("etcd", "flanneld", "etcd-client", ("flanneld",)),
}
# Unit -> machines that run it.
_MACHINES: dict[str, Callable[[Cluster], tuple[Machine, ...]]] = {
    "etcd": Cluster.etcd_members,
    "kube-apiserver": Cluster.masters,
    "kube-controller-manager": Cluster.masters,
    "kube-scheduler": Cluster.masters,
    "kubelet": Cluster.nodes,
    "kube-proxy": Cluster.nodes,
    "flanneld": Cluster.nodes,
    "kube-lb-check": Cluster.proxies,
}
# CA -> (common name, units that trust it); their names are their roles.
_AUTHORITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "kubernetes": (
        "kubernetes-ca",
        ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kube-lb-check"),
    ),
    # The controller manager issues with it, and trusts nobody by it.
    "kubelet-signer": ("kubernetes-kubelet-signer", ("kube-apiserver", "kubelet")),
    "etcd": ("etcd-ca", ("etcd", "kube-apiserver", "flanneld")),
    "front-proxy": ("kubernetes-front-proxy-ca", ("kube-apiserver",)),
}


def _consumers(cluster: Cluster, units: tuple[str, ...]) -> tuple[str, ...]:
    """`UNIT@MACHINE` of all machines that run it: what one has shown says nothing of the others."""
    return tuple(f"{unit}@{machine.name}" for unit in units for machine in _MACHINES[unit](cluster))


def spec(cluster: Cluster) -> dict[str, Any]:
    """The specification that kubepki reconciles: CAs, key pairs, certificates."""
    life, password = f"{cluster.pki_expiry_hours}h", cluster.pki_ca_password
    certificates = [
        _certificate(
            "apiserver",
            "kubernetes",
            "kube-apiserver",
            "server",
            life,
            "apiserver",
            _consumers(cluster, _API),
            hosts=_api_names(cluster),
        ),
        _certificate("admin", "kubernetes", "kubernetes-admin", "client", life, "admin", o="system:masters"),
    ]
    certificates += [
        _certificate(name, ca, cn, "client", life, role, _consumers(cluster, units))
        for name, (ca, cn, role, units) in _CLIENTS.items()
    ]
    for member in cluster.etcd_members():
        names = [member.name, member.address]
        # etcd's gateway dials its own server with the server certificate, so that one is a client's too.
        for kind, hosts in (("server", [*names, "localhost", "127.0.0.1"]), ("peer", names)):
            certificates.append(
                _certificate(
                    f"etcd-{kind}-{member.name}",
                    "etcd",
                    member.name,
                    "peer",
                    life,
                    f"etcd-{kind}",
                    (f"etcd@{member.name}",),
                    hosts=hosts,
                )
            )
    return {
        "cas": {
            name: {
                "cn": cn,
                "expiry": f"{cluster.pki_ca_expiry_hours}h",
                "role": name,
                "consumers": list(_consumers(cluster, units)),
                # Controller managers read the key of the signer, and ask for no password.
                **({"password": password} if password and name != "kubelet-signer" else {}),
            }
            for name, (cn, units) in _AUTHORITIES.items()
        },
        "keypairs": {"service-account": {"algo": "rsa", "size": 2048}},
        "certificates": certificates,
        "cluster": {"service_cidrs": [str(cluster.service_cidr)], "dns_domain": cluster.dns_domain},
    }


def _copy(source: str, dest: str, *, secret: bool = False) -> dict[str, Any]:
    return {"source": source, "dest": dest, "mode": "0600" if secret else "0644", "secret": secret}


def _pair(name: str, stem: str) -> list[dict[str, Any]]:
    return [_copy(f"{name}.pem", f"{stem}.pem"), _copy(f"{name}-key.pem", f"{stem}-key.pem", secret=True)]


def _for_etcd(machine: Machine) -> list[dict[str, Any]]:
    return [
        _copy("etcd-ca-bundle.pem", f"{_ETCD}/ca.pem"),
        *_pair(f"etcd-server-{machine.name}", f"{_ETCD}/server"),
        *_pair(f"etcd-peer-{machine.name}", f"{_ETCD}/peer"),
        *_pair("etcd-client", f"{_ETCD}/client"),
    ]


def _for_master() -> list[dict[str, Any]]:
    names = (
        "apiserver",
        "apiserver-kubelet-client",
        "apiserver-etcd-client",
        "front-proxy-client",
        "kube-controller-manager",
        "kube-scheduler",
        "admin",
        "kubelet-signer-ca",
    )
    return [
        *(entry for name in names for entry in _pair(name, f"{_KUBE}/{name}")),
        _copy("etcd-ca-bundle.pem", f"{_KUBE}/etcd-ca.pem"),
        _copy("front-proxy-ca-bundle.pem", f"{_KUBE}/front-proxy-ca.pem"),
        _copy("service-account.key", f"{_KUBE}/service-account.key", secret=True),
        {
            **_copy("service-account.pub", f"{_KUBE}/service-account.pub"),
            "optional": ["service-account-next.pub", "service-account-previous.pub"],
        },
    ]


def _for_node() -> list[dict[str, Any]]:
    return [
        *_pair("kube-proxy", f"{_KUBE}/kube-proxy"),
        _copy("etcd-ca-bundle.pem", f"{_FLANNEL}/ca.pem"),
        *_pair("flanneld", f"{_FLANNEL}/flanneld"),
    ]


def distribution(cluster: Cluster, machine_name: str) -> list[dict[str, Any]]:
    """Files of the PKI directory that a machine gets: {source | sources, dest, mode, secret}; only what it needs.

    `optional`: further sources, of which only a rotation makes files. What machines trust are the bundles: while a CA
    is rotated these hold two.
    """
    machine = cluster.machine(machine_name)
    found: list[dict[str, Any]] = []
    if machine.is_etcd:
        found += _for_etcd(machine)
    if machine.is_lb and not machine.is_node:
        # Load balancers pass TLS through: they only check whom they pass it to.
        found.append(_copy("kubernetes-ca-bundle.pem", f"{_KUBE}/ca.pem"))
    if machine.is_master or machine.is_node:
        client_cas = ["kubernetes-ca-bundle.pem", "kubelet-signer-ca-bundle.pem"]
        found.append(_copy("kubernetes-ca-bundle.pem", f"{_KUBE}/ca.pem"))
        found.append({"sources": client_cas, "dest": f"{_KUBE}/client-ca.pem", "mode": "0644", "secret": False})
    if machine.is_master:
        found += _for_master()
    if machine.is_node:
        found += _for_node()
    return found
