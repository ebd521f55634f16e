"""Ending what runs: services, the containers of pods and of Docker, and what is left of them."""

from __future__ import annotations

import glob
import os
import re
import subprocess
import time

from . import files, processes, systemd

# Bounds for services that do not stop when told to, in seconds.
_STOP_SECONDS = 20.0
_COMMAND_SECONDS = 90


def stop(unit: str) -> None:
    """Ask, and where that takes too long kill the whole control group. Whoever hangs is named."""
    subprocess.run(
        ["systemctl", "stop", "--no-block", unit], capture_output=True, check=False, timeout=_COMMAND_SECONDS
    )
    state: dict[str, str] = {}
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        state = systemd.states([unit]).get(unit, {})
        if state.get("ActiveState") in ("inactive", "failed", None):
            break
        time.sleep(0.1)
    # Those that outlive their unit on purpose, as containerd does with docker, and those that hang.
    _kill(processes.of_unit(unit, state.get("Slice", "")), 0)
    systemd.reset_failed(unit)


def end(what: str, grace: float) -> None:
    """End the processes of `pods` or of `containers`, which have `grace` seconds for it. Raises OSError."""
    _kill(processes.PODS if what == "pods" else processes.CONTAINERS, grace)
    _drop_groups("kubepods" if what == "pods" else "docker")


def _kill(group: re.Pattern[str], grace: float) -> None:
    hanging = processes.end(group, grace)
    if hanging:
        numbers = ", ".join(map(str, hanging))
        raise OSError(f"processes {numbers} hang in the kernel and cannot be killed; reboot the machine")


def kubelet_scopes(table: str) -> list[str]:
    """Scopes that a kubelet made by systemd-run, to ask whether it can and for its mounts. Pure.

    `table`: of `systemd.scopes`. Descriptions are those of k8s.io/mount-utils.
    """
    pattern = re.compile(r"(run-\S+\.scope) .* Kubernetes (?:systemd probe|transient mount for .*)")
    return [found[1] for line in table.splitlines() if (found := pattern.fullmatch(line.rstrip()))]


def drop_sockets(directory: str) -> None:
    """Remove sockets of containers' shims that nobody holds open any more; another containerd has its own here."""
    held = {line.split()[-1] for line in files.read("/proc/net/unix").splitlines()[1:] if "/" in line}
    for path in glob.glob(f"{directory}/*"):
        if path not in held:
            os.unlink(path)
    for path in (directory, os.path.dirname(directory)):
        if os.path.isdir(path) and not os.listdir(path):
            os.rmdir(path)


def _drop_groups(name: str) -> None:
    """Remove the empty control groups of containers, which are nobody's any more."""
    if name == "kubepods":
        subprocess.run(
            ["systemctl", "stop", "kubepods.slice"], capture_output=True, check=False, timeout=_COMMAND_SECONDS
        )
    for root in [*glob.glob(f"/sys/fs/cgroup/*/{name}"), *glob.glob(f"/sys/fs/cgroup/{name}")]:
        for directory, _, _ in os.walk(root, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                continue  # they hold nothing, and are gone after the next boot
