"""A client of etcd's v3 API over its JSON gateway, with nothing but the standard library.

One client object belongs to one thread. Every call tries each endpoint once, beginning with the one that answered
last. Keys and values are base64 on the wire and text here; 64-bit numbers are strings on the wire.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit

from flanneld.errors import CompactedError, EtcdError, EtcdUnavailableError, UsageError
from flanneld.options import EtcdOptions

TIMEOUT = 3.0
"""Seconds for one request to one endpoint."""

QUIET = 60.0
"""Seconds a watch may be silent before it is opened anew: a stopped member answers keep-alives but sends nothing."""

_UNAUTHENTICATED = 16
_UNAVAILABLE = 14
_Connection = Union[http.client.HTTPConnection, http.client.HTTPSConnection]


class KeyValue(NamedTuple):
    """One key as read; `lease` is 0 when it does not expire."""

    key: str
    value: str
    revision: int
    lease: int


class Snapshot(NamedTuple):
    """All keys below a prefix at one revision."""

    revision: int
    items: Tuple[KeyValue, ...]


class Event(NamedTuple):
    """A change: `deleted` also when the key's lease ran out, then `item` has only the key and the revision."""

    deleted: bool
    item: KeyValue


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")


def _range_end(prefix: str) -> str:
    raw = prefix.encode()
    return base64.b64encode(raw[:-1] + bytes([raw[-1] + 1])).decode()


def _key_value(raw: Mapping[str, str]) -> KeyValue:
    return KeyValue(
        _decode(raw["key"]),
        _decode(raw.get("value", "")),
        int(raw.get("mod_revision", 0)),
        int(raw.get("lease", 0)),
    )


def tls_context(options: EtcdOptions) -> Optional[ssl.SSLContext]:
    """Return the TLS settings, None when every endpoint is plain HTTP; raises UsageError on unusable files."""
    if not any(endpoint.startswith("https:") for endpoint in options.endpoints):
        return None
    try:
        context = ssl.create_default_context(cafile=options.cafile or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"-etcd-cafile {options.cafile} cannot be used: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.certfile:
        try:
            context.load_cert_chain(options.certfile, options.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"-etcd-certfile {options.certfile} with -etcd-keyfile {options.keyfile} cannot be used: {error}",
                "both must be PEM, and the key must belong to the certificate",
            ) from None
    return context


class EtcdClient:
    """Requests to etcd; raises EtcdUnavailableError when no endpoint can be asked and EtcdError when one says no."""

    def __init__(self, options: EtcdOptions, context: Optional[ssl.SSLContext]) -> None:
        self._options = options
        self._context = context
        self._current = 0
        self._connection: Optional[_Connection] = None
        self._token = ""

    def get(self, key: str) -> Optional[KeyValue]:
        """Return one key, None when there is none."""
        answer = self._call("/v3/kv/range", {"key": _encode(key)})
        return next((_key_value(raw) for raw in answer.get("kvs", [])), None)

    def list(self, prefix: str) -> Snapshot:
        """Return all keys that begin with `prefix`."""
        answer = self._call("/v3/kv/range", {"key": _encode(prefix), "range_end": _range_end(prefix)})
        return Snapshot(int(answer["header"]["revision"]), tuple(map(_key_value, answer.get("kvs", []))))

    def put(self, key: str, value: str, lease: int = 0) -> int:
        """Write a key whatever it was; returns the revision."""
        answer = self._call("/v3/kv/put", {"key": _encode(key), "value": _encode(value), "lease": str(lease)})
        return int(answer["header"]["revision"])

    def create(self, key: str, value: str, lease: int) -> Optional[int]:
        """Write a key that must not exist; returns the revision, None when it does."""
        compare = {"key": _encode(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
        return self._put_if(compare, key, value, lease)

    def replace(self, key: str, value: str, lease: int, revision: int) -> Optional[int]:
        """Write a key last modified at `revision`; returns the new revision, None when it changed meanwhile."""
        compare = {"key": _encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        return self._put_if(compare, key, value, lease)

    def delete(self, key: str, revision: int) -> bool:
        """Delete a key last modified at `revision`; False when it changed meanwhile."""
        body = {
            "compare": [{"key": _encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}],
            "success": [{"request_delete_range": {"key": _encode(key)}}],
        }
        return bool(self._call("/v3/kv/txn", body).get("succeeded", False))

    def grant(self, seconds: int) -> int:
        """Return the number of a new lease that lives `seconds`."""
        return int(self._call("/v3/lease/grant", {"TTL": str(seconds)})["ID"])

    def revoke(self, lease: int) -> None:
        """End a lease; its keys vanish. A lease that is gone already is no error."""
        try:
            self._call("/v3/lease/revoke", {"ID": str(lease)})
        except EtcdUnavailableError:
            raise
        except EtcdError as error:
            if error.code != 5:  # NOT_FOUND
                raise

    def watch(self, prefix: str, revision: int) -> Iterator[Tuple[int, Tuple[Event, ...]]]:
        """Yield (revision seen, events) for changes from `revision` on, first an empty batch when the watch stands.

        Ends when the watch was silent for QUIET seconds: call again from where it ended. Raises CompactedError
        when `revision` is gone, EtcdUnavailableError when the connection breaks.
        """
        create = {
            "key": _encode(prefix),
            "range_end": _range_end(prefix),
            "start_revision": str(revision),
            "progress_notify": True,
        }
        try:
            response = self._any_endpoint("/v3/watch", {"create_request": create}, QUIET)
        except EtcdError as error:
            if error.code == _UNAUTHENTICATED:
                self._token = ""
            raise
        try:
            yield from _watch_lines(response, revision - 1)
        except socket.timeout:
            return
        except (OSError, http.client.HTTPException) as error:
            self._current += 1
            raise EtcdUnavailableError(f"the watch on etcd broke: {error or type(error).__name__}") from None
        except EtcdError:
            self._token = ""  # the token may have expired; another one costs one request
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _put_if(self, compare: Mapping[str, str], key: str, value: str, lease: int) -> Optional[int]:
        put = {"key": _encode(key), "value": _encode(value), "lease": str(lease)}
        answer = self._call("/v3/kv/txn", {"compare": [compare], "success": [{"request_put": put}]})
        return int(answer["header"]["revision"]) if answer.get("succeeded", False) else None

    def _call(self, path: str, body: Mapping[str, Any]) -> Dict[str, Any]:
        try:
            return self._answer(path, body)
        except EtcdError as error:
            if error.code != _UNAUTHENTICATED or not self._token:
                raise
            self._token = ""  # it expired, or etcd was restarted; the next attempt asks for another
            return self._answer(path, body)

    def _answer(self, path: str, body: Mapping[str, Any]) -> Dict[str, Any]:
        response = self._any_endpoint(path, body, TIMEOUT)
        try:
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise EtcdUnavailableError(f"{self._endpoint()}: the answer broke off: {error}") from None
        if not isinstance(answer, dict):
            raise EtcdError(f"{self._endpoint()}: {path} answered something that is not etcd's")
        return answer

    def _any_endpoint(self, path: str, body: Mapping[str, Any], timeout: float) -> http.client.HTTPResponse:
        failures: List[str] = []
        for _ in self._options.endpoints:
            try:
                if self._options.username and not self._token and path != "/v3/auth/authenticate":
                    self._authenticate()
                return self._send(path, body, timeout)
            except EtcdUnavailableError as error:
                failures.append(error.message)
                self.close()
                self._current += 1
        raise EtcdUnavailableError("etcd cannot be reached: " + "; ".join(failures))

    def _authenticate(self) -> None:
        login = {"name": self._options.username, "password": self._options.password}
        response = self._send("/v3/auth/authenticate", login, TIMEOUT)
        try:
            self._token = str(json.loads(response.read())["token"])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise EtcdUnavailableError(f"{self._endpoint()}: no token was given: {error}") from None

    def _send(self, path: str, body: Mapping[str, Any], timeout: float) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if path == "/v3/watch":
            headers["Grpc-Metadata-hasleader"] = "true"  # a member without quorum ends the watch
        if self._token and path != "/v3/auth/authenticate":
            headers["Authorization"] = self._token
        content = json.dumps(body).encode()
        fresh = self._connection is None
        try:
            return self._exchange(path, content, headers, timeout)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if fresh or isinstance(error, socket.timeout):
                raise EtcdUnavailableError(f"{self._endpoint()}: {_reason(error)}") from None
        try:  # the server had closed an idle connection
            return self._exchange(path, content, headers, timeout)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise EtcdUnavailableError(f"{self._endpoint()}: {_reason(error)}") from None

    def _exchange(
        self, path: str, content: bytes, headers: Mapping[str, str], timeout: float
    ) -> http.client.HTTPResponse:
        connection = self._connect()
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request("POST", path, content, dict(headers))
        response = connection.getresponse()
        if response.status != 200:
            raise _refusal(self._endpoint(), response.status, response.read())
        return response

    def _connect(self) -> _Connection:
        if self._connection is None:
            url = urlsplit(self._endpoint())
            host = url.hostname or ""
            if url.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    host, url.port or 443, timeout=TIMEOUT, context=self._context
                )
            else:
                self._connection = http.client.HTTPConnection(host, url.port or 80, timeout=TIMEOUT)
            self._connection.connect()
            sock = self._connection.sock
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, seconds in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
        return self._connection

    def _endpoint(self) -> str:
        return self._options.endpoints[self._current % len(self._options.endpoints)]


def _watch_lines(response: http.client.HTTPResponse, seen: int) -> Iterator[Tuple[int, Tuple[Event, ...]]]:
    while True:
        line = response.readline()
        if not line:
            raise EtcdUnavailableError("the watch was closed by etcd")
        message = json.loads(line)
        if "error" in message:
            raise EtcdUnavailableError(f"the watch failed: {message['error'].get('message', 'unknown error')}")
        result = message["result"]
        if result.get("canceled"):
            if int(result.get("compact_revision", 0)):
                raise CompactedError(f"revision {seen + 1} was compacted")
            raise EtcdUnavailableError(f"the watch was cancelled: {result.get('cancel_reason', 'no reason given')}")
        events = tuple(Event(raw.get("type") == "DELETE", _key_value(raw["kv"])) for raw in result.get("events", []))
        if events:
            seen = max([seen, *(event.item.revision for event in events)])
        elif not result.get("created"):
            seen = max(seen, int(result["header"]["revision"]))  # a progress report
        yield seen, events


def _refusal(endpoint: str, status: int, content: bytes) -> EtcdError:
    try:
        raw = json.loads(content)
        text, code = str(raw.get("message") or raw.get("error")), int(raw.get("code", 0))
    except (ValueError, AttributeError, TypeError):
        first = content.decode(errors="replace").strip().split("\n", 1)[0][:200]
        text, code = f"HTTP status {status}: {first}", 0
    message = f"{endpoint}: etcd refused: {text}"
    if status >= 500 and code in {0, 4, _UNAVAILABLE}:
        return EtcdUnavailableError(message, code=code)
    if "CommonName" in text:  # with etcd's authentication on, its gateway takes no certificate that names a user
        return EtcdError(message, "use a client certificate without a common name together with -etcd-username")
    if status == 404 and not code:
        return EtcdError(message, "the v3 JSON gateway is needed: etcd 3.4 or newer with --enable-grpc-gateway")
    return EtcdError(message, code=code)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return str(error) or type(error).__name__
