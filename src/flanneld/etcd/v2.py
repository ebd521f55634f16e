"""A client of etcd's v2 API, /v2/keys: the store of flanneld 0.17 and older. etcd 3.4 and 3.5 need --enable-v2.

One client object belongs to one thread. Keys are paths here and on the wire.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, TypeVar
from urllib.parse import quote

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

KEY_NOT_FOUND = 100  # etcd's error codes
COMPARE_FAILED = 101
ALREADY_EXISTS = 105
UNAUTHORIZED = 110
INDEX_CLEARED = 401
_GONE = {"delete", "expire", "compareAndDelete"}
_Item = TypeVar("_Item")


class Node(NamedTuple):
    """One key as read; `ttl` in seconds, None when it does not expire. `modified`: index of the last write."""

    key: str
    value: str
    modified: int
    ttl: Optional[int]
    created: int = 0
    directory: bool = False


class State(NamedTuple):
    """Which cluster answered (0 when it does not say), and its index then."""

    cluster: int
    revision: int


class Change(NamedTuple):
    """One event; `deleted` also when it expired. `seen`: changes up to this index are known now."""

    deleted: bool
    node: Node
    seen: int


def node(raw: Mapping[str, Any]) -> Node:
    """Return a node of an answer; raises KeyError, TypeError and ValueError when it is none."""
    ttl = raw.get("ttl")
    return Node(
        str(raw["key"]),
        str(raw.get("value", "")),
        int(raw["modifiedIndex"]),
        None if ttl is None else int(ttl),
        int(raw.get("createdIndex", 0)),
        bool(raw.get("dir", False)),
    )


class EtcdV2Client:
    """Requests to etcd; raises EtcdUnavailableError when no endpoint can be asked and EtcdError when one says no.

    The `code` of an EtcdError is etcd's error code.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._transport = Transport(cluster, judge)
        options = cluster.options
        self._headers: Dict[str, str] = {}
        if options.username:
            login = f"{options.username}:{options.password}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(login).decode()

    def get(self, key: str) -> Optional[Node]:
        """Return one key, None when there is none."""
        try:
            answer = self._call("get", "GET", key, "?quorum=true")
        except EtcdError as error:
            if error.code == KEY_NOT_FOUND:
                return None
            raise
        return _node_of(answer)

    def collect(self, prefix: str, build: Callable[[Node], _Item]) -> Tuple[State, List[_Item]]:
        """Return the store's state, and what `build` makes of all keys below `prefix` while they are decoded."""
        found: List[_Item] = []

        def hook(raw: Dict[str, Any]) -> Any:
            if "modifiedIndex" in raw and not raw.get("dir"):
                found.append(build(node(raw)))
                return None
            return raw

        try:
            answer = self._transport.call(
                self._request("list", "GET", prefix, "?recursive=true&sorted=true&quorum=true", LIST_TIMEOUT)
            )
        except EtcdError as error:
            if error.code == KEY_NOT_FOUND and isinstance(error, _RefusedError):
                return State(0, error.index), []
            raise
        parsed(answer, hook)
        return _state(answer), found

    def create(self, key: str, value: str, ttl: int) -> Optional[int]:
        """Write a key that must not exist, `ttl` 0: for ever; returns the index, None when it exists."""
        return self._put_unless(ALREADY_EXISTS, key, value, ttl, "prevExist=false")

    def replace(self, key: str, value: str, ttl: int, index: int) -> Optional[int]:
        """Write a key last modified at `index`; returns the new index, None when it changed meanwhile."""
        return self._put_unless(COMPARE_FAILED, key, value, ttl, f"prevIndex={index}")

    def put(self, key: str, value: str, ttl: int = 0) -> int:
        """Write a key whatever it was; returns the index."""
        return _node_of(self._call("put", "PUT", key, "", _form(value, ttl))).modified

    def delete(self, key: str, index: int) -> bool:
        """Delete a key last modified at `index`; False when it changed meanwhile."""
        try:
            self._call("delete", "DELETE", key, f"?prevIndex={index}")
        except EtcdError as error:
            if error.code in {COMPARE_FAILED, KEY_NOT_FOUND}:
                return False
            raise
        return True

    def watch(self, prefix: str, index: int) -> WatchV2:
        """Watch the keys below the directory `prefix` for changes from `index` on."""
        return WatchV2(self._transport, lambda at: self._request("watch", "GET", prefix, _wait(at), TIMEOUT), index)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._transport.close()

    def _put_unless(self, code: int, key: str, value: str, ttl: int, condition: str) -> Optional[int]:
        try:
            return _node_of(self._call("put", "PUT", key, f"?{condition}", _form(value, ttl))).modified
        except EtcdError as error:
            # A key that is to be replaced may be gone.
            if error.code in {code, KEY_NOT_FOUND}:
                return None
            raise

    def _call(self, op: str, method: str, key: str, query: str, body: Optional[bytes] = None) -> Answer:
        return self._transport.call(self._request(op, method, key, query, TIMEOUT, body))

    def _request(
        self, op: str, method: str, key: str, query: str, timeout: float, body: Optional[bytes] = None
    ) -> Request:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        return Request(op, method, "/v2/keys" + quote(key) + query, headers, body, timeout)


class WatchV2:
    """A watch: one request after another, each of which etcd answers when the next change comes."""

    def __init__(self, transport: Transport, request: Callable[[int], Request], index: int) -> None:
        self._transport = transport
        self._request = request
        self._next = index
        self._response: Optional[Response] = None
        self.opened = State(0, index - 1)
        """The state of the store when the watch was last opened."""

    def next(self, timeout: float) -> Optional[Change]:
        """Return the next change, None when nothing happens for `timeout` seconds; then it can be asked again.

        Raises CompactedError when etcd has forgotten that far back, EtcdUnavailableError when the watch broke.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._response is None:
                self._open()
            try:
                assert self._response is not None  # noqa: S101 - just opened
                line = self._response.line(max(0.0, deadline - time.monotonic()))
            except socket.timeout:
                return None
            except OSError as error:
                self._response = None
                raise self._transport.broken(error) from None
            if line is None:
                self._response = None  # the answer is complete; etcd also ends it so when it stops
                if deadline <= time.monotonic():
                    return None
                continue
            if line.strip():
                return self._change(line)

    def open(self) -> State:
        """Open it, and return the state of the store."""
        if self._response is None:
            self._open()
        return self.opened

    @property
    def quiet_index(self) -> int:
        """The index up to which nothing happened when nothing was told since the watch was opened."""
        return max(self._next - 1, self.opened.revision)

    def close(self) -> None:
        """End the watch."""
        self._response = None
        self._transport.close()

    def _open(self) -> None:
        self._response = self._transport.stream(self._request(self._next))
        self.opened = _state_of(self._response.headers) or State(0, self._next - 1)

    def _change(self, line: bytes) -> Change:
        try:
            raw = json.loads(line)
            if "errorCode" in raw:
                raise self._failed(_error(self._transport.endpoint, raw))
            found = node(raw["node"])
            deleted = str(raw["action"]) in _GONE
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._failed(
                EtcdUnavailableError(f"{self._transport.endpoint}: a watch that cannot be read")
            ) from None
        self._next = max(self._next, found.modified + 1)
        return Change(deleted, found, self._next - 1)

    def _failed(self, error: EtcdError) -> EtcdError:
        self.close()
        return error


class _RefusedError(EtcdError):
    """An error of etcd's with the index of the store."""

    index = 0


def judge(answer: Answer) -> Optional[EtcdError]:
    """Return the error that an answer means, None when it is a good one."""
    if answer.status in {200, 201}:
        return foreign(answer)
    try:
        raw = json.loads(answer.body)
        return _error(answer.endpoint, raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _foreign(answer)


def _error(endpoint: str, raw: Mapping[str, Any]) -> EtcdError:
    code = int(raw["errorCode"])
    message = f"{endpoint}: etcd refused: {raw.get('message')} ({raw.get('cause') or 'no cause given'})"
    if code == INDEX_CLEARED:
        return CompactedError(message, code=code)
    if 300 <= code < 400:  # of raft: no leader, or an election
        return EtcdUnavailableError(message, code=code)
    hint = "check -etcd-username and -etcd-password, and the rights of the user" if code == UNAUTHORIZED else ""
    error = _RefusedError(message, hint, code)
    error.index = int(raw.get("index", 0))
    return error


def _foreign(answer: Answer) -> EtcdError:
    message = f"{answer.endpoint}: etcd refused: HTTP status {answer.status}: {answer.first_line}"
    if answer.status >= 500:
        return EtcdUnavailableError(message)
    if answer.status == 400 and "HTTPS server" in answer.first_line:
        return EtcdUnavailableError(f"{answer.endpoint}: it wants TLS", "use https://")
    if answer.status == 404:
        return UnfitError(message, "the v2 API is needed: etcd up to 3.5 with --enable-v2")
    return UnfitError(message)


def _node_of(answer: Answer) -> Node:
    try:
        return node(parsed(answer)["node"])
    except (ValueError, KeyError, TypeError):
        raise EtcdError(f"{answer.endpoint}: etcd's answer lacks what belongs there", "check -etcd-endpoints") from None


def _state(answer: Answer) -> State:
    state = _state_of(answer.headers)
    if state is None:
        raise EtcdError(f"{answer.endpoint}: the answer has no X-Etcd-Index", "is there a proxy between?")
    return state


def _state_of(headers: Mapping[str, str]) -> Optional[State]:
    try:
        return State(int(headers.get("x-etcd-cluster-id", "0"), 16), int(headers["x-etcd-index"]))
    except (KeyError, ValueError):
        return None


def _form(value: str, ttl: int) -> bytes:
    return (f"value={quote(value, safe='')}" + (f"&ttl={ttl}" if ttl else "")).encode()


def _wait(index: int) -> str:
    return f"?wait=true&recursive=true&waitIndex={index}"
