from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from flanneld.errors import CompactedError, EtcdError, EtcdUnavailableError
from flanneld.etcd import v2, v3
from flanneld.etcd.transport import Answer
from flanneld.etcd.v3 import Batch, Event, KeyValue, Watch, range_end


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Stream:
    """Stands for the transport and the response: gives these lines, then the end."""

    endpoint = "http://192.0.2.1:2379"

    def __init__(self, *messages: dict[str, Any] | bytes) -> None:
        self._lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in messages]
        self.avoided = self.refused = 0

    def line(self, _: float) -> bytes | None:
        return self._lines.pop(0) if self._lines else None

    def avoid(self) -> None:
        self.avoided += 1

    close = avoid

    def refuse(self) -> None:
        self.refused += 1


def watch(stream: Stream, revision: int = 41) -> Watch:
    return Watch(stream, stream, revision, stream.refuse)  # type: ignore[arg-type]


HEADER = {"revision": "90", "cluster_id": "7"}
PUT = {"kv": {"key": b64("/k"), "value": b64("v"), "mod_revision": "41", "lease": "7", "create_revision": "3"}}
GONE = {"type": "DELETE", "kv": {"key": b64("/k"), "mod_revision": "43"}}
SEEN = (Event(False, KeyValue("/k", "v", 41, 7, 3)), Event(True, KeyValue("/k", "", 43, 0)))


def test_a_watch_counts_the_revisions_it_has_seen() -> None:
    lines = watch(
        Stream(
            {"result": {"header": HEADER, "created": True}},
            {"result": {"header": HEADER, "events": [PUT, GONE]}},
            {"result": {"header": {**HEADER, "revision": "95"}}},
        )
    )
    assert lines.next(1) == Batch(7, 40, ())  # the store may be further on than what was delivered
    assert lines.next(1) == Batch(7, 43, SEEN)
    assert lines.next(1) == Batch(7, 95, ())
    with pytest.raises(EtcdUnavailableError, match="closed"):
        lines.next(1)


def test_a_store_that_knows_less_than_was_seen_is_told() -> None:
    behind = watch(Stream({"result": {"header": {**HEADER, "revision": "12"}, "created": True}}))
    assert behind.next(1) == Batch(7, 12, ())


def test_fragments_are_one_batch() -> None:
    lines = watch(
        Stream(
            {"result": {"header": HEADER, "events": [PUT], "fragment": True}},
            {"result": {"header": HEADER, "events": [GONE]}},
        )
    )
    assert lines.next(1) == Batch(7, 43, SEEN)


def test_a_compacted_watch_asks_for_a_full_read() -> None:
    with pytest.raises(CompactedError):
        watch(Stream({"result": {"header": HEADER, "canceled": True, "compact_revision": "80"}})).next(1)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"error": {"message": "etcdserver: no leader", "grpc_code": 14}}, "no leader"),
        ({"error": "no object"}, "cannot be read"),
        ({"result": {"header": HEADER, "canceled": True, "cancel_reason": "permission denied"}}, "permission denied"),
        ({"result": {"header": HEADER, "events": [{"kv": {"key": "x"}}]}}, "cannot be read"),
        ({"result": {"header": HEADER, "events": [{}]}}, "cannot be read"),
        ({"result": None}, "cannot be read"),
        (b"[" * 100000, "cannot be read"),
        (b"[]", "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_watch_that_ends_goes_on_elsewhere(message: dict[str, Any] | bytes, said: str) -> None:
    stream = Stream(message)
    with pytest.raises(EtcdUnavailableError, match=said):
        watch(stream).next(1)
    assert stream.avoided == 1


def test_the_end_of_a_prefix() -> None:
    assert base64.b64decode(range_end("/a/")) == b"/a0"


@pytest.mark.parametrize(
    ("status", "body", "unavailable", "code", "hint"),
    [
        (503, b'{"error":"etcdserver: no leader","code":14}', True, 14, ""),
        (401, b'{"error":"etcdserver: invalid auth token","code":16}', False, 16, ""),
        (404, b"404 page not found\n", False, -404, "--enable-grpc-gateway"),
        (502, b"<html>", True, 0, ""),
        (404, b'{"error":"etcdserver: requested lease not found","code":5}', False, 5, ""),
        (403, b'{"error":"etcdserver: permission denied","code":7}', False, 7, "readwrite"),
        (
            400,
            b'{"error":"etcdserver: authentication failed, invalid user","code":3}',
            False,
            3,
            "-etcd-p",
        ),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", True, 0, "https://"),
        (200, b"{}", None, 0, ""),
    ],
)
def test_refusals(status: int, body: bytes, *, unavailable: bool | None, code: int, hint: str) -> None:
    error = v3.judge(Answer("https://192.0.2.1:2379", status, {}, bytearray(body)))
    if unavailable is None:
        assert error is None
        return
    assert isinstance(error, EtcdError)
    assert isinstance(error, EtcdUnavailableError) is unavailable
    assert error.code == code
    assert hint in error.hint


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (404, b'{"errorCode":100,"message":"Key not found","cause":"/x","index":7}', EtcdError, 100),
        (412, b'{"errorCode":105,"message":"Key already exists","cause":"/x","index":7}', EtcdError, 105),
        (
            400,
            b'{"errorCode":401,"message":"The event is cleared"}',
            CompactedError,
            401,
        ),
        (500, b'{"errorCode":300,"message":"Raft Internal Error"}', EtcdUnavailableError, 300),
        (404, b"404 page not found\n", EtcdError, 0),
        (503, b"", EtcdUnavailableError, 0),
        (400, b'{"errorCode":"x"}', EtcdError, 0),
        (400, b"[1]", EtcdError, 0),
    ],
)
def test_refusals_of_v2(status: int, body: bytes, kind: type[EtcdError], code: int) -> None:
    error = v2.judge(Answer("http://192.0.2.1:2379", status, {}, bytearray(body)))
    assert isinstance(error, kind)
    assert error.code == code
    assert str(error)
