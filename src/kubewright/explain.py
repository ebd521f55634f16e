"""Why a service did not come up: its last words and the likely cause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN_LINES = 15

# Log line -> what it usually means. First match wins; ordered from specific to general.
_CAUSES: Sequence[tuple[str, str]] = (
    (r"address already in use", "another process holds the port: see `ss -ltnp`"),
    (r"too many open files", "a limit is reached: of open files (`ulimit -n`), or of inotify instances, which all "
     "containers of a host share (fs.inotify.max_user_instances)"),
    (r"no space left on device", "the disk is full: see `df -h`"),
    (r"certificate has expired|not yet valid", "a certificate expired or the clock is off: run --tags sysprep,pki"),
    (r"certificate signed by unknown authority", "its CA is another one: run --tags pki"),
    (r"remote error: tls: bad certificate|certificate is valid for", "the peer refused it: run --tags pki"),
    (r"permission denied", "the service may not read one of its files: see the path in the log lines"),
    (r"cluster ID mismatch|has already been bootstrapped", "this member holds data of another etcd cluster in its data "
     "directory: move the directory away if that data is not needed"),
    (r"permanently removed from the cluster", "a removal has taken this member out of etcd: finish it with "
     "playbooks/ops/remove.yml, then add the machine anew"),
    (r"publish error|etcdserver: request timed out|no leader", "too few etcd members reach each other: "
     "look at the other members and at port 2380 between the machines"),
    (r"unknown flag", "this binary does not know a flag: does its version match kube_version?"),
    (r"exec format error", "the binary is for another processor architecture"),
    (r"error while loading shared libraries", "the binary needs a shared library that the machine lacks"),
    (r"running with swap on is not supported", "swap is on: run --tags sysprep"),
    (r"cgroup driver|cgroups? .*(not found|no such file|mountpoint)",
     "the cgroup driver or hierarchy does not fit: compare docker's and the kubelet's cgroup driver"),
    (r"context deadline exceeded|connection refused", "something that it needs does not answer: run the stages "
     "before this one, and look whether a firewall is in between"),
)  # fmt: skip


def likely_cause(lines: Sequence[str]) -> tuple[str, str]:
    """The first known cause that a log line points to, and the last such line; empty texts when none does."""
    for pattern, cause in _CAUSES:
        for line in reversed(lines):
            if re.search(pattern, line, re.IGNORECASE):
                return cause, line
    return "", ""


def failure(host: str, evidence: Mapping[str, Any]) -> str:
    """The message for a service that did not become healthy: reason, likely cause, last log lines, where to look."""
    journal = [str(line)[:400] for line in evidence["journal"]]
    cause, line = likely_cause([*journal, str(evidence["reason"])])
    parts = [f"{evidence['unit']} on {host} did not become healthy: {evidence['reason']}"]
    last = journal[-_SHOWN_LINES:]
    if cause:
        parts.append(f"likely cause: {cause}")
        # A service that prints its manual after the error pushes it out of sight.
        parts += [f"because of: {line.strip()}"] if line in journal and line not in last else []
    parts.append("last log lines:")
    parts += [f"  {line}" for line in last] or ["  (the unit logged nothing)"]
    parts += _way_back(host, evidence)
    parts.append(f"more: journalctl -u {evidence['unit']} on {host}; the same command again resumes the run")
    return "\n".join(parts)


def _way_back(host: str, evidence: Mapping[str, Any]) -> list[str]:
    rollback = evidence.get("rollback")
    if not rollback:
        return []
    name = evidence["component"]
    if rollback["refused"]:
        return [f"{name} on {host} was not rolled back: {rollback['refused']}"]
    versions = ", ".join(f"{artifact} {version}" for artifact, version in sorted(rollback["to"].items()))
    if rollback["failure"]:
        before = versions or "its files of before"
        return [
            f"{name} on {host} was put back to {before}, and is not healthy with that either: {rollback['failure']}"
        ]
    before = f"{versions} with" if versions else "with"
    return [f"{name} on {host} was rolled back and is healthy again: it runs {before} the files of before"]
