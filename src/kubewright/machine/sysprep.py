"""Basic settings of a machine that are more than files: compared and set, each with what it was.

A setting is one function that returns the differences and, unless only asked, removes them. Before it does, what was
there is kept in /var/lib/kubewright/sysprep.json: {what: {before, after}}, `before` as it was the first time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any, Callable

from . import component, files, systemd

RECORD = "/var/lib/kubewright/sysprep.json"
_FIREWALLS = ("firewalld.service", "ufw.service")
_HOSTS_BEGIN, _HOSTS_END = "# BEGIN kubewright", "# END kubewright"
_BLOCK = re.compile(rf"^{_HOSTS_BEGIN}$.*?^{_HOSTS_END}$\n?", re.MULTILINE | re.DOTALL)
# A session of Ansible's may lack the directories of system programs.
_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_CHRONY = ("chrony.service", "chronyd.service")
# Program -> the Debian package that holds it, where they differ.
_PACKAGES = {"ping": "iputils-ping", "ip": "iproute2", "bridge": "iproute2", "modprobe": "kmod"}


def read(path: str) -> str:
    """A text file as it is, empty where there is none: what is not UTF-8 in it is written back as it was."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""


def _run(*argv: str, stdin: str = "") -> str:
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    reply = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=120, env=environment)
    if reply.returncode:
        raise OSError(f"{' '.join(argv)}: {reply.stderr.strip() or reply.stdout.strip() or reply.returncode}")
    return reply.stdout


def _difference(what: str, before: str, after: str) -> dict[str, str]:
    return {"what": what, "before": _printable(before), "after": _printable(after)}


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _file(path: str, wanted: str, check: bool, mode: int = 0o644) -> list[dict[str, str]]:
    before = read(path)
    if before == wanted and (os.path.exists(path) or not wanted):
        return []
    if not check:
        files.write_atomic(path, wanted.encode("utf-8", "surrogateescape"), mode)
    return [_difference(path, before, wanted)]


def firewall(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`state: off` stops and disables firewalld and ufw where they run; `keep` leaves them alone."""
    if wanted["state"] != "off":
        return []
    found = []
    for unit, state in systemd.states(list(_FIREWALLS)).items():
        if state.get("ActiveState") == "active" or state.get("UnitFileState") == "enabled":
            found.append(
                _difference(unit, f"{state.get('ActiveState')}, {state.get('UnitFileState')}", "stopped, disabled")
            )
            if not check:
                _run("systemctl", "disable", "--now", unit)
    return found


def firewall_ports(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`state: ports` lets `ports` (6443/tcp, 30000-32767/udp) and the networks `trusted` into a running firewall.

    A port without a slash is an IP protocol without ports: `vrrp`.
    """
    if wanted["state"] != "ports":
        return []
    units = systemd.states(list(_FIREWALLS))
    if units["firewalld.service"].get("ActiveState") == "active":
        return _firewalld(wanted["ports"], wanted["trusted"], check)
    if shutil.which("ufw", path=_PATH) and "Status: active" in _run("ufw", "status"):
        return _ufw(wanted["ports"], wanted["trusted"], check)
    return []


def _firewalld(ports: list[str], trusted: list[str], check: bool) -> list[dict[str, str]]:
    """What firewalld keeps and what it does now are two things: a run that ended in between left only one of them."""
    found = []
    for where, ask in (("at every start", ("firewall-cmd", "--permanent")), ("now", ("firewall-cmd",))):
        open_ports = _run(*ask, "--list-ports").split() + _run(*ask, "--list-protocols").split()
        sources = _run(*ask, "--zone=trusted", "--list-sources").split()
        missing = [port for port in ports if port not in open_ports]
        strangers = [network for network in trusted if network not in sources]
        found += [_difference(f"firewalld {port} {where}", "closed", "open") for port in missing]
        found += [_difference(f"firewalld {network} {where}", "not trusted", "trusted") for network in strangers]
        if missing and not check:
            _run(*ask, *[f"--add-{'port' if '/' in port else 'protocol'}={port}" for port in missing])
        if strangers and not check:
            _run(*ask, "--zone=trusted", *[f"--add-source={network}" for network in strangers])
    return found


def _ufw(ports: list[str], trusted: list[str], check: bool) -> list[dict[str, str]]:
    have = {line.strip() for line in _run("ufw", "show", "added").splitlines()}
    # As `ufw show added` writes them.
    rules = [
        ["allow", port.replace("-", ":")] if "/" in port else ["allow", "to", "any", "proto", port] for port in ports
    ]
    rules += [["allow", "from", network] for network in trusted]
    missing = [rule for rule in rules if f"ufw {' '.join(rule)}" not in have]
    for rule in missing:
        if not check:
            _run("ufw", *rule)
    return [_difference(f"ufw {' '.join(rule)}", "no rule", "rule") for rule in missing]


def selinux(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`state: permissive|disabled` in the running system (as far as it allows) and in its configuration."""
    if wanted["state"] == "keep" or not os.path.exists("/etc/selinux/config"):
        return []
    text = read("/etc/selinux/config")
    found = _file("/etc/selinux/config", re.sub(r"(?m)^SELINUX=.*$", f"SELINUX={wanted['state']}", text), check)
    if read("/sys/fs/selinux/enforce").strip() == "1":
        found.append(_difference("SELinux mode", "enforcing", "permissive"))
        if not check:
            _run("setenforce", "0")
    return found


def swap(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`state: off` for now (swapoff) and for every boot (its lines in /etc/fstab become comments)."""
    if wanted["state"] != "off":
        return []
    text = read("/etc/fstab")
    lines = [
        f"#{line}"
        if len(line.split()) > 2 and line.split()[2] == "swap" and not line.lstrip().startswith("#")
        else line
        for line in text.splitlines(keepends=True)
    ]
    found = _file("/etc/fstab", "".join(lines), check) if text else []
    active = [line.split()[0] for line in read("/proc/swaps").splitlines()[1:]]
    if active:
        found.append(_difference("swap", ", ".join(active), "off"))
        if not check:
            _run("swapoff", "-a")
    return found


def hostname(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """The running and the persistent host name."""
    name = wanted["name"]
    found = []
    if os.uname().nodename != name or read("/etc/hostname").strip() != name:
        found.append(_difference("hostname", os.uname().nodename, name))
        if not check:
            _run("hostnamectl", "set-hostname", name)
    return found


def hosts(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """A marked block in /etc/hosts; `entries`: lines "address name". Everything outside of the block is kept."""
    text = read("/etc/hosts")
    block = "\n".join([_HOSTS_BEGIN, *wanted["entries"], _HOSTS_END]) + "\n"
    if _BLOCK.search(text):
        new = _BLOCK.sub(lambda _: block, text, count=1)
    else:
        new = text + ("" if text.endswith("\n") or not text else "\n") + block
    return _file("/etc/hosts", new, check)


def without_block(text: str) -> str:
    """The text of /etc/hosts without our block."""
    return _BLOCK.sub("", text)


def modules(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """Kernel modules `names`, loaded now and at boot; those built into the kernel need neither.

    A kernel without loadable modules has what it has: nothing to do.
    """
    if not os.path.exists("/proc/modules"):
        return []
    loaded = {line.split()[0] for line in read("/proc/modules").splitlines()}
    names = loadable(wanted["names"], loaded, read(f"/lib/modules/{os.uname().release}/modules.builtin"))
    found = _file("/etc/modules-load.d/kubewright.conf", "".join(f"{name}\n" for name in names), check)
    for name in names:
        if name not in loaded:
            found.append(_difference(f"kernel module {name}", "not loaded", "loaded"))
            if not check:
                _run("modprobe", name)
    return found


def loadable(names: list[str], loaded: set[str], builtin: str) -> list[str]:
    """Those of the modules that are not built in, as the kernel spells them: modprobe knows no difference of - and _.

    `loaded`: first words of /proc/modules; `builtin`: the text of modules.builtin.
    """
    fixed = {os.path.basename(line).partition(".ko")[0].replace("-", "_") for line in builtin.split()}
    spelt = dict.fromkeys(name.replace("-", "_") for name in names)
    return [
        name for name in spelt if name in loaded or (name not in fixed and not os.path.isdir(f"/sys/module/{name}"))
    ]


def sysctls(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`values`: sysctl name -> value, in force now and persisted in /etc/sysctl.d/90-kubewright.conf."""
    values = {str(k): str(v) for k, v in wanted["values"].items()}
    text = "".join(f"{name} = {value}\n" for name, value in sorted(values.items()))
    found = _file("/etc/sysctl.d/90-kubewright.conf", text, check)
    for name, value in sorted(values.items()):
        path = "/proc/sys/" + name.replace(".", "/")
        before = " ".join(read(path).split())
        if before == value:
            continue
        found.append(_difference(f"sysctl {name}", before or "not there", value))
        if not check:
            try:
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(value)
            except OSError as error:
                raise OSError(f"sysctl {name}={value}: {error}; is the kernel module behind it loaded?") from error
    return found


def limits(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """Open files for log-in sessions; `open_files`: number. The services set their own in their units."""
    number = int(wanted["open_files"])
    text = (
        f"*    soft nofile {number}\n*    hard nofile {number}\nroot soft nofile {number}\nroot hard nofile {number}\n"
    )
    return _file("/etc/security/limits.d/90-kubewright.conf", text, check)


def iptables(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """`flush: true` empties the tables of a machine that is about to become part of a cluster.

    Where a component of ours has ever run the rules are the cluster's, and stay.
    """
    if not wanted["flush"] or os.path.isdir(component.RECORDS):
        return []
    saved = _run("iptables-save")
    before = [
        line
        for line in saved.splitlines()
        if line.startswith("-") or (line.startswith(":") and line.split()[1] != "ACCEPT")
    ]
    if not before:
        return []
    if not check:
        # Each table in one step: without its rules, a chain whose policy is DROP would shut us out.
        _run("iptables-restore", "-w", stdin=emptied(saved))
    return [_difference("iptables", "\n".join(before), "nothing but policies ACCEPT")]


def emptied(saved: str) -> str:
    """The tables of an iptables-save without rules and own chains, with the policy ACCEPT, for iptables-restore."""
    kept = []
    for line in saved.splitlines():
        if line.startswith("*") or line == "COMMIT":
            kept.append(line)
        elif line.startswith(":") and line.split()[1] != "-":
            # Chains of the kernel have a policy, others a dash.
            kept.append(f"{line.split()[0]} ACCEPT [0:0]")
    return "".join(f"{line}\n" for line in kept)


def time_sync(wanted: dict[str, Any], check: bool) -> list[dict[str, str]]:
    """chrony runs at every boot; with `servers`, its configuration names them."""
    states = systemd.states(list(_CHRONY))
    # `lacking` has made sure that there is one.
    unit = next(u for u in _CHRONY if states[u].get("LoadState") == "loaded")
    found = []
    if wanted["servers"]:
        path = "/etc/chrony/chrony.conf" if os.path.isdir("/etc/chrony") else "/etc/chrony.conf"
        text = "".join(f"server {server} iburst\n" for server in wanted["servers"])
        text += "driftfile /var/lib/chrony/drift\nmakestep 1 3\nrtcsync\n"
        found = _file(path, text, check)
    if (
        found
        or states[unit].get("ActiveState") != "active"
        or states[unit].get("UnitFileState") not in ("enabled", "alias")
    ):
        if not found:
            seen = f"{states[unit].get('ActiveState')}, {states[unit].get('UnitFileState')}"
            found.append(_difference(unit, seen, "active, enabled"))
        if not check:
            _run("systemctl", "enable", unit)
            _run("systemctl", "restart", unit)
    return found


_SETTINGS: dict[str, Callable[[dict[str, Any], bool], list[dict[str, str]]]] = {
    "hostname": hostname,
    "hosts": hosts,
    "firewall": firewall,
    "firewall_ports": firewall_ports,
    "selinux": selinux,
    "swap": swap,
    "modules": modules,
    "sysctls": sysctls,
    "limits": limits,
    "iptables": iptables,
    "time_sync": time_sync,
}


def lacking(settings: dict[str, dict[str, Any]], programs: list[str]) -> str:
    """What is not installed of what the settings and the cluster need, with the packages; empty when all is there."""
    needed = [*programs]
    if settings.get("modules", {}).get("names") and os.path.exists("/proc/modules"):
        needed.append("modprobe")
    missing = [program for program in needed if not shutil.which(program, path=_PATH)]
    if settings.get("time_sync") and not any(
        state.get("LoadState") == "loaded" for state in systemd.states(list(_CHRONY)).values()
    ):
        missing.append("chrony")
    if not missing:
        return ""
    packages = dict.fromkeys(_PACKAGES.get(program, program) for program in missing)
    without = "; chrony is not needed with sysprep_time_sync: false" if "chrony" in missing else ""
    return (
        f"missing on this machine: {', '.join(missing)}; nothing has been changed. Install the packages that hold them "
        f"(Debian: apt-get install {' '.join(packages)}) and run again{without}"
    )


def reconcile(settings: dict[str, dict[str, Any]], check: bool) -> list[dict[str, str]]:
    """Bring the named settings about in a fixed order; returns [{what, before, after}]."""
    found: list[dict[str, str]] = []
    for name, setting in _SETTINGS.items():
        if not settings.get(name):
            continue
        ahead = setting(settings[name], True)
        if ahead and not check:
            _remember(ahead)
            ahead = setting(settings[name], False)
        found += ahead
    return found


def _remember(differences: list[dict[str, str]]) -> None:
    record = files.read_json(RECORD) or {}
    for one in differences:
        known = record.setdefault(one["what"], {"before": one["before"]})
        known["after"] = one["after"]
    files.write_atomic(RECORD, json.dumps(record, indent=1, sort_keys=True).encode(), 0o600)
