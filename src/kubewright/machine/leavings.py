"""What each component's service leaves on a machine beside what it was given."""

from __future__ import annotations

from typing import NamedTuple

from . import placed, restore

# In the order in which they go: whatever would start or use the next one goes before it.
ORDER = (
    "kube-proxy",
    "kubelet",
    "docker",
    "flanneld",
    "kube-lb-vip",
    "kube-lb-check",
    "kube-lb",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd-snapshot",
    "etcd",
    "etcd-installation",
    "pki",
    "sysprep",
)
FLANNELD = "/opt/flannel/bin/flanneld"
CONFLIST = "/etc/cni/net.d/10-flannel.conflist"


class Leavings(NamedTuple):
    """What a component's service leaves beside what it was given. Paths may be patterns; `empties` go when empty."""

    unit: str = ""
    files: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    empties: tuple[str, ...] = ()


# The kubelet and the controller manager both make them.
_VOLUME_PLUGINS = (
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
    "/usr/libexec/kubernetes/kubelet-plugins/volume",
    "/usr/libexec/kubernetes/kubelet-plugins",
    "/usr/libexec/kubernetes",
)
CATALOGUE = {
    "kube-proxy": Leavings("kube-proxy.service", ("/opt/kubernetes/cfg/kube-proxy*",)),
    "kubelet": Leavings(
        "kubelet.service",
        ("/opt/kubernetes/cfg/kubelet*", "/opt/kubernetes/cfg/bootstrap.kubeconfig", "/run/dockershim.sock"),
        (
            "/opt/kubernetes/ssl/kubelet",
            "/var/lib/cni",
            "/var/lib/dockershim",
            "/var/log/containers",
            "/var/log/pods",
        ),
        (
            *_VOLUME_PLUGINS,
            "/etc/cni/net.d",
            "/etc/cni",
        ),
    ),
    "docker": Leavings(
        "docker.service",
        ("/etc/docker/key.json", "/run/docker.pid", "/run/docker.sock"),
        ("/run/docker",),
        (
            "/opt/containerd/bin",
            "/opt/containerd/lib",
            "/opt/containerd",
        ),
    ),
    "flanneld": Leavings("flanneld.service", (CONFLIST,), ("/run/flannel",), ("/etc/cni/net.d", "/etc/cni")),
    # Its service runs only when the timer, which is the component's unit, wants it.
    "etcd-snapshot": Leavings("etcd-snapshot.service", ("/var/lib/systemd/timers/stamp-etcd-snapshot.timer",)),
    "kube-lb-vip": Leavings("kube-lb-vip.service", ("/run/kube-lb-vip*.pid",)),
    "kube-lb-check": Leavings("kube-lb-check.service"),
    "kube-lb": Leavings("kube-lb.service", (), ("/opt/kubernetes/lb", "/run/kube-lb")),
    "kube-scheduler": Leavings("kube-scheduler.service", ("/opt/kubernetes/cfg/kube-scheduler*",)),
    "kube-controller-manager": Leavings(
        "kube-controller-manager.service", ("/opt/kubernetes/cfg/kube-controller-manager*",), (), _VOLUME_PLUGINS
    ),
    "kube-apiserver": Leavings(
        "kube-apiserver.service",
        (
            "/opt/kubernetes/cfg/kube-apiserver*",
            "/opt/kubernetes/cfg/audit-policy.yml",
            "/opt/kubernetes/cfg/encryption.yml",
            "/opt/kubernetes/cfg/admin.kubeconfig",
            "/opt/kubernetes/cfg/token.csv",
        ),
        ("/opt/kubernetes/logs",),
        ("/run/kubernetes",),
    ),
    "etcd": Leavings("etcd.service", ("/opt/etcd/cfg/etcd", "/run/kubewright/etcd-first-start")),
    "pki": Leavings("", ("/opt/etcd/ssl/*", "/opt/flannel/ssl/*", "/opt/kubernetes/ssl/*.*")),
    "sysprep": Leavings("", restore.OWN_FILES),
}
# Made by versions that kept no record of it; below them nobody else has anything.
OWN_DIRECTORIES = (
    *(f"{root}/{name}" for root in placed.OWN_ROOTS for name in ("bin", "cfg", "ssl", "lb", "logs", "store")),
    *placed.OWN_ROOTS,
)
