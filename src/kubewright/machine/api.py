"""The Kubernetes API as the machine reaches it: a list of requests, and objects brought to their manifests."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, Callable, Optional

from . import health

_MANAGER = "kubewright"
_POLL_SECONDS = 1.0
# An API server that restarts behind its health gate is back well within this time.
_SILENCE_SECONDS = 60.0


class ApiError(Exception):
    """The API refused a request or did not answer."""


class NoAnswerError(ApiError):
    """Nothing answers there, or the files to ask it with are not there yet."""


class Client:
    """One connection to an API server, authenticated by a client certificate.

    `server`: URL. `ca`, `cert`, `key`: paths.
    """

    def __init__(self, server: str, ca: str, cert: str, key: str) -> None:
        self._server = server
        try:
            self._connection = health.connect({"url": server, "ca": ca, "cert": cert, "key": key}, timeout=30)
        except FileNotFoundError as error:
            raise NoAnswerError(str(error)) from error

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Status and decoded body; ApiError when there is no answer."""
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body)
            headers["Content-Type"] = content_type
        try:
            self._connection.request(method, path, data, headers)
            reply = self._connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{self._server} does not answer: {error}; run --tags master first") from error
        try:
            return reply.status, json.loads(text)
        except ValueError:
            return reply.status, {"message": text.decode(errors="replace")}


class Patient:
    """A client that asks again for a while, by a new connection where one has broken.

    So it does when there is no answer, and when an API server fails by itself (5xx), as it does while its etcd elects a
    leader; but for POST, whose 5xx may be what it has to say (evictions with several budgets).
    """

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Optional[Client] = None

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """As `Client.request`, the last answer after a minute."""
        deadline = time.monotonic() + _SILENCE_SECONDS
        while True:
            try:
                if self._client is None:
                    self._client = self._connect()
                answer = self._client.request(method, path, body, content_type)
                if method == "POST" or answer[0] < 500 or time.monotonic() > deadline:
                    return answer
            except NoAnswerError:
                # A connection that has broken is of no more use.
                self._client = None
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)


def collection_path(manifest: dict[str, Any], plurals: dict[str, str]) -> str:
    """Path of the collection that an object belongs to, from apiVersion, kind and namespace."""
    version = manifest["apiVersion"]
    root = "/api/" + version if "/" not in version else "/apis/" + version
    namespace = manifest["metadata"].get("namespace")
    kind = manifest["kind"]
    plural = plurals.get(kind, kind.lower() + "s")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def _stable(thing: dict[str, Any]) -> dict[str, Any]:
    """An object without what changes by itself: its status, and the server's book-keeping."""
    metadata = {
        key: value
        for key, value in thing.get("metadata", {}).items()
        if key not in ("resourceVersion", "managedFields", "generation")
    }
    return {**{key: value for key, value in thing.items() if key not in ("status", "metadata")}, "metadata": metadata}


def shown(thing: Any) -> Any:
    """An object without what the server keeps for itself, and without secret values."""
    if not isinstance(thing, dict):
        return {}
    metadata = {
        k: v for k, v in thing.get("metadata", {}).items() if k in ("name", "namespace", "labels", "annotations")
    }
    shown = {k: v for k, v in thing.items() if k not in ("metadata", "status")}
    if thing.get("kind") == "Secret":
        shown = {k: v for k, v in shown.items() if k not in ("data", "stringData")}
    return {**shown, "metadata": metadata}


def reconcile(client: Client, objects: list[dict[str, Any]], check: bool) -> list[dict[str, Any]]:
    """Server-side apply of each manifest; returns what changed as [{name, kind, before, after}].

    With `check` the server computes the outcome without storing it.
    """
    changed = []
    for manifest in objects:
        path = f"{collection_path(manifest, {})}/{manifest['metadata']['name']}"
        status, before = client.request("GET", path)
        if status == 404:
            before = {}
        elif status != 200:
            raise ApiError(f"GET {path}: {status} {before.get('message')}")
        query = f"?fieldManager={_MANAGER}&force=true" + ("&dryRun=All" if check else "")
        status, after = client.request("PATCH", path + query, manifest, "application/apply-patch+yaml")
        if status not in (200, 201):
            if check and status == 404:
                # Its namespace would be made by the same run.
                after = manifest
            else:
                raise ApiError(f"apply {path}: {status} {after.get('message')}")
        if _stable(before) != _stable(after):
            entry = {"name": manifest["metadata"]["name"], "kind": manifest["kind"]}
            changed.append({**entry, "before": shown(before), "after": shown(after)})
    return changed
