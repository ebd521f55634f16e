"""Command-line flags of the components, from the computed cluster: one function per component, no text templates.

Where a flag depends on the Kubernetes version, the features of the versions table decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubewright.nodes import MASTER_TAINT

_SSL = "/opt/kubernetes/ssl"
_CFG = "/opt/kubernetes/cfg"
_LOGS = "/opt/kubernetes/logs"
Flags = dict[str, str]


def _apiserver(cluster: Mapping[str, Any], machine: Mapping[str, Any], options: Mapping[str, Any]) -> Flags:
    features = cluster["features"]
    flags: Flags = {
        "advertise-address": machine["address"],
        "bind-address": "0.0.0.0",  # noqa: S104 - the API serves every interface: machines, VIP and loopback
        "secure-port": str(cluster["api_port"]),
        "etcd-servers": ",".join(cluster["etcd_endpoints"]),
        "etcd-cafile": f"{_SSL}/etcd-ca.pem",
        "etcd-certfile": f"{_SSL}/apiserver-etcd-client.pem",
        "etcd-keyfile": f"{_SSL}/apiserver-etcd-client-key.pem",
        "tls-cert-file": f"{_SSL}/apiserver.pem",
        "tls-private-key-file": f"{_SSL}/apiserver-key.pem",
        "tls-min-version": "VersionTLS12",
        "client-ca-file": f"{_SSL}/client-ca.pem",
        "kubelet-client-certificate": f"{_SSL}/apiserver-kubelet-client.pem",
        "kubelet-client-key": f"{_SSL}/apiserver-kubelet-client-key.pem",
        "kubelet-certificate-authority": f"{_SSL}/client-ca.pem",
        "kubelet-preferred-address-types": "InternalIP,Hostname",
        "service-account-key-file": f"{_SSL}/service-account.pub",
        "service-cluster-ip-range": cluster["service_cidr"],
        "service-node-port-range": "30000-32767",
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        # The health endpoints answer without a certificate; RBAC gives an anonymous caller nothing else.
        "anonymous-auth": "true",
        "profiling": "false",
        "encryption-provider-config": f"{_CFG}/encryption.yml",
        "audit-policy-file": f"{_CFG}/audit-policy.yml",
        "audit-log-path": f"{_LOGS}/audit.log",
        "audit-log-maxage": "30",
        "audit-log-maxbackup": "3",
        "audit-log-maxsize": "100",
        "requestheader-client-ca-file": f"{_SSL}/front-proxy-ca.pem",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-username-headers": "X-Remote-User",
        "proxy-client-cert-file": f"{_SSL}/front-proxy-client.pem",
        "proxy-client-key-file": f"{_SSL}/front-proxy-client-key.pem",
        "enable-aggregator-routing": "true",
    }
    if cluster["master_count"] > 1:
        # Long connections move to other API servers by and by, or one that was restarted would stay idle.
        flags["goaway-chance"] = "0.001"
    if features["apiserver_insecure_port_flag"]:
        flags["insecure-port"] = "0"
    if features["service_account_issuer"]:
        flags["service-account-issuer"] = f"https://kubernetes.default.svc.{cluster['dns_domain']}"
        flags["service-account-signing-key-file"] = f"{_SSL}/service-account.key"
        flags["api-audiences"] = flags["service-account-issuer"]
    if options.get("bootstrap") == "csv":
        flags["token-auth-file"] = f"{_CFG}/token.csv"
    else:
        flags["enable-bootstrap-token-auth"] = "true"
    return flags


def _elected(component: str) -> Flags:
    """What the components of which one at a time works have in common."""
    kubeconfig = f"{_CFG}/{component}.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "true",
        "profiling": "false",
    }


def _controller_manager(cluster: Mapping[str, Any], machine: Mapping[str, Any], options: Mapping[str, Any]) -> Flags:
    del machine
    features = cluster["features"]
    flags: Flags = {
        **_elected("kube-controller-manager"),
        "cluster-name": cluster["name"],
        "cluster-signing-cert-file": f"{_SSL}/kubelet-signer-ca.pem",
        "cluster-signing-key-file": f"{_SSL}/kubelet-signer-ca-key.pem",
        "root-ca-file": f"{_SSL}/ca.pem",
        "service-account-private-key-file": f"{_SSL}/service-account.key",
        "use-service-account-credentials": "true",
        "controllers": "*,bootstrapsigner,tokencleaner",
    }
    signing = (
        "cluster-signing-duration" if features["cluster_signing_duration"] else "experimental-cluster-signing-duration"
    )
    flags[signing] = f"{options['kubelet_certificate_hours']}h"
    if features["insecure_health_ports"]:
        # `kubectl get cs` asks these ports on the loopback; nothing else is served there.
        flags |= {"address": "127.0.0.1", "port": "10252"}
    return flags


def _scheduler(cluster: Mapping[str, Any], machine: Mapping[str, Any], options: Mapping[str, Any]) -> Flags:
    del machine, options
    flags = _elected("kube-scheduler")
    if cluster["features"]["insecure_health_ports"]:
        flags |= {"address": "127.0.0.1", "port": "10251"}
    return flags


def _kubelet(cluster: Mapping[str, Any], machine: Mapping[str, Any], options: Mapping[str, Any]) -> Flags:
    flags: Flags = {
        "config": f"{_CFG}/kubelet-config.yml",
        "bootstrap-kubeconfig": f"{_CFG}/bootstrap.kubeconfig",
        "kubeconfig": f"{_CFG}/kubelet.kubeconfig",
        "cert-dir": f"{_SSL}/kubelet",
        "hostname-override": machine["node_name"],
        "node-ip": machine["address"],
        "pod-infra-container-image": options["pause_image"],
    }
    if machine["is_tainted"]:
        # From the first moment: a pod would be quicker than a taint that comes later.
        flags["register-with-taints"] = f"{MASTER_TAINT['key']}=:{MASTER_TAINT['effect']}"
    if cluster["network_mode"] == "cni":
        flags |= {"network-plugin": "cni", "cni-conf-dir": "/etc/cni/net.d", "cni-bin-dir": "/opt/cni/bin"}
    return flags


_COMPONENTS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Flags]] = {
    "kube-apiserver": _apiserver,
    "kube-controller-manager": _controller_manager,
    "kube-scheduler": _scheduler,
    "kubelet": _kubelet,
}


def flags(
    cluster: Mapping[str, Any],
    component: str,
    machine: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Flags:
    """Flags of a component on a machine, without their dashes; `extra` (the user's) wins over ours."""
    found = _COMPONENTS[component](cluster, machine, options or {})
    found.update({str(key).lstrip("-"): str(value) for key, value in (extra or {}).items()})
    return found


def environment(flags_: Mapping[str, str], name: str, others: Mapping[str, str] | None = None) -> str:
    """An environment file: all flags in one variable, one flag a line, and the `others`, as systemd reads it."""
    lines = " \\\n".join(f"--{key}={value}" for key, value in flags_.items())
    return f'{name}="{lines}"\n' + environment_file(others or {})


def environment_file(values: Mapping[str, str]) -> str:
    """An environment file of systemd's with these variables."""
    return "".join(f'{key}="{_quoted(str(value))}"\n' for key, value in values.items())


def _quoted(value: str) -> str:
    # systemd.exec(5): within double quotes a backslash goes before these.
    return re.sub(r'(["\\`$])', r"\\\1", value)


def pki_files(
    distribution: Sequence[Mapping[str, Any]],
    directory: str,
    pending: Sequence[str] = (),
    same_as: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The distribution of certificates as `files` of a component, with the controller's paths.

    `pending`: files of the directory that a check-mode run would have written anew; `same_as`: those of them that would
    be copies of others, which are there.
    """
    stand_ins = same_as or {}
    result = []
    for entry in distribution:
        sources = [stand_ins.get(source, source) for source in entry.get("sources") or [entry["source"]]]
        sources += [source for source in entry.get("optional", ()) if Path(directory, source).is_file()]
        result.append(
            {
                "path": entry["dest"],
                "mode": entry["mode"],
                "secret": entry["secret"],
                "sources": [f"{directory}/{source}" for source in sources],
                "pending": any(source in pending for source in sources),
                "restart": False,
            }
        )
    return result
