"""How the lab's machines are reached by SSH: keys, known hosts and a client configuration beside the inventory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kubewright.files import write_file
from kubewright.lab.model import LabSpec, Machine
from kubewright.lab.run import run, succeeds


def ssh_config(spec: LabSpec) -> str:
    """Return the text of an ssh_config(5) that reaches each machine by name and by address.

    The connection goes through the lab's network namespace, so the host needs no route to the machines. Host keys
    are checked strictly: the lab made them, it knows them. Alive messages end a connection to a machine that was
    cut off or lost its power, which TCP alone would keep for hours.
    """
    lines = ["# Written by `python -m kubewright.lab up`."]
    for machine in spec.machines:
        lines += [
            "",
            f"Host {machine.name} {machine.address}",
            f"    HostName {machine.address}",
            "    User root",
        ]
    proxy = f"nsenter --net={spec.namespace_path} socat - TCP:%h:%p,connect-timeout=5"
    names = " ".join(f"{machine.name} {machine.address}" for machine in spec.machines)
    lines += [
        "",
        f"Host {names}",
        f'    IdentityFile "{_escaped(spec.access / "id_ed25519")}"',
        "    IdentitiesOnly yes",
        f'    UserKnownHostsFile "{_escaped(spec.access / "known_hosts")}"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    PasswordAuthentication no",
        f"    ProxyCommand {proxy}",
        "    Ciphers ^aes128-gcm@openssh.com",
        "    ServerAliveInterval 5",
        "    ServerAliveCountMax 3",
    ]
    return "\n".join(lines) + "\n"


def _escaped(path: Path) -> str:
    # ssh_config(5), TOKENS: a literal percent sign is written twice.
    return str(path).replace("%", "%%")


def known_hosts(keys: Mapping[Machine, str]) -> str:
    """Return the text of a known_hosts file from each machine's public host key (`TYPE BASE64 ...`)."""
    return "".join(f"{machine.name},{machine.address} {' '.join(key.split()[:2])}\n" for machine, key in keys.items())


def make_access(spec: LabSpec) -> str:
    """Make whatever is missing of the lab's keys and files; return the public key that machines let in."""
    spec.access.mkdir(mode=0o700, exist_ok=True)
    key = _key_pair(spec.access / "id_ed25519", f"lab {spec.lab_id}")
    hosts = {machine: _key_pair(host_key(machine), machine.name) for machine in spec.machines}
    _write_when_different(spec.access / "known_hosts", known_hosts(hosts))
    _write_when_different(spec.access / "ssh_config", ssh_config(spec))
    return key


def host_key(machine: Machine) -> Path:
    """Return where a machine's private host key lies: on its own disk, where its SSH server looks for it."""
    return machine.directory / "upper/etc/ssh/ssh_host_ed25519_key"


def _key_pair(private: Path, comment: str) -> str:
    public = private.with_name(private.name + ".pub")
    if not (private.exists() and public.exists()):
        private.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
        private.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(private)])
    return public.read_text()


def _write_when_different(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        write_file(path, text)


def drop_connections(spec: LabSpec, machines: tuple[Machine, ...] | None = None) -> None:
    """End the SSH connections that Ansible keeps open to machines that are about to go, and only those; None: to all.

    The inventory's `ansible_control_path` names their sockets USER@ADDRESS.
    """
    patterns = ["cp/*"] if machines is None else [f"cp/*@{machine.address}" for machine in machines]
    for socket in (path for pattern in patterns for path in spec.runtime.glob(pattern)):
        succeeds(["ssh", "-F", "/dev/null", "-o", f"ControlPath={socket}", "-O", "exit", "any"], timeout=5)
        socket.unlink(missing_ok=True)
