"""The proof that pods reach each other: test objects, what to run in them, and how to read the answers. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

_PORT = 8080
_MARK = "kubewright"
LABEL = "app=kubewright-verify"
# A run that takes longer has been killed: its pods are nobody's any more.
_LONGEST = timedelta(minutes=15)


def leftovers(namespaces: Sequence[Mapping[str, Any]], own: str, now: datetime) -> list[str]:
    """Names of the namespaces to be removed: this run's `own`, and those of runs that must have been killed."""
    found = []
    for item in namespaces:
        name, made = item["metadata"]["name"], datetime.fromisoformat(item["metadata"]["creationTimestamp"])
        if name == own or now - made > _LONGEST:
            found.append(name)
    return found


def of_base(namespaces: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    """Names of the namespaces with this base: of runs that were killed, where only one is allowed at a time."""
    names = [str(item["metadata"]["name"]) for item in namespaces]
    return [name for name in names if re.fullmatch(rf"{re.escape(base)}-[0-9a-f]+", name)]


@dataclass(frozen=True)
class Result:
    """One probe: from where, to what, whether it answered, and how it was made (ping, http)."""

    source: str
    target: str
    address: str
    kind: str
    ok: bool
    milliseconds: float | None = None


def manifests(namespace: str, image: str) -> list[dict[str, Any]]:
    """Namespace, a DaemonSet of test pods on every node, and a Service in front of them."""
    labels = dict([LABEL.split("=")])
    # The first process of a container ignores SIGTERM unless it traps it, and then delays a machine's shutdown.
    serve = (
        f"mkdir -p /www && echo {_MARK} > /www/index.html && httpd -p {_PORT} -h /www && "
        "trap 'exit 0' TERM && while :; do sleep 3600 & wait $!; done"
    )
    container = {
        "name": "probe",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", serve],
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "probe", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "containers": [container],
                        "terminationGracePeriodSeconds": 0,
                        "automountServiceAccountToken": False,
                        "tolerations": [{"operator": "Exists"}],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "probe", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"protocol": "TCP", "port": 80, "targetPort": _PORT}]},
        },
    ]


def duplicates(pods: Mapping[str, str]) -> list[str]:
    """Pod addresses that occur twice. `pods`: node -> address."""
    owners: dict[str, list[str]] = {}
    for node, address in pods.items():
        owners.setdefault(address, []).append(node)
    return [
        f"{address} is the address of pods on {', '.join(nodes)}" for address, nodes in owners.items() if len(nodes) > 1
    ]


def probe_script(addresses: Sequence[str], service: str) -> str:
    """A POSIX shell script: pings every address, fetches from the Service; one line of result each."""
    lines = [
        f"ping -c 1 -W 2 {a} >/tmp/{a} 2>&1; echo ping {a} $? $(sed -n 's/.*time=\\([0-9.]*\\).*/\\1/p' /tmp/{a})"
        for a in addresses
    ]
    if service:
        # Not wget: with a time limit, that of Debian's static busybox crashes.
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {service} 80 2>/dev/null"
        # Several times: kube-proxy writes its rules in batches.
        tries = (
            f"bad=1; for n in 1 2 3 4 5 6 7 8 9; do if {ask} | grep -q {_MARK}; then bad=0; break; fi; sleep 1; done"
        )
        lines.append(f"{tries}; echo http {service} $bad")
    return "; ".join(lines)


def read_answers(source: str, output: str, names: Mapping[str, str]) -> list[Result]:
    """Results out of the script's output. `names`: address -> what it is called."""
    found = []
    for line in output.splitlines():
        match = re.fullmatch(r"(ping|http) (\S+) (\d+) ?([0-9.]*)", line.strip())
        if match:
            kind, address, status, time = match.groups()
            milliseconds = float(time) if time else None
            found.append(Result(source, names.get(address, address), address, kind, status == "0", milliseconds))
    return found


def table(results: Sequence[Result]) -> str:
    """The matrix for a person: a row per source, a column per target."""
    targets = list(dict.fromkeys(r.target for r in results))
    sources = list(dict.fromkeys(r.source for r in results))
    cells = {(r.source, r.target): _cell(r) for r in results}
    width = max([len(s) for s in sources] + [4])
    columns = [max(len(t), 8) for t in targets]
    head = " " * width + "  " + "  ".join(t.ljust(c) for t, c in zip(targets, columns, strict=True))
    rows = [
        source.ljust(width)
        + "  "
        + "  ".join(cells.get((source, t), "-").ljust(c) for t, c in zip(targets, columns, strict=True))
        for source in sources
    ]
    return "\n".join(line.rstrip() for line in [head, *rows])


def _cell(result: Result) -> str:
    if not result.ok:
        return "LOST"
    return f"{result.milliseconds:.2f} ms" if result.milliseconds is not None else "ok"


def versions(server: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs, a line each, as the API server (`/version`) and the nodes (`/api/v1/nodes`) say it themselves."""
    lines = [f"API server {server.get('gitVersion', 'unknown')}"]
    for node in nodes:
        info = node["status"]["nodeInfo"]
        lines.append(
            f"{node['metadata']['name']}: kubelet {info['kubeletVersion']}, kube-proxy {info['kubeProxyVersion']}, "
            f"{info['containerRuntimeVersion']}, {info['osImage']}, Linux {info['kernelVersion']}"
        )
    return lines


def report(results: Sequence[Result], problems: Sequence[str], versions_: Sequence[str]) -> str:
    """Everything as JSON."""
    ok = not problems and all(r.ok for r in results)
    data = {"ok": ok, "problems": list(problems), "versions": list(versions_), "results": [asdict(r) for r in results]}
    return json.dumps(data, indent=1)
