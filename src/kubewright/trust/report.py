"""The result of first contact for a person: one table, the host keys to compare, what failed, what to do next. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from kubewright.trust.contact import Contact

_HEAD = ("host", "login", "reachable", "host key", "authenticated", "key installed", "root", "Python", "OS")
# Ansible takes the outer quotes away, ssh the inner ones: a path may hold spaces.
SSH_ARGUMENTS = (
    """ansible_ssh_common_args: -o 'UserKnownHostsFile="{{ inventory_dir }}/known_hosts"'"""
    " -o StrictHostKeyChecking=yes"
)


def _row(contact: Contact, *, check: bool) -> tuple[str, ...]:
    if contact.verdict is None:
        state = "-"
    elif contact.verdict.state == "new":
        state = "would be recorded" if check else "NOT RECORDED" if contact.unrecorded else "recorded"
    else:
        state = "known" if contact.verdict.state == "known" else contact.verdict.state.upper()
    machine = contact.machine
    return (
        contact.host,
        contact.login,
        "yes" if contact.reachable else "NO",
        state,
        contact.means or ("NO" if contact.verdict else "-"),
        contact.key or "-",
        contact.root or "-",
        (machine.python or "none") if machine else "-",
        f"{machine.os or 'unknown'}, {machine.architecture}" if machine else "-",
    )


def table(contacts: Sequence[Contact], *, check: bool) -> str:
    """A row per host, failed ones too."""
    rows = [_HEAD, *(_row(contact, check=check) for contact in contacts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def new_keys(contacts: Sequence[Contact]) -> str:
    """Fingerprints of host keys that were not on file, to be compared with the machines' consoles; empty: none."""
    new = [c for c in contacts if c.records and c.host_key and c.verdict]
    if not new:
        return ""
    width = max(len(c.host) for c in new)
    lines = ["host keys seen for the first time (compare: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)"]
    for c in new:
        if not c.host_key or not c.verdict:
            continue
        elsewhere = f" (as in {c.verdict.confirmed[0].path})" if c.verdict.confirmed else ""
        lines.append(f"  {c.host.ljust(width)}  {c.host_key.algorithm} {c.host_key.fingerprint}{elsewhere}")
    return "\n".join(lines)


def next_steps(contacts: Sequence[Contact], inventory: str, *, check: bool) -> str:
    """What is left to do for the operator; `inventory`: its directory, as one would type it."""
    notes = [f"  {c.host}: {note}" for c in contacts for note in c.notes]
    unused = [c for c in contacts if c.target and not c.target.uses_own and c.host_key]
    if unused:
        notes += [
            f"  make runs use the recorded host keys, in {inventory}/group_vars/all/ssh.yml:",
            f"    {SSH_ARGUMENTS}",
        ]
    if not any(c.problems for c in contacts):
        playbook, options = ("playbooks/trust.yml", "") if check else ("site.yml", " --check --diff")
        notes.append(f"  ansible-playbook {playbook} -i {shlex.quote(inventory)}{options}")
    return "\n".join(["next", *notes]) if notes else ""


def failures(contacts: Sequence[Contact]) -> str:
    """Every failure of every host, each with what to do; empty when there is none."""
    failed = [c for c in contacts if c.problems]
    if not failed:
        return ""
    lines = [f"{len(failed)} of {len(contacts)} hosts failed:"]
    for contact in failed:
        for problem in contact.problems:
            lines.append(f"  - {contact.host}: {problem.message}")
            lines += [f"      {problem.hint}"] if problem.hint else []
    return "\n".join(lines)
