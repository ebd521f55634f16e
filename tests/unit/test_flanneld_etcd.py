from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest

from flanneld.errors import CompactedError, EtcdError, EtcdUnavailableError
from flanneld.etcd import Event, KeyValue, _range_end, _refusal, _watch_lines


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def stream(*messages: dict[str, Any]) -> Any:
    return io.BytesIO("".join(json.dumps(message) + "\n" for message in messages).encode())


HEADER = {"revision": "90"}


def test_a_watch_counts_the_revisions_it_has_seen() -> None:
    put = {"kv": {"key": b64("/k"), "value": b64("v"), "mod_revision": "41", "lease": "7"}}
    gone = {"type": "DELETE", "kv": {"key": b64("/k"), "mod_revision": "43"}}
    lines = _watch_lines(
        stream(
            {"result": {"header": HEADER, "created": True}},
            {"result": {"header": HEADER, "events": [put, gone]}},
            {"result": {"header": {"revision": "95"}}},
        ),
        40,
    )
    assert next(lines) == (40, ())  # the store may be further on than what was delivered
    expected = (Event(False, KeyValue("/k", "v", 41, 7)), Event(True, KeyValue("/k", "", 43, 0)))
    assert next(lines) == (43, expected)
    assert next(lines) == (95, ())
    with pytest.raises(EtcdUnavailableError, match="closed"):
        next(lines)


def test_a_compacted_watch_asks_for_a_full_read() -> None:
    cancelled = {"result": {"header": HEADER, "canceled": True, "compact_revision": "80"}}
    with pytest.raises(CompactedError):
        next(_watch_lines(stream(cancelled), 40))


def test_a_watch_without_leader_ends() -> None:
    with pytest.raises(EtcdUnavailableError, match="no leader"):
        next(_watch_lines(stream({"error": {"message": "etcdserver: no leader", "grpc_code": 14}}), 40))


def test_the_end_of_a_prefix() -> None:
    assert base64.b64decode(_range_end("/a/")) == b"/a0"


@pytest.mark.parametrize(
    ("status", "body", "unavailable", "code"),
    [
        (503, b'{"error":"etcdserver: no leader","code":14}', True, 14),
        (401, b'{"error":"etcdserver: invalid auth token","code":16}', False, 16),
        (404, b"404 page not found\n", False, 0),
        (502, b"<html>", True, 0),
        (404, b'{"error":"etcdserver: requested lease not found","code":5}', False, 5),
    ],
)
def test_refusals(status: int, body: bytes, *, unavailable: bool, code: int) -> None:
    error = _refusal("https://192.0.2.1:2379", status, body)
    assert isinstance(error, EtcdError)
    assert isinstance(error, EtcdUnavailableError) is unavailable
    assert error.code == code
