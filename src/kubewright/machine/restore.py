"""Settings of sysprep, back to what they were, by the record that it keeps of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import NamedTuple

from . import files, placed, rules, sysprep, systemd

# Files that are ours altogether; the removal of sysprep takes them away.
OWN_FILES = (
    "/etc/modules-load.d/kubewright.conf",
    "/etc/security/limits.d/90-kubewright.conf",
    "/etc/sysctl.d/90-kubewright.conf",
)
_HOSTS, _FSTAB = "/etc/hosts", "/etc/fstab"
_SECONDS = 120


class Settings(NamedTuple):
    """`due`: what can be set back; `left`: what cannot, in words."""

    due: tuple[str, ...]
    left: tuple[str, ...]


def settings() -> Settings:
    """What sysprep has changed on this machine."""
    record = files.read_json(sysprep.RECORD)
    changed = [what for what in record or {} if what not in OWN_FILES and not _is_lasting(what)]
    gone = {what: lost for what in changed if (lost := _lost(what, record[what]["before"]))}
    # Of several devices for swap, some may still be there.
    some = [what for what in gone if what == "swap" and set(record[what]["before"].split(", ")) - set(gone[what])]
    due = [what for what in changed if what not in gone or what in some]
    if _HOSTS not in due and sysprep.without_block(_text(_HOSTS)) != _text(_HOSTS):
        due.append(_HOSTS)
    left = [f"{what} is not put back: {', '.join(lost)} is not on this machine any more" for what, lost in gone.items()]
    modules = [what.rpartition(" ")[2] for what in record or {} if what.startswith("kernel module ")]
    if modules:
        left.append(f"kernel modules that are loaded until the next boot: {', '.join(modules)}")
    if "iptables" in (record or {}):
        left.append("iptables rules that were flushed at the first run are gone")
    if record is None and any(map(os.path.exists, OWN_FILES)):
        left.append(
            "swap lines in /etc/fstab, host name, firewall and kernel parameters in force are as sysprep set them: it "
            "was a version that kept no record of what was before"
        )
    return Settings(tuple(due), tuple(left))


def _is_lasting(what: str) -> bool:
    return what.startswith("kernel module ") or what == "iptables"


def _lost(what: str, before: str) -> list[str]:
    """What is not there any more, without which a setting cannot be put back."""
    if what == "swap":
        return [device for device in before.split(", ") if not os.path.exists(device)]
    if what.endswith(".service"):
        return [what] if systemd.states([what]).get(what, {}).get("LoadState") == "not-found" else []
    program = {"firewalld": "firewall-cmd", "ufw": "ufw"}.get(what.split(maxsplit=1)[0])
    return [program] if program and not shutil.which(program, path=rules.PATH) else []


def undo(what: str) -> None:
    """Set one thing back, unless somebody has changed it since, and drop it from the record. Raises OSError."""
    record = files.read_json(sysprep.RECORD) or {}
    known = record.get(what, {"before": "", "after": ""})
    _undo(what, known["before"], known["after"])
    if record.pop(what, None) is not None:
        files.write_atomic(sysprep.RECORD, json.dumps(record, indent=1, sort_keys=True).encode(), 0o600)


def _undo(what: str, before: str, after: str) -> None:
    if what.startswith("/"):
        _undo_file(what, before, after)
    elif what.startswith("sysctl "):
        name = what.partition(" ")[2]
        if before != "not there" and placed.sysctl(name) == after:
            with open(placed.sysctl_path(name), "w", encoding="utf-8") as stream:
                stream.write(before)
    elif what == "hostname":
        if os.uname().nodename == after:
            _run("hostnamectl", "set-hostname", before)
    elif what == "swap":
        for device in before.split(", "):
            if os.path.exists(device) and device not in files.read("/proc/swaps"):
                _run("swapon", device)
    elif what == "SELinux mode":
        _run("setenforce", "1")
    elif what.endswith(".service"):
        _set_unit(what, before)
    else:
        _close(what)


def _undo_file(path: str, before: str, after: str) -> None:
    if path == _HOSTS:
        _rewrite(path, sysprep.without_block(_text(path)))
    elif path == _FSTAB:
        _rewrite(path, uncommented(_text(path), before))
    elif _text(path) == after:
        _rewrite(path, before)


def uncommented(text: str, before: str) -> str:
    """A table of file systems with those lines as they were that have become comments since. Pure."""
    were = before.splitlines()
    lines = [
        line[1:] if line.startswith("#") and line[1:] in were and line not in were else line
        for line in text.splitlines()
    ]
    return "".join(f"{line}\n" for line in lines)


def _set_unit(unit: str, before: str) -> None:
    active, _, enabled = before.partition(", ")
    state = systemd.states([unit]).get(unit, {})
    if enabled in ("enabled", "disabled") and state.get("UnitFileState") != enabled:
        _run("systemctl", enabled[:-1], unit)
    if active in ("active", "inactive") and state.get("ActiveState") != active:
        _run("systemctl", "start" if active == "active" else "stop", unit)


def _close(what: str) -> None:
    """Take back a hole in a firewall: `firewalld 6443/tcp now`, `ufw allow 6443/tcp`."""
    firewalld = re.fullmatch(r"firewalld (\S+) (at every start|now)", what)
    if firewalld:
        # Networks have dots before the slash, ports have none; protocols have no slash.
        kind = "source" if "." in firewalld[1] else "port" if "/" in firewalld[1] else "protocol"
        hole = [*(["--zone=trusted"] if kind == "source" else []), f"--remove-{kind}={firewalld[1]}"]
        if systemd.states(["firewalld.service"])["firewalld.service"].get("ActiveState") == "active":
            _run("firewall-cmd", *(["--permanent"] if firewalld[2] != "now" else []), *hole)
        elif firewalld[2] != "now":
            # The other one needs the service.
            _run("firewall-offline-cmd", *hole)
    elif what.startswith("ufw "):
        _run("ufw", "delete", *what.split()[1:])


def _text(path: str) -> str:
    return sysprep.read(path)


def _rewrite(path: str, text: str) -> None:
    if not text and path.startswith(("/etc/chrony", "/etc/modules")):
        if os.path.exists(path):
            os.unlink(path)
    elif _text(path) != text:
        mode = os.stat(path).st_mode & 0o7777
        files.write_atomic(path, text.encode("utf-8", "surrogateescape"), mode)


def _run(*argv: str) -> None:
    environment = {**os.environ, "PATH": rules.PATH, "LC_ALL": "C"}
    reply = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_SECONDS, env=environment)
    if reply.returncode:
        raise OSError(f"{' '.join(argv)}: {reply.stderr.strip() or reply.stdout.strip() or reply.returncode}")
