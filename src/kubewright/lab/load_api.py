"""A client that writes to the API all the time, as a controller would: it tries again for a while, and counts."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kubewright import matrix
from kubewright.errors import UserError
from kubewright.machine.api import collection_path

NAMESPACE = "kubewright-load"
_INTERVAL = 0.1  # seconds between two writes
_TIMEOUT = 2.0  # seconds for one attempt
_PATIENCE = 30.0  # seconds until a write has failed for good
_PAGE = 500


@dataclass
class Tally:
    """What became of the writes. `outage`: the longest time that one had to be tried again for, in seconds."""

    writes: int = 0
    retried: int = 0
    failed: int = 0
    outage: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """What is reported."""
        return {
            "writes": self.writes,
            "retried": self.retried,
            "failed": self.failed,
            "longest_outage_seconds": round(self.outage, 2),
            "reasons": dict(self.reasons.most_common(5)),
        }


class Api:
    """Requests with the administrator's kubeconfig, to one server after the other while they fail."""

    def __init__(self, kubeconfig: Path, servers: Sequence[str] = ()) -> None:
        """`servers`: URLs instead of the kubeconfig's own."""
        self._kubeconfig = kubeconfig
        self._given = list(servers)
        self._servers: list[str] = []
        self._stamp: tuple[int, int] | None = None
        self._tls: ssl.SSLContext
        self._connection: http.client.HTTPSConnection | None = None
        self._follow()

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded body of one attempt; OSError and http.client.HTTPException when there is no answer."""
        if self._connection is None:
            url = urlsplit(self._servers[0])
            self._connection = http.client.HTTPSConnection(
                str(url.hostname), url.port, timeout=_TIMEOUT, context=self._tls
            )
        data = None if body is None else json.dumps(body)
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        self._connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json"})
        reply = self._connection.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if text.startswith(b"{") else {"message": text.decode(errors="replace")}

    def turn(self) -> None:
        """After a failure: begin with the next server, and with the kubeconfig as it is now."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._servers.append(self._servers.pop(0))
        self._follow()

    def _follow(self) -> None:
        try:
            found = self._kubeconfig.stat()
            if self._stamp == (found.st_mtime_ns, found.st_ino):
                return
            content = yaml.safe_load(self._kubeconfig.read_text())
        except OSError as error:
            raise UserError(f"{self._kubeconfig}: {error.strerror}", "run site.yml first") from None
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]))
            pair.write(base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        self._tls, self._stamp = context, (found.st_mtime_ns, found.st_ino)
        self._servers = self._servers or self._given or [cluster["server"]]


class Writer:
    """Writes ConfigMaps until it is stopped."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._acknowledged: set[str] = set()
        self.tally = Tally()

    def run(self, ending: threading.Event) -> None:
        """Write until `ending` is set."""
        while not ending.is_set():
            self._write(f"write-{self.tally.writes + self.tally.failed:06d}")
            ending.wait(_INTERVAL)

    def _write(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"name": name}}
        begin = time.monotonic()
        again = False
        while True:
            try:
                status, answer = self._api.request("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", body)
                # There already: an attempt whose answer was lost.
                if status == 201 or (status == 409 and again):
                    break
                reason = f"{status} {answer.get('message', '')}"[:160]
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"[:160]
            self.tally.reasons[reason] += 1
            again = True
            if time.monotonic() - begin > _PATIENCE:
                self.tally.failed += 1
                self.tally.outage = max(self.tally.outage, time.monotonic() - begin)
                self._api.turn()
                return
            time.sleep(_INTERVAL)
            self._api.turn()
        self.tally.writes += 1
        self._acknowledged.add(name)
        if again:
            self.tally.retried += 1
            self.tally.outage = max(self.tally.outage, time.monotonic() - begin)

    def lost(self) -> int:
        """How many objects were acknowledged and are not there, or hold something else."""
        found: dict[str, str] = {}
        rest = ""
        while True:
            path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?limit={_PAGE}&continue={rest}"
            _, answer = patiently(self._api, "GET", path)
            found.update((one["metadata"]["name"], one.get("data", {}).get("name", "")) for one in answer["items"])
            rest = answer["metadata"].get("continue") or ""
            if not rest:
                return sum(found.get(name) != name for name in self._acknowledged)


def patiently(api: Api, method: str, path: str, body: Any = None, good: Sequence[int] = (200, 201)) -> tuple[int, Any]:
    """A request that is tried again until its status is a good one; `UserError` after half a minute."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            status, answer = api.request(method, path, body)
            if status in good:
                return status, answer
            reason = f"{status} {answer.get('message', '')}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        if time.monotonic() > end:
            raise UserError(f"{method} {path}: {reason}", "does the API answer?")
        time.sleep(_INTERVAL)
        api.turn()


def wait_until_gone(api: Api, path: str, seconds: float) -> None:
    """Wait for the end of an object that is being deleted; `UserError` when it does not come in time."""
    end = time.monotonic() + seconds
    while patiently(api, "GET", path, good=(200, 404))[1].get("metadata", {}).get("deletionTimestamp"):
        if time.monotonic() > end:
            raise UserError(f"{path} has been ending for more than {seconds:g} s", "look what keeps it there")
        time.sleep(_INTERVAL)


def objects(token: str, image: str, *, with_pods: bool) -> list[tuple[str, dict[str, Any]]]:
    """(path, manifest) of the namespace, and of the pods of the ping matrix, whose environment tells who they are."""
    namespace, pods, _service = matrix.manifests(NAMESPACE, image)
    fields = {"NODE": "spec.nodeName", "POD_IP": "status.podIP"}
    environment: list[dict[str, Any]] = [{"name": "LOAD", "value": token}]
    environment += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    pods["spec"]["template"]["spec"]["containers"][0]["env"] = environment
    wanted = [namespace, pods] if with_pods else [namespace]
    return [(f"{collection_path(one, {})}/{one['metadata']['name']}", one) for one in wanted]
