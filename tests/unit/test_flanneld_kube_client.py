from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flanneld.kube import client as module
from flanneld.kube.client import Event, KubeClient
from flanneld.kube.errors import GoneError, KubeError, KubeUnavailableError
from flanneld.kube.kubeconfig import Access
from flanneld.metrics import FIGURES
from flanneld.subnet import kube
from flanneld.subnet.kube import Doors, Follower

Answer = list[bytes | float]
"""Bytes to send and seconds to wait; the connection is kept open after them unless the last is b""."""


class Scripted(socketserver.ThreadingTCPServer):
    """Answers request after request with what stands in `answers`, and keeps what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.connections = 0


class Handler(socketserver.StreamRequestHandler):
    server: Scripted

    def handle(self) -> None:
        self.server.connections += 1
        while line := self.rfile.readline():
            length = 0
            while (header := self.rfile.readline()) not in {b"\r\n", b""}:
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.server.asked.append(f"{line.decode().split(' HTTP')[0]} {self.rfile.read(length).decode()}".strip())
            for part in self.server.answers.pop(0):
                if isinstance(part, float):
                    time.sleep(part)
                elif not part:
                    return
                else:
                    self.wfile.write(part)


def whole(body: Any, status: int = 200) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(text), text)


def chunks(*things: Any, end: bool = True) -> bytes:
    lines = [json.dumps(thing).encode() + b"\n" for thing in things]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent + (b"0\r\n\r\n" if end else b"")


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def client(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeClient]:
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    monkeypatch.setattr(module, "QUIET", 0.3)
    made = KubeClient(Access(f"http://127.0.0.1:{server.server_address[1]}/base", "test"))
    yield made
    made.close()


NODE = {"metadata": {"name": "a", "resourceVersion": "7"}}


def test_requests_are_those_of_the_api(server: Scripted, client: KubeClient) -> None:
    server.answers = [[whole(NODE)]] * 5
    client.node("a")
    client.pod("kube-system", "b")
    client.patch_node("a", {"metadata": {"annotations": {"c": "d"}}})
    next(client.nodes(3))
    client.version()
    assert server.asked == [
        "GET /base/api/v1/nodes/a",
        "GET /base/api/v1/namespaces/kube-system/pods/b",
        'PATCH /base/api/v1/nodes/a/status {"metadata":{"annotations":{"c":"d"}}}',
        "GET /base/api/v1/nodes?limit=3",
        "GET /base/api/v1/nodes?limit=1",
    ]
    assert server.connections == 1


def test_a_kept_connection_that_was_closed_is_opened_again(server: Scripted, client: KubeClient) -> None:
    server.answers = [[whole(NODE), b""], [whole(NODE)]]
    assert client.node("a") == client.node("a") == NODE
    assert server.connections == 2


@pytest.mark.parametrize("ends", [b"HTTP/1.1 200 X\r\nConnection: close\r\n", b"HTTP/1.0 200 X\r\n"])
def test_a_server_that_closes_after_every_answer(server: Scripted, client: KubeClient, ends: bytes) -> None:
    page = {"metadata": {"resourceVersion": "9"}, "items": [NODE]}
    body = json.dumps({**page, **NODE}).encode()
    whole_and_close = b"%bContent-Length: %d\r\n\r\n%b" % (ends, len(body), body)
    server.answers = [[whole_and_close, b""]] * 5
    assert [client.node("a")["metadata"] for _ in range(3)] == [NODE["metadata"]] * 3
    assert len(list(client.nodes())) == len(list(client.nodes())) == 1
    assert server.connections == 5


def test_a_watch_on_a_connection_that_is_to_end_may_be_silent(
    server: Scripted, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET", 2.0)
    line = json.dumps(ADDED).encode() + b"\n"
    server.answers = [[b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", line, 0.8, line, b""], [whole(NODE)]]
    assert [event.kind for event in client.watch_nodes("5", 7)] == ["OPEN", "ADDED", "ADDED"]
    assert client.node("a") == NODE
    assert "timeoutSeconds=7" in server.asked[0]


def test_pages_follow_each_other(server: Scripted, client: KubeClient) -> None:
    first = {"metadata": {"resourceVersion": "9", "continue": "x/y="}, "items": [NODE, "?"]}
    server.answers = [[whole(first)], [whole({"metadata": {"resourceVersion": "9"}, "items": None})]]
    assert [(page.nodes, page.version) for page in client.nodes()] == [((NODE,), "9"), ((), "9")]
    assert server.asked[1] == "GET /base/api/v1/nodes?limit=100&continue=x%2Fy%3D"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ([0.6], KubeUnavailableError, "does not answer within 0.3 s"),
        ([b""], KubeUnavailableError, "cannot be reached: Remote end closed connection"),
        ([b"\x16\x03\x01", b""], KubeUnavailableError, "cannot be reached: \x16"),
        ([whole(NODE)[:-3], b""], KubeUnavailableError, "answer broke off"),
        ([whole(NODE)[:-3], 0.6], KubeUnavailableError, "answer broke off: timed out"),
        ([whole(b"<html>")], KubeError, "is not a Kubernetes object"),
        ([whole([])], KubeError, "is not a Kubernetes object"),
        ([whole(b"[" * 99999)], KubeError, "is not a Kubernetes object"),
        ([whole(b"gone fishing", 503)], KubeUnavailableError, "cannot get nodes now (503): gone fishing"),
        ([whole(b"", 302)], KubeError, "did not get nodes (302): Found"),
    ],
)
def test_what_is_no_answer_is_one_error(
    server: Scripted, client: KubeClient, answer: Answer, kind: type[KubeError], words: str
) -> None:
    before = FIGURES.value("flannel_store_failures_total") + FIGURES.value("flannel_store_request_seconds_count")
    server.answers = [answer, [whole(NODE)]]
    with pytest.raises(KubeError) as caught:
        client.node("a")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert FIGURES.value("flannel_store_failures_total") + FIGURES.value("flannel_store_request_seconds_count") > before
    assert client.node("a") == NODE, "the next request is not disturbed"


ADDED = {"type": "ADDED", "object": NODE}


def test_a_watch_that_ends(server: Scripted, client: KubeClient) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}}
    server.answers = [[chunks(ADDED, bookmark)]]
    assert list(client.watch_nodes("5")) == [
        Event("OPEN", {}),
        Event("ADDED", NODE),
        Event("BOOKMARK", bookmark["object"]),
    ]
    wanted = f"watch=1&resourceVersion=5&allowWatchBookmarks=true&timeoutSeconds={module.WATCH}"
    assert server.asked == [f"GET /base/api/v1/nodes?{wanted}"]


def test_a_watch_whose_connection_ends(server: Scripted, client: KubeClient) -> None:
    server.answers = [[chunks(ADDED, end=False), b""]]
    assert [event.kind for event in client.watch_nodes("5")] == ["OPEN", "ADDED"]


def test_a_watch_that_is_silent_ends(server: Scripted, client: KubeClient) -> None:
    server.answers = [[chunks(ADDED, end=False), 1.0]]
    started = time.monotonic()
    assert [event.kind for event in client.watch_nodes("5")] == ["OPEN", "ADDED"]
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ([chunks(ADDED, end=False), b'9\r\n{"type": \r\n', b""], KubeUnavailableError, "something that is no event"),
        ([chunks(ADDED, "?")], KubeUnavailableError, "something that is no event"),
        ([chunks(ADDED, {"type": "ADDED", "object": []})], KubeUnavailableError, "an event without an object"),
        ([chunks(ADDED, {"type": "ERROR", "object": {"code": 410, "message": "old"}})], GoneError, "cannot go on: old"),
        (
            [chunks(ADDED, {"type": "ERROR", "object": {"code": 500, "message": "x"}})],
            KubeUnavailableError,
            "ended the",
        ),
    ],
)
def test_a_watch_that_fails(
    server: Scripted, client: KubeClient, answer: Answer, kind: type[KubeError], words: str
) -> None:
    server.answers = [answer]
    found: list[str] = []
    with pytest.raises(kind, match=words):
        found.extend(event.kind for event in client.watch_nodes("5"))
    assert found == ["OPEN", "ADDED"]


def follower(client: KubeClient) -> Follower:
    book = kube.Book("flannel.alpha.coreos.com/", (4,), "a")
    return Follower(client, book, Doors(lambda _: None, lambda: None, lambda *_: None, lambda _: None), lambda _: None)


def listing(version: str, *nodes: Any) -> list[bytes | float]:
    return [whole({"metadata": {"resourceVersion": version}, "items": nodes})]


def test_after_an_outage_the_nodes_are_listed_later_or_when_the_version_went_back(
    server: Scripted, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "audit_delay", lambda _: 30.0)
    made = follower(client)
    made._version, made._away_since = "7", time.monotonic() - kube.OUTAGE - 1
    server.answers = [listing("9", NODE), [chunks(ADDED)]]
    made._catch_up(doubtful=True)
    made._watch()
    assert ["limit=1" in asked for asked in server.asked] == [True, False]
    assert "resourceVersion=7&" in server.asked[1]
    assert 29 < made._audit_at - time.monotonic() <= 30
    # The next watch ends when it is time for the list.
    server.answers = [[chunks()], listing("12", NODE), [chunks()]]
    made._watch()
    assert "timeoutSeconds=29" in server.asked[2]
    made._audit_at = 0.0
    made._catch_up(doubtful=False)
    assert "limit=100" in server.asked[3]
    assert (made._version, made._audit_at) == ("12", float("inf"))
    # An older state is noticed at once.
    server.answers = [listing("3", NODE), listing("3", NODE)]
    made._catch_up(doubtful=True)
    assert ("limit=1" in server.asked[4], "limit=100" in server.asked[5], made._version) == (True, True, "3")


def test_audits_are_spread_by_the_number_of_nodes() -> None:
    for nodes, most in ((10, 0.1), (100, 6.0), (1000, 600.0), (5000, 15000.0)):
        assert all(0 <= kube.audit_delay(nodes) <= most for _ in range(100))
    assert max(kube.audit_delay(5000) for _ in range(100)) > 3600


def test_complaints_about_nodes_that_are_gone_are_forgotten() -> None:
    book = kube.Book("f/", (4,), "a")
    annotations = {"f/kube-subnet-manager": "true"}
    bad = {"metadata": {"name": "b", "annotations": annotations}, "spec": {"podCIDR": "10.244.1.0/24"}}
    also = {**bad, "metadata": {"name": "c", "annotations": annotations}}
    book.add([bad, also])
    assert set(book._named) == {"b", "c"}
    book.apply(Event("DELETED", bad))
    assert set(book._named) == {"c"}
    for _ in range(2):
        book.clear()
        book.add([])
    assert not book._named
    assert not book._named_before


def test_what_an_earlier_run_announced_is_taken_back() -> None:
    wanted: dict[str, str | None] = {"public-ip": "192.0.2.1", "public-ipv6": None}
    there = {"public-ip": "192.0.2.1", "public-ipv6": "2001:db8::1"}
    assert kube.missing_annotations(there, wanted) == {"metadata": {"annotations": {"public-ipv6": None}}}
    assert kube.missing_annotations({"public-ip": "192.0.2.1"}, wanted) == {}


def test_a_watch_that_is_refused(server: Scripted, client: KubeClient) -> None:
    server.answers = [[whole({"message": "too old"}, 410)]]
    with pytest.raises(GoneError, match="too old"):
        next(client.watch_nodes("5"))
