"""What runs as PID 1 of a machine before systemd: it gives the machine what a container shares with its host.

The kernel has one /proc/swaps and one value of most settings below /proc/sys for the host and all containers. A
machine gets its own of what Kubernetes asks for and writes (components/setupKernelTunables of the kubelet, dockerd's
key limits) and of what clusters are commonly tuned with; the rest it can read, not write. So nothing that is done in
a machine reaches the host's kernel, and there is nothing to restore after a crash. Below /proc/sys/net, values belong
to the machine anyway.
"""

from __future__ import annotations

# Where it lies in a machine.
INIT = "/usr/local/lib/kubewright-lab/init"

OWN_SETTINGS = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "kernel/pid_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "vm/swappiness",
    "vm/max_map_count",
    "fs/file-max",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
)
_SHARED = ("abi", "debug", "dev", "fs", "kernel", "user", "vm")

INIT_SCRIPT = f"""\
#!/bin/sh
# PID 1 of a machine of the lab, until systemd takes its place.
set -eu
# What is mounted below would else show up twice, on the trees that are copied and on their copies.
mount --make-rprivate /
# Control groups of version 1 arrive read-only.
for group in /sys/fs/cgroup/*; do
    if mountpoint -q "$group"; then mount -o remount,rw,bind "$group"; fi
done
# Swap is the host's.
own=/run/kubewright-lab
mkdir -p "$own"
head -n 1 /proc/swaps > "$own/swaps"
mount --bind "$own/swaps" /proc/swaps
# So are most settings of the kernel: a file of the machine's own instead, or reading only.
for tree in {" ".join(_SHARED)}; do
    if [ -d "/proc/sys/$tree" ]; then
        # With what is mounted in it: the boot id is the machine's own.
        mount --rbind "/proc/sys/$tree" "/proc/sys/$tree"
        mount -o remount,ro,bind "/proc/sys/$tree"
    fi
done
for name in {" ".join(OWN_SETTINGS)}; do
    if [ -e "/proc/sys/$name" ]; then
        mkdir -p "$own/sys/${{name%/*}}"
        cat "/proc/sys/$name" > "$own/sys/$name"
        mount --bind "$own/sys/$name" "/proc/sys/$name"
    fi
done
# kubelet and Docker pass mounts on to containers.
mount --make-rshared /
exec /lib/systemd/systemd
"""
