"""One machine: its disks, its boot, its end.

A supervising shell (the process in the state file) lives as long as the machine has power. It has a mount namespace
of its own, so the machine's file system is gone with it and a crash leaves no mounts behind; and it boots the
machine again when the machine asks for a reboot.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from kubewright.errors import UserError
from kubewright.files import write_file
from kubewright.lab.host import Cgroups, Host
from kubewright.lab.image import remove_tree
from kubewright.lab.init import INIT, INIT_SCRIPT
from kubewright.lab.model import BRIDGE, LabSpec, Machine
from kubewright.lab.network import plug, switch_port
from kubewright.lab.run import run, succeeds
from kubewright.lab.state import ProcessMark, children, is_init, mark_of, read_mark, write_mark

# Directories that must not lie on an overlay, because their users mount overlays upon them.
_PLAIN = {"docker": "/var/lib/docker", "containerd": "/var/lib/containerd"}
_WRAPPER_DIRECTORY = "/usr/local/lib/kubewright-lab/bin"
_SEARCH = f"{_WRAPPER_DIRECTORY}:/opt/docker/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# runc lowers a container's OOM score by writing /proc/self/oom_score_adj, which takes CAP_SYS_RESOURCE; a host without
# it kills every pod sandbox (kubelet asks for -998). A quote inside a JSON string is escaped, so the expression
# only ever meets the key itself.
_RUNC_WRAPPER = r"""#!/bin/sh
# Raises a negative oomScoreAdj in a container's configuration to 0: this host may not lower OOM scores.
bundle=.
previous=
for argument; do
    case $previous in --bundle | -b) bundle=$argument ;; esac
    case $argument in --bundle=*) bundle=${argument#*=} ;; esac
    previous=$argument
done
negative='"oomScoreAdj": *-[0-9]+'
if [ -f "$bundle/config.json" ] && grep -Eq "$negative" "$bundle/config.json"; then
    sed -Ei "s/$negative/\"oomScoreAdj\":0/" "$bundle/config.json"
fi
here=${0%/*}
IFS=:
for directory in $PATH; do
    if [ "$directory" != "$here" ] && [ -x "$directory/runc" ]; then exec "$directory/runc" "$@"; fi
done
echo "runc: not found beside $here in $PATH" >&2
exit 127
"""


def network_file(spec: LabSpec, machine: Machine) -> str:
    """Return the machine's systemd.network(5) configuration: a static address, the bridge as default gateway."""
    return (
        "[Match]\nName=host0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
        f"Address={machine.address}/{spec.network.prefixlen}\nGateway={spec.gateway.ip}\n"
    )


def boot_script(spec: LabSpec, machine: Machine, host: Host, rootfs: Path, nodes: tuple[Path, ...]) -> str:
    """Return the supervising shell script of a machine; `nodes` are the control groups that it enters.

    nspawn with --keep-unit leaves a reboot to its caller, by exit code 133. What the last boot left in the control
    groups goes before the next one, as it would on hardware.
    """
    disk = machine.directory
    environment = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes", "SYSTEMD_NSPAWN_USE_CGNS": "1"}
    if host.cgroups.version == 1:
        environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "0"
    binds = [f"--bind={device}" for device in host.devices]
    binds += [f"--bind={disk / name}:{path}" for name, path in _PLAIN.items()]
    nspawn = [
        # The machine must not outlive its supervisor: nobody would know about it.
        "setpriv", "--pdeathsig", "KILL", "systemd-nspawn", "--quiet", "--kill-signal=SIGRTMIN+3",
        f"--directory={disk / 'root'}", f"--machine={machine.name}",
        "--register=no", "--keep-unit", "--link-journal=no", "--timezone=off", "--resolv-conf=off",
        "--console=read-only", "--capability=all", "--drop-capability=CAP_SYS_TIME",
        "--system-call-filter=add_key keyctl bpf @mount", *binds,
    ]  # fmt: skip
    quote = shlex.quote
    layers = f"lowerdir={rootfs},upperdir={disk / 'upper'},workdir={disk / 'work'}"
    lines = ["#!/bin/sh", f"# Supervises {machine.name} of the lab {spec.lab_id}.", "set -u"]
    lines += [f"echo $$ > {quote(str(node / 'cgroup.procs'))} || exit 1" for node in nodes]
    lines += [f"export {name}={value}" for name, value in environment.items()]
    lines += [
        f"mount -t overlay overlay -o {quote(layers)} {quote(str(disk / 'root'))} || exit 1",
        # nspawn keeps state by machine name there, and machines of two labs may have the same names.
        "mkdir -p /run/systemd/nspawn && mount -t tmpfs tmpfs /run/systemd/nspawn || exit 1",
        "while :; do",
    ]
    lines += [
        f"    find {quote(str(node))} -mindepth 1 -depth -type d -exec rmdir {{}} + 2>/dev/null" for node in nodes
    ]
    lines += [
        f"    wire=--network-bridge={BRIDGE}",
        f"    if [ -e {quote(str(machine.cut_mark))} ]; then wire=--network-veth; fi",
        # The kernel takes its time with the wire of a machine that lost its power; nspawn would stop at it.
        f"    for end in vb ve; do ip link delete $end-{quote(machine.name)} 2>/dev/null; done",
        f"    {shlex.join(nspawn)} $wire -- {INIT}",
        "    code=$?",
        '    [ "$code" = 133 ] || exit "$code"',
        "    echo '--- reboot ---'",
        "done",
    ]
    return "\n".join(lines) + "\n"


def cgroup_nodes(spec: LabSpec, machine: Machine, cgroups: Cgroups) -> tuple[Path, ...]:
    """Return the control groups of a machine, one per hierarchy."""
    return tuple(mount / spec.cgroup / machine.name for mount in cgroups.mounts)


def supervisor(machine: Machine) -> ProcessMark | None:
    """Return the process that keeps the machine running; None when the machine is off."""
    mark = read_mark(machine.state_file)
    return mark if mark and mark.alive() else None


def leader(machine: Machine) -> int | None:
    """Return the pid, on the host, of the machine's PID 1; None while it is off or between two boots."""
    mark = supervisor(machine)
    if mark:
        for nspawn in children(mark.pid):
            for child in children(nspawn):
                if is_init(child):
                    return child
    return None


def require_leader(machine: Machine) -> int:
    """Return the pid of the machine's PID 1, or say that the machine is off."""
    pid = leader(machine)
    if pid is None:
        raise UserError(f"{machine.name} is not running", f"start it: python -m kubewright.lab start {machine.name}")
    return pid


def console(machine: Machine, command: list[str]) -> list[str]:
    """Return the host command that runs `command` inside the machine, without its network and SSH."""
    pid = require_leader(machine)
    return ["nsenter", f"--target={pid}", "--all", "env", "--chdir=/", "-i", f"PATH={_SEARCH}", "HOME=/root",
            f"TERM={os.environ.get('TERM', 'dumb')}", *command]  # fmt: skip


def image_of(machine: Machine) -> str | None:
    """Return the name of the image that the machine's disks lie on; None when it has no disks yet."""
    return machine.image_file.read_text().strip() if machine.image_file.exists() else None


def prepare(spec: LabSpec, machine: Machine, host: Host, image: str, public_key: str) -> None:
    """Make a machine's disks on `image` and write onto them what makes it this machine; existing ones are kept."""
    if image_of(machine) is None:
        write_file(machine.image_file, image + "\n")
    for name in ("upper", "work", "root", *_PLAIN):
        (machine.directory / name).mkdir(parents=True, exist_ok=True)
    upper = machine.directory / "upper"
    files = {
        "etc/systemd/network/10-host0.network": (network_file(spec, machine), 0o644),
        INIT.lstrip("/"): (INIT_SCRIPT, 0o755),
    }
    if not host.can_lower_oom_score:
        files[f"{_WRAPPER_DIRECTORY.lstrip('/')}/runc"] = (_RUNC_WRAPPER, 0o755)
        for unit in ("docker", "containerd"):
            # A site's own drop-in, as any administrator may have one: what installs Docker leaves it alone.
            drop_in = f"etc/systemd/system/{unit}.service.d/10-lab.conf"
            files[drop_in] = (f'[Service]\nEnvironment="PATH={_SEARCH}"\n', 0o644)
    for name, (text, mode) in files.items():
        path = upper / name
        if not path.exists() or path.read_text() != text:
            write_file(path, text, mode)
    authorized = upper / "root/.ssh/authorized_keys"
    admitted = authorized.read_text() if authorized.exists() else ""
    if public_key not in admitted:
        write_file(authorized, admitted + public_key, 0o600)
    # A directory that is made in the upper layer hides its counterpart's mode.
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)


def boot(spec: LabSpec, machine: Machine, host: Host, rootfs: Path) -> None:
    """Switch a machine on; returns at once."""
    nodes: tuple[Path, ...] = ()
    scope: list[str] = []
    if host.systemd:
        # systemd owns the control groups of such a host: it is asked for a scope, which it delegates.
        scope = ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes",
                 f"--unit={spec.cgroup}-{machine.name}"]  # fmt: skip
    else:
        nodes = cgroup_nodes(spec, machine, host.cgroups)
        kill_group(nodes)
        _make_cgroups(nodes, host.cgroups)
    script = machine.directory / "boot.sh"
    write_file(script, boot_script(spec, machine, host, rootfs, nodes), 0o755)
    command = [*scope, "nsenter", f"--net={spec.namespace_path}", "unshare", "--mount", "sh", str(script)]
    with machine.log.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    # Every step of the command replaces itself by the next, so this stays the supervisor's pid.
    with contextlib.suppress(ProcessLookupError):
        write_mark(machine.state_file, mark_of(process.pid))


def _make_cgroups(nodes: tuple[Path, ...], cgroups: Cgroups) -> None:
    for node in nodes:
        node.mkdir(parents=True, exist_ok=True)
        for group in (node.parent, node):
            # cpusets of version 1: a group without processors and memory takes no processes.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists() and cgroups.version == 1:
                    (group / name).write_text((group.parent / name).read_text())
        if cgroups.version == 2:
            controllers = " ".join(f"+{name}" for name in (node.parent / "cgroup.controllers").read_text().split())
            for group in (node.parent.parent, node.parent):
                (group / "cgroup.subtree_control").write_text(controllers)


def kill_group(nodes: tuple[Path, ...]) -> None:
    """Kill whatever is left in a machine's control groups while nothing supervises it."""
    for _ in range(50):
        pids = {int(pid) for node in nodes for path in node.rglob("cgroup.procs") for pid in _lines(path)}
        # A process of an outer pid namespace would show as 0, which to kill(2) means the caller's own group.
        pids.discard(0)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        # The group went away, or is of a kind (threaded) that lists no processes.
        return []


def remove_cgroups(spec: LabSpec, cgroups: Cgroups) -> None:
    """Remove the lab's control groups, deepest first, and whatever runs in them."""
    kill_group(tuple(mount / spec.cgroup for mount in cgroups.mounts))
    for mount in cgroups.mounts:
        top = mount / spec.cgroup
        for attempt in range(20):
            groups = sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
            with contextlib.suppress(OSError):
                for group in [*groups, top]:
                    if group.exists():
                        group.rmdir()
                break
            # Processes that were killed leave their group a moment later.
            time.sleep(0.05 * (attempt + 1))


def state(machine: Machine) -> str:
    """Return `off`, `booting`, or what `systemctl is-system-running` says inside."""
    if supervisor(machine) is None:
        return "off"
    if leader(machine) is None:
        return "booting"
    try:
        command = console(machine, ["systemctl", "is-system-running"])
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (UserError, subprocess.TimeoutExpired):
        return "booting"
    answer = done.stdout.strip()
    return answer if answer and answer != "offline" else "booting"


def _admit(machine: Machine, public_key: str) -> None:
    """Let a key in that was made after the machine was booted, because the one it knows was lost."""
    script = 'grep -qxF "$1" "$2" || printf "%s\\n" "$1" >> "$2"'
    arguments = ["sh", "-c", script, "admit", public_key.strip(), "/root/.ssh/authorized_keys"]
    run(console(machine, arguments), timeout=15)


def wait_ready(
    spec: LabSpec, machine: Machine, seconds: float, *, after: int | None = None, admit: str | None = None
) -> str:
    """Wait until the machine is up and, unless it is cut off, answers SSH; return its state.

    `after` is the PID 1 of the boot before, whose answers do not count. `admit` is a public key that the machine lets
    in from then on. `UserError` with the last lines of the
    console when it takes longer than `seconds` or the machine goes off.
    """
    deadline = time.monotonic() + seconds
    seen = "off"
    while time.monotonic() < deadline:
        seen = state(machine)
        if seen == "off":
            break
        if seen in ("running", "degraded") and leader(machine) != after:
            if admit:
                _admit(machine, admit)
                admit = None
            if machine.cut_mark.exists():
                return f"{seen}, cut off"
            if succeeds(["ssh", "-F", str(spec.access / "ssh_config"), machine.name, "true"], timeout=10):
                return seen
        time.sleep(0.2)
    words = machine.log.read_text(errors="replace").splitlines()[-5:] if machine.log.exists() else []
    raise UserError(
        f"{machine.name} did not come up within {seconds:.0f} s, its state is {seen!r}: {' / '.join(words)}",
        f"its console is {machine.log}; python -m kubewright.lab exec {machine.name} -- journalctl -b",
    )


def kill(machine: Machine) -> None:
    """Take a machine's power away."""
    mark = supervisor(machine)
    if mark is None:
        return
    # The supervisor first, or it would take the end for a reboot.
    below = [process for nspawn in children(mark.pid) for process in (*children(nspawn), nspawn)]
    marks = []
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            marks.append(mark_of(pid))
    for victim in (mark, *marks):
        if victim.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
    _wait_gone([mark, *marks], 20)
    machine.state_file.unlink(missing_ok=True)


def power_off(machine: Machine, seconds: float) -> bool:
    """Shut a machine down in order; after `seconds` take its power away. Returns whether it went in order."""
    mark = supervisor(machine)
    if mark is None:
        return True
    pid = leader(machine)
    if pid:
        # systemd(1): SIGRTMIN+4 is poweroff.target.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGRTMIN + 4)
    orderly = bool(pid) and _wait_gone([mark], seconds)
    kill(machine)
    machine.state_file.unlink(missing_ok=True)
    return orderly


def reboot(machine: Machine) -> int:
    """Ask a running machine to reboot in order; return the PID 1 of the boot that ends."""
    pid = require_leader(machine)
    # systemd(1): SIGRTMIN+5 is reboot.target.
    os.kill(pid, signal.SIGRTMIN + 5)
    return pid


def connect(spec: LabSpec, machine: Machine, *, connected: bool) -> None:
    """Pull a machine's network cable, or put it back; it stays as it is through reboots."""
    if connected:
        machine.cut_mark.unlink(missing_ok=True)
    else:
        machine.cut_mark.touch()
    pid = leader(machine)
    if pid:
        plug(spec, switch_port(spec, pid), connected=connected)


def remove_disks(machine: Machine) -> None:
    """Remove everything a machine has on disk; it must be off."""
    remove_tree(machine.directory)


def _wait_gone(marks: list[ProcessMark], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(mark.alive() for mark in marks):
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.1)
    return True
