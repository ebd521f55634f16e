"""A client of etcd's v3 API over its JSON gateway: /v3/ since etcd 3.4, /v3beta/ in 3.3.

One client object belongs to one thread. Keys and values are base64 on the wire and text here; 64-bit numbers are
strings on the wire.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, TypeVar

from flanneld.errors import CompactedError, EtcdError, EtcdUnavailableError
from flanneld.etcd.http import Response
from flanneld.etcd.transport import (
    LIST_TIMEOUT,
    TIMEOUT,
    Answer,
    Cluster,
    Request,
    Transport,
    UnfitError,
    foreign,
    parsed,
)

_NOT_FOUND = 5  # gRPC's status codes
_PERMISSION_DENIED = 7
_UNAVAILABLE = 14
_DATA_LOSS = 15
_UNAUTHENTICATED = 16
_BASES = ("/v3", "/v3beta")
_STALE = ("revision of auth store is old", "user name is empty")
"""Refusals that a fresh token ends: users or roles were changed (signed tokens), authentication was switched on."""
_Item = TypeVar("_Item")


class KeyValue(NamedTuple):
    """One key as read; `lease` is 0 when it does not expire, `created` the revision at which it came into being."""

    key: str
    value: str
    revision: int
    lease: int
    created: int = 0


class Header(NamedTuple):
    """Which cluster answered, and its revision then."""

    cluster: int
    revision: int


class Snapshot(NamedTuple):
    """All keys below a prefix at one revision."""

    header: Header
    items: Tuple[KeyValue, ...]


class Event(NamedTuple):
    """A change: `deleted` also when the key's lease ran out, then `item` has only the key and the revision."""

    deleted: bool
    item: KeyValue


class Batch(NamedTuple):
    """Events in order, complete up to `revision`; `cluster` is the one that told. The first batch has no events."""

    cluster: int
    revision: int
    events: Tuple[Event, ...]


def encode(text: str) -> str:
    """Return text as the gateway wants it."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Return text from the gateway's form; raises ValueError when it is not in that form."""
    return binascii.a2b_base64(text).decode(errors="replace")


def range_end(prefix: str) -> str:
    """Return, in the gateway's form, the end of the range of all keys that begin with `prefix`."""
    raw = prefix.encode()
    return base64.b64encode(raw[:-1] + bytes([raw[-1] + 1])).decode()


def key_value(raw: Mapping[str, Any]) -> KeyValue:
    """Return a key of an answer; raises KeyError, TypeError and ValueError when it is none."""
    return KeyValue(
        decode(raw["key"]),
        decode(raw.get("value", "")),
        int(raw.get("mod_revision", 0)),
        int(raw.get("lease", 0)),
        int(raw.get("create_revision", 0)),
    )


def header(answer: Mapping[str, Any]) -> Header:
    """Return the header of an answer."""
    found = answer["header"]
    return Header(int(found.get("cluster_id", 0)), int(found.get("revision", 0)))


class EtcdClient:
    """Requests to etcd; raises EtcdUnavailableError when no endpoint can be asked and EtcdError when one says no."""

    def __init__(self, cluster: Cluster) -> None:
        self._options = cluster.options
        self._transport = Transport(cluster, judge)
        self._token = ""
        self._nameless = False  # etcd's authentication is off: it has no tokens to give
        self._base = _BASES[0]

    def get(self, key: str) -> Optional[KeyValue]:
        """Return one key, None when there is none."""
        answer = self._call("get", "/kv/range", {"key": encode(key)})
        return next(iter(_items(answer, key_value)), None)

    def list(self, prefix: str) -> Snapshot:
        """Return all keys that begin with `prefix`."""
        found, items = self.collect(prefix, lambda item: item)
        return Snapshot(found, tuple(items))

    def collect(self, prefix: str, build: Callable[[KeyValue], _Item]) -> Tuple[Header, List[_Item]]:
        """Return what `build` makes of all keys that begin with `prefix`, made while they are decoded.

        So there is never more than one copy of thousands of keys, and it is as small as `build` can have it.
        """

        def hook(raw: Dict[str, Any]) -> Any:
            return build(key_value(raw)) if "mod_revision" in raw else raw

        body = {"key": encode(prefix), "range_end": range_end(prefix)}
        answer = self._call("list", "/kv/range", body, hook, LIST_TIMEOUT)
        return _well_formed(header, answer), answer.get("kvs") or []

    def put(self, key: str, value: str, lease: int = 0) -> int:
        """Write a key whatever it was; returns the revision."""
        answer = self._call("put", "/kv/put", {"key": encode(key), "value": encode(value), "lease": str(lease)})
        return _well_formed(header, answer).revision

    def create(self, key: str, value: str, lease: int) -> Optional[int]:
        """Write a key that must not exist; returns the revision, None when it does."""
        return self._put_if({"target": "VERSION", "result": "EQUAL", "version": "0"}, key, value, lease)

    def replace(self, key: str, value: str, lease: int, revision: int) -> Optional[int]:
        """Write a key last modified at `revision`; returns the new revision, None when it changed meanwhile."""
        compare = {"target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        return self._put_if(compare, key, value, lease)

    def delete(self, key: str, revision: int) -> bool:
        """Delete a key last modified at `revision`; False when it changed meanwhile."""
        compare = {"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        body = {"compare": [compare], "success": [{"request_delete_range": {"key": encode(key)}}]}
        return bool(self._call("delete", "/kv/txn", body).get("succeeded", False))

    def grant(self, seconds: int) -> Tuple[int, int]:
        """Return the number of a new lease, and the seconds that it lives: etcd may make it longer than asked."""
        answer = self._call("grant", "/lease/grant", {"TTL": str(seconds)})
        return _well_formed(lambda raw: (int(raw["ID"]), int(raw.get("TTL", seconds))), answer)

    def lease(self, number: int) -> Tuple[int, Tuple[str, ...]]:
        """Return the seconds that a lease lives on (-1 when it is gone), and the keys attached to it."""
        answer = self._call("lease", "/kv/lease/timetolive", {"ID": str(number), "keys": True})
        return _well_formed(lambda raw: (int(raw.get("TTL", 0)), tuple(map(decode, raw.get("keys", [])))), answer)

    def revoke(self, lease: int) -> None:
        """End a lease; its keys vanish. A lease that is gone already is no error."""
        try:
            self._call("revoke", "/kv/lease/revoke", {"ID": str(lease)})
        except EtcdUnavailableError:
            raise
        except EtcdError as error:
            if error.code != _NOT_FOUND:
                raise

    def watch(self, prefix: str, revision: int) -> Watch:
        """Open a watch for changes from `revision` on; its first batch tells that it stands."""
        create = {
            "key": encode(prefix),
            "range_end": range_end(prefix),
            "start_revision": str(revision),
            "progress_notify": True,
            "fragment": True,
        }
        content = {"create_request": create}

        def opened() -> Response:
            # A member without quorum is to end the watch.
            return self._transport.stream(self._request("watch", "/watch", content, TIMEOUT, hasleader="true"))

        return Watch(self._transport, self._attempt(opened), revision, self._forget_token)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._transport.close()

    def _put_if(self, compare: Mapping[str, str], key: str, value: str, lease: int) -> Optional[int]:
        put = {"key": encode(key), "value": encode(value), "lease": str(lease)}
        body = {"compare": [{"key": encode(key), **compare}], "success": [{"request_put": put}]}
        answer = self._call("put", "/kv/txn", body)
        return _well_formed(header, answer).revision if answer.get("succeeded", False) else None

    def _call(
        self,
        op: str,
        path: str,
        body: Mapping[str, Any],
        hook: Optional[Callable[[Dict[str, Any]], Any]] = None,
        timeout: float = TIMEOUT,
    ) -> Dict[str, Any]:
        return parsed(self._attempt(lambda: self._transport.call(self._request(op, path, body, timeout))), hook)

    def _attempt(self, function: Callable[[], _Item]) -> _Item:
        """Call; once more with a fresh token, or on the other version's paths, when that is what it takes."""
        if self._options.username and not self._token and not self._nameless:
            self._authenticate()
        try:
            return function()
        except EtcdError as error:
            stale = error.code == _UNAUTHENTICATED or any(text in error.message for text in _STALE)
            if stale and self._options.username:
                self._authenticate()  # the token expired, or etcd was restarted
            elif error.code == _NO_SUCH_PATH:
                self._base = _BASES[self._base == _BASES[0]]
            else:
                raise
        return function()

    def _authenticate(self) -> None:
        self._forget_token()
        login = {"name": self._options.username, "password": self._options.password}
        try:
            answer = parsed(self._transport.call(self._request("authenticate", "/auth/authenticate", login, TIMEOUT)))
        except EtcdError as error:
            if "authentication is not enabled" not in error.message:
                raise
            self._nameless = True
            return
        self._token = _well_formed(lambda raw: str(raw["token"]), answer)

    def _forget_token(self) -> None:
        self._token, self._nameless = "", False

    def _request(self, op: str, path: str, body: Mapping[str, Any], timeout: float, hasleader: str = "") -> Request:
        headers = {"Content-Type": "application/json"}
        if hasleader:
            headers["Grpc-Metadata-hasleader"] = hasleader
        if self._token:
            headers["Authorization"] = self._token
        return Request(op, "POST", self._base + path, headers, json.dumps(body).encode(), timeout)


class Watch:
    """An open watch; it occupies its client's connection."""

    def __init__(self, transport: Transport, response: Response, revision: int, refused: Callable[[], None]) -> None:
        self._transport = transport
        self._response = response
        self._seen = revision - 1
        self._fragments: List[Event] = []
        self._refused = refused

    def next(self, timeout: float) -> Optional[Batch]:
        """Return the next batch, None when nothing happens for `timeout` seconds; then it can be asked again.

        Raises CompactedError when the revision asked for is gone, EtcdUnavailableError when the watch ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._response.line(max(0.0, deadline - time.monotonic()))
            except socket.timeout:
                return None
            except OSError as error:
                raise self._transport.broken(error) from None
            if line is None:
                raise self._ended("etcd closed the watch")
            if line.strip():
                batch = self._batch(line)
                if batch is not None:
                    return batch

    def close(self) -> None:
        """End the watch."""
        self._transport.close()

    def _batch(self, line: bytes) -> Optional[Batch]:
        try:
            message = json.loads(line)
            if "error" in message:
                self._refused()  # the token may have expired; another one costs one request
                raise self._ended(f"the watch failed: {message['error'].get('message', 'unknown error')}")
            result = message["result"]
            if result.get("canceled"):
                raise self._cancelled(result)
            found = header(result)
            self._fragments += [
                Event(raw.get("type") == "DELETE", key_value(raw["kv"])) for raw in result.get("events", [])
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._ended("etcd sends a watch that cannot be read") from None
        if result.get("fragment"):
            return None
        events, self._fragments = tuple(self._fragments), []
        if events:
            self._seen = max([self._seen, *(event.item.revision for event in events)])
        elif not result.get("created"):
            self._seen = max(self._seen, found.revision)  # a progress report
        elif found.revision < self._seen:
            return Batch(found.cluster, found.revision, ())  # it knows less than was seen already
        return Batch(found.cluster, self._seen, events)

    def _cancelled(self, result: Mapping[str, Any]) -> EtcdError:
        if int(result.get("compact_revision", 0)):
            self._transport.close()
            return CompactedError(f"revision {self._seen + 1} was compacted")
        self._refused()
        reason = result.get("cancel_reason") or "no reason given"
        return self._ended(f"the watch was cancelled: {reason}")

    def _ended(self, text: str) -> EtcdUnavailableError:
        endpoint = self._transport.endpoint
        self._transport.avoid()
        return EtcdUnavailableError(f"{endpoint}: {text}")


_NO_SUCH_PATH = -404
"""Stands for HTTP's 404 where gRPC's status codes are expected: another version's gateway, or none."""


def judge(answer: Answer) -> Optional[EtcdError]:
    """Return the error that an answer means, None when it is a good one."""
    if answer.status == 200:
        return foreign(answer)
    fit = True
    try:
        raw = json.loads(answer.body)
        text, code = str(raw.get("message") or raw.get("error")), int(raw.get("code", 0))
    except (ValueError, AttributeError, TypeError, RecursionError):
        text, code, fit = f"HTTP status {answer.status}: {answer.first_line}", 0, False
    message = f"{answer.endpoint}: etcd refused: {text}"
    if answer.status >= 500 and code in {0, 4, _UNAVAILABLE, _DATA_LOSS}:
        return EtcdUnavailableError(message, code=code)
    if answer.status == 400 and "HTTPS server" in text:
        return EtcdUnavailableError(f"{answer.endpoint}: it wants TLS", "use https://")
    if answer.status == 404 and not code:
        hint = "the v3 JSON gateway is needed: etcd 3.3 or newer with --enable-grpc-gateway"
        return UnfitError(message, hint, code=_NO_SUCH_PATH)
    hint = _hint(text, code)
    return EtcdError(message, hint, code=code) if fit else UnfitError(message, hint)


def _hint(text: str, code: int) -> str:
    if "CommonName" in text:  # with etcd's authentication on, its gateway takes no certificate that names a user
        return "use a client certificate without a common name together with -etcd-username"
    if code == _PERMISSION_DENIED:
        return "grant the user's role readwrite on all keys below -etcd-prefix"
    if "authentication failed" in text:
        return "check -etcd-username and -etcd-password"
    if "user name is empty" in text:
        return "this etcd wants -etcd-username and -etcd-password"
    return ""


def _items(answer: Mapping[str, Any], build: Callable[[Mapping[str, Any]], _Item]) -> List[_Item]:
    return _well_formed(lambda raw: [build(item) for item in raw.get("kvs") or []], answer)


def _well_formed(function: Callable[[Mapping[str, Any]], _Item], answer: Mapping[str, Any]) -> _Item:
    try:
        return function(answer)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EtcdError("etcd's answer lacks what belongs there", "check -etcd-endpoints") from None
