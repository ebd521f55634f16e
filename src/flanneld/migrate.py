"""`flanneld migrate`: copies the configuration and the leases of etcd's v2 store to its v3 store.

The two stores of one etcd share nothing, and flanneld 0.18 and newer read v3 only. A lease keeps the time that it has
left, a reservation stays one. What v3 has already is not touched, so running it again changes nothing.
"""

from __future__ import annotations

import sys
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from flanneld import options
from flanneld.errors import FlanneldError
from flanneld.etcd.transport import Cluster
from flanneld.etcd.v2 import EtcdV2Client, Node
from flanneld.etcd.v3 import EtcdClient, KeyValue
from flanneld.flags import Flag, parse, usage
from flanneld.subnet.lease import Lease, format_key, parse_lease
from flanneld.subnet.store import CONFIG, SUBNETS

FLAGS: Tuple[Flag, ...] = (
    *options.ETCD_FLAGS,
    Flag("dry-run", "bool", "false", "say what would be done, and do nothing"),
    Flag("force", "bool", "false", "write also over what v3 has with another value"),
)
_USAGE = """\
Usage: flanneld migrate [OPTION]...
Copies the network configuration and the leases below -etcd-prefix from etcd's v2 store to its v3 store.
"""


class Step(NamedTuple):
    """One key that is to be written: `ttl` seconds, None for ever; `revision` of what is there, 0 when nothing is."""

    name: str
    value: str
    ttl: Optional[int]
    revision: int


class Plan(NamedTuple):
    """What is to be written, what is there already, and what stays as it is though it differs, with the reason."""

    steps: Tuple[Step, ...]
    same: Tuple[str, ...]
    kept: Tuple[Tuple[str, str], ...]


def plan(old: Sequence[Node], new: Sequence[KeyValue], *, force: bool) -> Plan:
    """Return what is to be done; keys of both are relative to the prefix."""
    there = {item.key: item for item in new}
    leases = _leases({item.key: item.value for item in new})
    steps: List[Step] = []
    same: List[str] = []
    kept: List[Tuple[str, str]] = []
    for node in sorted(old):
        found = there.get(node.key)
        reason = _obstacle(node, leases)
        if node.key != CONFIG and not node.key.startswith(SUBNETS):
            kept.append((node.key, "it does not belong to flannel"))
        elif found is not None and found.value == node.value:
            same.append(node.key)
        elif reason:
            kept.append((node.key, reason))
        elif found is not None and not force:
            kept.append((node.key, "v3 has another value; -force writes over it"))
        else:
            steps.append(Step(node.key, node.value, node.ttl, found.revision if found is not None else 0))
    return Plan(tuple(steps), tuple(same), tuple(kept))


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Migrate as `words` say; returns 0, or 1 when there is nothing, or not all could be copied.

    Raises FlanneldError.
    """
    parsed = parse(FLAGS, words, environ)
    if parsed.help:
        sys.stderr.write(_USAGE + usage(FLAGS))
        return 0
    cluster = Cluster(options.etcd_options(parsed))
    prefix = options.prefix(parsed)
    start = f"{prefix}/"
    _, old = EtcdV2Client(cluster).collect(prefix, lambda node: node._replace(key=node.key[len(start) :]))
    client = EtcdClient(cluster)
    _, new = client.collect(start, lambda item: item._replace(key=item.key[len(start) :]))
    _say(f"etcd's v2 store has {len(old)} keys below {prefix or '/'}, its v3 store {len(new)}")
    if not any(node.key == CONFIG for node in old):
        _say(f"there is no {start}{CONFIG} in the v2 store: check -etcd-prefix")
        if not old and not new:
            return 1
    todo = plan(old, new, force=parsed.truth("force"))
    for name in todo.same:
        _say(f"{name}: is there already")
    for name, reason in todo.kept:
        _say(f"{name}: not copied: {reason}")
    failed = 0
    for step in todo.steps:
        how = "without expiry" if step.ttl is None else f"for {step.ttl} s"
        if parsed.truth("dry-run"):
            _say(f"{step.name}: would be copied {how}")
        elif _write(client, start, step):
            _say(f"{step.name}: copied {how}")
        else:
            failed += 1
            _say(f"{step.name}: not copied: it was changed meanwhile; run this again")
    return 1 if failed or todo.kept else 0


def _obstacle(node: Node, leases: Mapping[str, Lease]) -> str:
    """Return why a lease must not be copied, whatever it may write over; empty for what is no lease."""
    if not node.key.startswith(SUBNETS):
        return ""
    lease = parse_lease(node.key[len(SUBNETS) :], node.value)
    if lease is None or format_key(lease.subnets) != node.key[len(SUBNETS) :]:
        return "it is malformed"
    for name, other in leases.items():
        if name == node.key:
            continue
        if any(a.version == b.version and a.overlaps(b) for a in lease.subnets for b in other.subnets):
            return f"v3 has {name}, which overlaps"
        if other.attributes.public_ip == lease.attributes.public_ip:
            return f"v3 has {name} for {lease.attributes.public_ip} already"
    return ""


def _leases(values: Mapping[str, str]) -> Dict[str, Lease]:
    found = {}
    for name, value in values.items():
        lease = parse_lease(name[len(SUBNETS) :], value) if name.startswith(SUBNETS) else None
        if lease is not None:
            found[name] = lease
    return found


def _write(client: EtcdClient, start: str, step: Step) -> bool:
    number = 0 if step.ttl is None else client.grant(max(1, step.ttl))[0]
    try:
        if step.revision:
            written = client.replace(start + step.name, step.value, number, step.revision)
        else:
            written = client.create(start + step.name, step.value, number)
    except FlanneldError:
        _revoke(client, number)
        raise
    if written is None:
        _revoke(client, number)
    return written is not None


def _revoke(client: EtcdClient, number: int) -> None:
    # An attempt whose answer was lost may have succeeded.
    if number and not client.lease(number)[1]:
        client.revoke(number)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
