"""A client of Kubernetes' API for what flannel needs of it: nodes, and the pod that flanneld runs in.

One client object belongs to one thread. Objects are decoded JSON as the API server sends them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import quote, urlencode, urlsplit

from flanneld import __version__
from flanneld.kube.errors import GoneError, KubeError, KubeUnavailableError
from flanneld.kube.kubeconfig import Access
from flanneld.metrics import FIGURES

TIMEOUT = 10.0
"""Seconds for one request."""

PAGE = 100
"""Nodes asked for at once: an API server sends 10 kB and more for each, and pages bound what is in memory."""

WATCH = 100
"""Seconds after which the API server ends a watch; it is then opened again from where it ended."""

QUIET = 120.0
"""Seconds a watch may be silent before it is opened anew: an API server that hangs does not end it."""

_SAID = 300  # characters of an answer that a message shows

Node = Dict[str, Any]


class Page(NamedTuple):
    """A part of the list of nodes, and the version of the whole list, which a watch goes on from."""

    nodes: Tuple[Node, ...]
    version: str


class Event(NamedTuple):
    """A change: ADDED, MODIFIED or DELETED with the node, BOOKMARK with nothing but its version in it.

    The first event of a watch has the kind OPEN and an empty node: the API server has agreed.
    """

    kind: str
    node: Node


class _Request(NamedTuple):
    """What is asked for; `verb` and `resource` are RBAC's words for it."""

    verb: str
    resource: str
    method: str
    path: str
    body: Optional[bytes] = None


class KubeClient:
    """Requests to the API server; raises KubeUnavailableError when it cannot be asked and KubeError when it says no."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._url = urlsplit(access.server)
        self._connection: Optional[http.client.HTTPConnection] = None
        self._sock: Optional[socket.socket] = None  # the connection lets go of it when the server announces its end
        self._context: Optional[ssl.SSLContext] = None
        self._files: Tuple[Tuple[int, int], ...] = ()

    def node(self, name: str) -> Node:
        """Return a node; KubeError with the status 404 when there is none."""
        return self._call(_Request("get", "nodes", "GET", f"/api/v1/nodes/{quote(name, safe='')}"))

    def pod(self, namespace: str, name: str) -> Dict[str, Any]:
        """Return a pod; KubeError with the status 404 when there is none."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
        return self._call(_Request("get", "pods", "GET", path))

    def patch_node(self, name: str, patch: Mapping[str, Any]) -> Node:
        """Write part of a node by a strategic merge patch of its status, and return the node as it is then."""
        body = json.dumps(patch, separators=(",", ":")).encode()
        path = f"/api/v1/nodes/{quote(name, safe='')}/status"
        return self._call(_Request("patch", "nodes/status", "PATCH", path, body))

    def nodes(self, page: int = PAGE) -> Iterator[Page]:
        """Yield all nodes, as they were at one moment, by pages. GoneError when that took too long."""
        more = ""
        while True:
            query = {"limit": str(page), **({"continue": more} if more else {})}
            answer = self._call(_Request("list", "nodes", "GET", f"/api/v1/nodes?{urlencode(query)}"))
            about = _object(answer.get("metadata"))
            items = answer.get("items") or []
            yield Page(tuple(item for item in items if isinstance(item, dict)), str(about.get("resourceVersion", "")))
            more = str(about.get("continue") or "")
            if not more:
                return

    def version(self) -> str:
        """Return the version that a list of all nodes would have now."""
        return next(self.nodes(1)).version

    def watch_nodes(self, version: str, seconds: int = WATCH) -> Iterator[Event]:
        """Yield what happens to nodes after `version` for some seconds; the first event is OPEN.

        Ends when the API server ends the watch or its connection, or when it was silent for too long: go on from the
        version of the last event. Raises GoneError when the version is too old, KubeUnavailableError when what comes
        is no watch.
        """
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        request = _Request("watch", "nodes", "GET", f"/api/v1/nodes?{urlencode(query)}")
        response = self._answer(request)
        try:
            yield Event("OPEN", {})
            if self._sock is not None:
                self._sock.settimeout(QUIET)
            while True:
                line = response.readline()
                if not line:
                    return
                yield _event(line)
        except socket.timeout:
            return
        except (OSError, http.client.HTTPException) as error:
            raise KubeUnavailableError(f"the watch of the nodes broke: {error or type(error).__name__}") from None
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._sock = None

    def _call(self, request: _Request) -> Dict[str, Any]:
        response = self._answer(request)
        try:
            found = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            FIGURES.add("flannel_store_failures_total")
            raise KubeUnavailableError(f"the API server's answer broke off: {error or type(error).__name__}") from None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.close()
            raise KubeError(
                f"{self._access.server} answered with something that is not a Kubernetes object",
                f"is it an API server? It is from {self._access.source}",
            )
        return found

    def _answer(self, request: _Request) -> http.client.HTTPResponse:
        started = time.monotonic()
        try:
            response = self._send(request)
            if response.status not in {200, 201}:
                try:
                    body = response.read()
                except (OSError, http.client.HTTPException):
                    body = b""
                raise refusal(request.verb, request.resource, response.status, body, self._access)
        except KubeError:
            FIGURES.add("flannel_store_failures_total")
            self.close()
            raise
        FIGURES.observe("flannel_store_request_seconds", time.monotonic() - started)
        return response

    def _send(self, request: _Request) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": f"flanneld/{__version__}"}
        token = self._access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if request.body is not None:
            headers["Content-Type"] = "application/strategic-merge-patch+json"
        if self._connection is not None and self._connection.sock is None:
            self.close()  # its last answer was to be the last: "Connection: close", or HTTP/1.0
        reused = self._connection is not None
        try:
            try:
                return self._exchange(request, headers)
            except (ConnectionError, http.client.RemoteDisconnected, ssl.SSLError):
                if not reused:
                    raise
            # The server had closed the kept connection; all requests may be sent twice.
            self.close()
            return self._exchange(request, headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from None

    def _exchange(self, request: _Request, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        if self._sock is not None:
            self._sock.settimeout(TIMEOUT)
        self._connection.request(request.method, self._url.path + request.path, request.body, dict(headers))
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        host, port = str(self._url.hostname), self._url.port or (443 if secure else 80)
        context = self._tls() if secure else None
        sock = socket.create_connection((host, port), TIMEOUT)
        try:
            _keep_alive(sock)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=self._access.server_name or host)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        connection.sock = self._sock = sock
        connection.auto_open = 0  # it would come back without TLS
        return connection

    def _tls(self) -> ssl.SSLContext:
        """Return the TLS settings, made anew when one of their files has changed: kubelets renew certificates."""
        access = self._access
        files = tuple(_signature(name) for name in (access.ca_file, access.cert_file, access.key_file) if name)
        if self._context is None or files != self._files:
            self._context, self._files = tls_context(access), files
        return self._context

    def _unavailable(self, error: Exception) -> KubeUnavailableError:
        server = self._access.server
        if isinstance(error, ssl.SSLCertVerificationError):
            return KubeUnavailableError(
                f"the certificate of the API server {server} is not accepted: {error.verify_message}",
                _certificate_hint(error, self._access),
            )
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return KubeUnavailableError(f"the API server {server} does not speak TLS", "is it http:// or another port?")
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or str(error)).lower().replace("_", " ")
            return KubeUnavailableError(f"the API server {server} ended the TLS handshake: {reason}")
        if isinstance(error, socket.gaierror):
            return KubeUnavailableError(f"the API server's name {self._url.hostname} cannot be resolved", "check DNS")
        if isinstance(error, socket.timeout):
            return KubeUnavailableError(f"the API server {server} does not answer within {TIMEOUT:g} s")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return KubeUnavailableError(f"the API server {server} cannot be reached: {reason}")


def tls_context(access: Access) -> ssl.SSLContext:
    """Return the TLS settings; raises KubeError when a file or its content cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.ca_file or access.ca_data:
        try:
            context.load_verify_locations(access.ca_file or None, cadata=access.ca_data or None)
        except (OSError, ValueError) as error:
            what = access.ca_file or f"certificate-authority-data of {access.source}"
            raise KubeError(f"{what} cannot be used: {_reason(error)}", "it must be certificates in PEM") from None
    else:
        context.load_default_certs()
    if access.cert_file or access.cert_data:
        try:
            with _named(access.cert_file, access.cert_data) as cert, _named(access.key_file, access.key_data) as key:
                # An encrypted key must not ask for its password at a terminal.
                context.load_cert_chain(cert, key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise KubeError(
                f"the client certificate and key of {access.source} cannot be used: {_reason(error)}",
                "both must be PEM, the key unencrypted and that of the certificate",
            ) from None
    return context


def refusal(verb: str, resource: str, status: int, body: bytes, access: Access) -> KubeError:
    """Return what an answer other than 200 means; `verb` and `resource` are RBAC's words for what was asked."""
    try:
        said = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = " ".join(body.decode(errors="replace").split()) or http.client.responses.get(status, "")
    said = said[:_SAID]
    if status == 401:
        hint = (
            f"{access.credentials} is expired, or of another cluster"
            if access.credentials
            else "no token and no client certificate is given; use -kubeconfig-file"
        )
        return KubeError(f"the API server does not know who flanneld is (401): {said}", hint, status)
    if status == 403:
        rule = f'apiGroups: [""], resources: ["{resource}"], verbs: ["{verb}"]'
        return KubeError(
            f"the API server does not let flanneld {verb} {resource} (403): {said}",
            f"its ClusterRole needs the rule {rule}",
            status,
        )
    if status == 410:
        return GoneError(f"the API server has forgotten what it was asked about (410): {said}", status=status)
    if status == 400 and access.server.startswith("http:") and "HTTPS" in said:
        return KubeUnavailableError(f"the API server {access.server} wants TLS", "write https://", status)
    if status == 429 or status >= 500:
        return KubeUnavailableError(f"the API server cannot {verb} {resource} now ({status}): {said}", status=status)
    return KubeError(f"the API server did not {verb} {resource} ({status}): {said}", status=status)


def _event(line: bytes) -> Event:
    try:
        raw = json.loads(line)
        kind, thing = str(raw["type"]), raw["object"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KubeUnavailableError("the watch of the nodes sent something that is no event") from None
    if not isinstance(thing, dict):
        raise KubeUnavailableError("the watch of the nodes sent an event without an object")
    if kind == "ERROR":
        said = str(thing.get("message", ""))[:_SAID]
        if thing.get("code") == 410:
            raise GoneError(f"the watch of the nodes cannot go on: {said}", status=410)
        raise KubeUnavailableError(f"the API server ended the watch of the nodes: {said}")
    return Event(kind, thing)


def _object(value: object) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _certificate_hint(error: ssl.SSLCertVerificationError, access: Access) -> str:
    trusted = access.ca_file or (f"the certificate-authority-data of {access.source}" if access.ca_data else "")
    if error.verify_code in {10, 9}:  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
        return "renew it, or set this machine's clock"
    if error.verify_code in {62, 64}:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return "use a name or an address that the certificate has, or set tls-server-name in the kubeconfig"
    if trusted:
        return f"the authority that is trusted is {trusted}"
    return "no certificate-authority is given, so the machine's own are trusted; use -kubeconfig-file"


def _keep_alive(sock: socket.socket) -> None:
    # A watch is silent for minutes: the kernel has to notice a machine that was switched off.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _signature(name: str) -> Tuple[int, int]:
    try:
        found = Path(name).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).lower().replace("_", " ")


@contextlib.contextmanager
def _named(file: str, data: str) -> Iterator[str]:
    """Give content a file name without a file on disk: OpenSSL reads certificates and keys from files only."""
    if not data:
        yield file
        return
    number = os.memfd_create("pem")
    try:
        os.write(number, data.encode())
        os.lseek(number, 0, os.SEEK_SET)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
