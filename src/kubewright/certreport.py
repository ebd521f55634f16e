"""Every certificate of a cluster in one report: on machines, on the controller, and in the memory of services. Pure.

`kubepki.check` judges; here is only what it cannot know of other machines: where a certificate was seen, who uses it,
and whether a service still has one in memory that its file has replaced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import check, facts, issue
from kubepki.check import Finding, Judgement, Limits
from kubepki.errors import CertificateError
from kubepki.survey import Place, Sighting, Survey, Trouble

CONTROLLER = "controller"
# Certificates that a service makes for itself in memory, for a year from its start (client-go,
# cert.GenerateSelfSignedCertKey): unit -> the certificate of ours whose renewal restarts that service.
IN_MEMORY: Mapping[str, str] = {
    "kube-apiserver": "apiserver",
    "kube-controller-manager": "kube-controller-manager",
    "kube-scheduler": "kube-scheduler",
}
_SHOWN_MACHINES = 3


@dataclass(frozen=True)
class Seen:
    """A certificate at a place. `users`: the units that read it; `stale`: why it is to be restarted."""

    machine: str
    where: str
    index: int
    certificate: x509.Certificate
    users: tuple[str, ...] = ()
    entry: str = ""
    stale: str = ""
    served: bool = False


def served(machine: Mapping[str, Any], api_port: int) -> list[dict[str, Any]]:
    """What to ask a machine's services for, by its part in the cluster; see `machine.certs.serving`."""
    asked: list[dict[str, Any]] = []
    ssl, address = "/opt/kubernetes/ssl", machine["address"]
    if machine["is_etcd"]:
        for port, name in ((2379, "server"), (2380, "peer")):
            pair = {"cert": "/opt/etcd/ssl/peer.pem", "key": "/opt/etcd/ssl/peer-key.pem"}
            asked.append(
                {"unit": "etcd", "address": address, "port": port, "file": f"/opt/etcd/ssl/{name}.pem", **pair}
            )
    if machine["is_master"]:
        api = {"unit": "kube-apiserver", "address": "127.0.0.1", "port": api_port}
        asked.append({**api, "file": f"{ssl}/apiserver.pem"})
        # The API server talks to itself under this name, with a certificate of which there is no file.
        asked.append({**api, "server_name": "apiserver-loopback-client"})
        for unit, port in (("kube-controller-manager", 10257), ("kube-scheduler", 10259)):
            asked.append({"unit": unit, "address": "127.0.0.1", "port": port})
    if machine["is_node"]:
        file = f"{ssl}/kubelet/kubelet-server-current.pem"
        asked.append({"unit": "kubelet", "address": address, "port": 10250, "file": file})
    return asked


def of_machine(machine: str, found: Mapping[str, Any]) -> tuple[list[Seen], list[Trouble]]:
    """What a machine told (`machine.certs.collect`): certificates, and what cannot be read."""
    certificates: list[Seen] = []
    troubles: list[Trouble] = []
    for file in found["files"]:
        users = {
            name: known["ingredients"][file["path"]]
            for name, known in found["components"].items()
            if file["path"] in known["ingredients"]
        }
        outdated = sorted(
            name for name, digest in users.items() if digest != file["sha256"] and found["components"][name]["active"]
        )
        stale = f"{', '.join(outdated)} runs with the one before it: run site.yml, or restart it" if outdated else ""
        pieces = [("", file["pem"])] if file["pem"] else [(one["entry"], one.get("pem", "")) for one in file["entries"]]
        # What a kubeconfig names lies in a file of its own.
        for entry, pem in pieces:
            if not pem:
                continue
            try:
                loaded = issue.load_all(pem.encode(), file["path"])
            except CertificateError as error:
                troubles.append(Trouble("damaged", f"{machine}:{file['path']}", error.message))
                continue
            certificates += [
                Seen(machine, file["path"], number, one, _users(file["path"], users), entry, stale)
                for number, one in enumerate(loaded, 1)
            ]
    return [*certificates, *_served(machine, found, certificates, troubles)], troubles


def _users(path: str, known: Iterable[str]) -> tuple[str, ...]:
    # The kubelet looks after its own, so they are no inputs of its unit.
    return tuple(sorted(known)) or (("kubelet",) if path.startswith("/opt/kubernetes/ssl/kubelet/") else ())


def _served(machine: str, found: Mapping[str, Any], files: Sequence[Seen], troubles: list[Trouble]) -> Iterator[Seen]:
    first = {one.where: one.certificate for one in files if one.index == 1}
    for answer in found["served"]:
        where = f"{answer['where']}, in memory"
        if "pem" not in answer:
            troubles.append(
                Trouble("unreadable", f"{machine}:{answer['where']}", f"{answer['unit']}: {answer['error']}")
            )
            continue
        shown = x509.load_pem_x509_certificate(answer["pem"].encode())
        on_disk = first.get(answer["file"])
        stale = ""
        if on_disk is not None and on_disk != shown:
            stale = f"{answer['unit']} serves this one, and {answer['file']} is another: restart it"
        yield Seen(machine, where, 1, shown, (answer["unit"],), "", stale, served=True)


def of_controller(survey: Survey) -> list[Seen]:
    """What lies on the controller."""
    return [
        Seen(CONTROLLER, one.place.path, one.place.index, one.certificate, (), one.place.entry)
        for one in survey.sightings
        # What a kubeconfig names is a sighting of its own.
        if one.place.kubeconfig in ("", one.place.path)
    ]


def judge(found: Sequence[Seen], troubles: Sequence[Trouble], now: datetime, limits: Limits) -> Judgement:
    """All of it, soonest end first. The same file on several machines is one place."""
    places: dict[tuple[bytes, str, str, int, tuple[str, ...]], list[Seen]] = defaultdict(list)
    for one in found:
        encoded = one.certificate.public_bytes(Encoding.DER)
        places[encoded, one.where, one.entry, one.index, one.users].append(one)
    known: dict[bytes, facts.Facts] = {}
    sightings, stale = [], defaultdict(list)
    for (encoded, where, entry, index, users), those in places.items():
        if encoded not in known:
            known[encoded] = facts.of(those[0].certificate)
        used = f" ({', '.join(users)})" if users else ""
        path = f"{_some([one.machine for one in those])}: {where}{used}"
        place = Place(path, index, entry=entry)
        sightings.append(Sighting(place, those[0].certificate, known[encoded], encoded))
        for one in those:
            if one.stale:
                stale[path].append(Finding("warning", "restart-needed", f"{one.machine}: {one.stale}", path))
    judged = check.judge(Survey(tuple(sightings), tuple(troubles), (), len(places), 0), now, limits)
    return replace(
        judged,
        certificates=tuple(
            replace(
                one,
                spots=tuple(replace(s, findings=(*s.findings, *stale.get(s.place.path, ()))) for s in one.spots),
            )
            for one in judged.certificates
        ),
    )


def _some(machines: Iterable[str]) -> str:
    names = list(dict.fromkeys(machines))
    more = len(names) - _SHOWN_MACHINES
    return ", ".join(names[:_SHOWN_MACHINES]) + (f" and {more} more" if more > 0 else "")


def data(found: Sequence[Seen], judgement: Judgement) -> dict[str, Any]:
    """For programs: every certificate at every place of every machine, by days left."""
    now, limits = judgement.at, judgement.limits
    rows = []
    for one in found:
        left = (one.certificate.not_valid_after_utc - now).total_seconds() / 86400
        state = "critical" if left < limits.critical else "warning" if left < limits.warn or one.stale else "ok"
        rows.append(
            {
                "machine": one.machine,
                "where": one.where,
                "entry": one.entry,
                "index": one.index,
                "used_by": list(one.users),
                "served": one.served,
                "subject": one.certificate.subject.rfc4514_string(),
                "issuer": one.certificate.issuer.rfc4514_string(),
                "serial": f"{one.certificate.serial_number:x}",
                "not_after": one.certificate.not_valid_after_utc.isoformat(),
                "days_left": round(left, 3),
                "state": state,
                "restart_needed": one.stale,
            }
        )
    return {
        "checked_at": now.isoformat(),
        "state": judgement.state,
        "warn_days": limits.warn,
        "critical_days": limits.critical,
        "certificates": sorted(rows, key=lambda row: (row["days_left"], row["machine"], row["where"])),
        "findings": [
            {"severity": one.severity, "kind": one.kind, "path": one.path, "text": one.text}
            for one in judgement.findings
            if one.severity != "info"
        ],
    }


def failure(judgement: Judgement) -> str:
    """Why the report fails; empty when nothing is a warning or worse."""
    bad = [one for one in judgement.findings if one.severity in ("warning", "critical")]
    if not bad:
        return ""
    kinds: dict[str, int] = defaultdict(int)
    for one in bad:
        kinds[one.kind] += 1
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return (
        f"{judgement.state}: {counts} (warning below {judgement.limits.warn:g} days, critical below "
        f"{judgement.limits.critical:g}); what is said of each is in the table above\n"
        "  playbooks/ops/renew.yml renews certificates of this controller's CAs, playbooks/ops/rotate_ca.yml CAs; "
        "kubelets renew their own, and --tags bootstrap approves what they ask for"
    )


def to_renew(found: Sequence[Seen], now: datetime, within_days: float) -> list[str]:
    """Names of certificates whose renewal restarts services with a short-lived certificate in their memory."""
    names = {
        IN_MEMORY[unit]
        for one in found
        if one.served and (one.certificate.not_valid_after_utc - now).total_seconds() < within_days * 86400
        for unit in one.users
        if unit in IN_MEMORY
    }
    return sorted(names)
