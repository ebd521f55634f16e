"""The small HTTP client, against whatever a server may send."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld.etcd.http import ClosedError, Connection, HttpError, Response, _Source, parse_url


class Server:
    """Answers each request with the next of the given pieces of bytes; None closes the connection instead."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers: list[Sequence[bytes] | None] = []
        self.requests: list[bytes] = []
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with sock, contextlib.suppress(ConnectionError):
                while self.answers and (data := sock.recv(65536)):
                    self.requests.append(data)
                    answer = self.answers.pop(0)
                    if answer is None:
                        break
                    for piece in answer:
                        sock.sendall(piece)
                        time.sleep(0.01 if len(answer) > 1 else 0)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def get(connection: Connection, timeout: float = 2.0) -> Response:
    return connection.send("GET", "/x", {}, None, timeout)


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_one_connection_for_many_requests(server: Server) -> None:
    server.answers = [[LENGTH], [chunked(b"hel", b"lo")], [b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH], [LENGTH]]
    connection = Connection(server.url, None, 1)
    for _ in range(4):
        assert get(connection).read() == b"hello"
    assert server.connections == 1
    port = server.url.rpartition(":")[2].encode()
    assert server.requests[0] == b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:" + port + b"\r\n\r\n"


def test_a_connection_that_was_closed_meanwhile_is_opened_again(server: Server) -> None:
    server.answers = [[LENGTH], None, [LENGTH]]
    connection = Connection(server.url, None, 1)
    assert get(connection).read() == b"hello"
    assert get(connection).read() == b"hello"
    assert server.connections == 2


def test_a_fresh_connection_that_is_closed_is_a_failure(server: Server) -> None:
    server.answers = [None, [LENGTH]]
    with pytest.raises(ClosedError) as caught:
        get(Connection(server.url, None, 1))
    assert not caught.value.answered


def test_an_answer_that_was_not_read_does_not_mix_with_the_next(server: Server) -> None:
    server.answers = [[LENGTH], [chunked(b"other")]]
    connection = Connection(server.url, None, 1)
    get(connection)
    assert get(connection).read() == b"other"


def test_an_answer_that_ends_with_the_connection() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.0 200 OK\r\n\r\nabc")
        far.shutdown(socket.SHUT_WR)
        response = Response(_Source(near), time.monotonic() + 1, "GET")
        assert response.read() == b"abc"
        assert not response.reusable


def test_lines_come_as_they_are_sent_and_waiting_can_be_repeated() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n3\r\ntw")
        response = Response(_Source(near), time.monotonic() + 1, "GET")
        assert response.line(1) == b"one"
        for _ in range(3):
            with pytest.raises(TimeoutError):
                response.line(0.01)
        far.sendall(b"o\r\n2\r\n\nx\r\n0\r\n")
        assert response.line(1) == b"two"
        with pytest.raises(TimeoutError):
            response.line(0)
        far.sendall(b"\r\n")
        assert response.line(1) == b"x"
        assert response.line(1) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"x" * 100000,
    ],
)
def test_what_is_not_http_is_refused(answer: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        writer = threading.Thread(target=far.sendall, args=(answer,))
        writer.start()
        with pytest.raises(HttpError):
            Response(_Source(near), time.monotonic() + 2, "GET").read()
        near.close()
        far.close()


@pytest.mark.parametrize(
    "end",
    [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", chunked(b"x")[:-3]],
)
def test_an_answer_that_breaks_off(end: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(end)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(ClosedError) as caught:
            Response(_Source(near), time.monotonic() + 1, "GET").read()
        assert caught.value.answered


def test_a_server_that_dribbles_does_not_hold_for_ever(server: Server) -> None:
    server.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", *[b"x"] * 400]]
    started = time.monotonic()
    response = get(Connection(server.url, None, 1), 0.3)
    with pytest.raises(TimeoutError):
        response.read()
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "", "/\u00e9"])
def test_targets_that_would_break_the_head(server: Server, target: str) -> None:
    with pytest.raises(ValueError, match="cannot be asked for"):
        Connection(server.url, None, 1).send("GET", target, {}, None, 1)


def test_headers_that_would_break_the_head(server: Server) -> None:
    with pytest.raises(ValueError, match="Authorization"):
        Connection(server.url, None, 1).send("GET", "/", {"Authorization": "a\r\nb: c"}, None, 1)


def test_urls() -> None:
    assert parse_url("https://[fd00::1]:2379") == ("https", "fd00::1", 2379)
    assert parse_url("http://etcd") == ("http", "etcd", 80)
    with pytest.raises(ValueError, match="not the URL"):
        parse_url("unix:///x")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_bodies_arrive_whole_however_they_are_cut(chunks: list[bytes], cuts: list[int]) -> None:
    answer, body = chunked(*chunks), b"".join(chunks)

    class Cut:
        """A socket that gives what is there in pieces of these sizes, with a timeout before each."""

        def __init__(self) -> None:
            self.at, self.count, self.late = 0, 0, True

        def settimeout(self, _: float) -> None: ...

        def recv(self, limit: int) -> bytes:
            self.late = not self.late
            if not self.late and self.count:
                raise TimeoutError
            size = min(cuts[self.count % len(cuts)], limit)
            self.count += 1
            self.at += size
            return answer[self.at - size : self.at]

    source = _Source(Cut())  # type: ignore[arg-type]
    response, lines = patient_head(source), []
    while True:
        try:
            line = response.line(5)
        except TimeoutError:
            continue
        if line is None:
            break
        lines.append(line)
    assert lines == split_lines(body)


def patient_head(source: _Source) -> Response:
    """The head must come within one go: a timeout there is a failure of the request."""
    real = source._sock.recv

    def recv(limit: int) -> bytes:
        while True:
            try:
                return real(limit)
            except TimeoutError:
                continue

    source._sock.recv = recv  # type: ignore[method-assign]
    try:
        return Response(source, time.monotonic() + 5, "GET")
    finally:
        source._sock.recv = real  # type: ignore[method-assign]


def split_lines(body: bytes) -> list[bytes]:
    lines = body.split(b"\n")
    return lines if lines[-1] else lines[:-1]
