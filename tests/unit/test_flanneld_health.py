from __future__ import annotations

import http.client
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flanneld import health
from flanneld.errors import FlanneldError, UsageError
from flanneld.health import Answer, Server, probes, request, serve

trouble = [""]


def broken() -> Answer:
    raise ValueError("a fault")


def routes() -> health.Routes:
    return {
        **probes(lambda: trouble[0], lambda: "flannel_ready 1\n"),
        "/status": lambda: Answer(200, "application/json", '{"big": "%s"}' % ("ä" * 300000)),
        "/broken": broken,
    }


@pytest.fixture
def started() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(address: tuple[str, int] | Path = ("127.0.0.1", 0), table: health.Routes | None = None) -> Server:
        servers.append(serve(address, table or routes()))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
    trouble[0] = ""


def get(server: Server, path: str, method: str = "GET") -> tuple[int, str, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(*server.address[:2], timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response


def send(server: Server, data: bytes, *, end: bool = False) -> bytes:
    with socket.create_connection(server.address[:2], timeout=10) as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        found = b""
        while part := sock.recv(65536):
            found += part
    return found


def test_what_the_go_daemon_answers(started: Callable[..., Server]) -> None:
    server = started()
    assert get(server, "/healthz")[:2] == (200, "flanneld is running")
    assert get(server, "/readyz?verbose")[:2] == (200, "flanneld is ready")
    trouble[0] = "no subnet is leased yet"
    assert get(server, "/readyz")[:2] == (503, "flanneld is not ready yet: no subnet is leased yet")
    assert get(server, "/healthz")[0] == 200


def test_figures_and_media_types(started: Callable[..., Server]) -> None:
    server = started()
    status, text, response = get(server, "/metrics")
    assert (status, text) == (200, "flannel_ready 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    status, text, response = get(server, "/status")
    assert (status, len(text), response.headers["Content-Type"]) == (200, 300000 + 11, "application/json")


def test_head_has_the_header_only(started: Callable[..., Server]) -> None:
    status, text, response = get(started(), "/healthz", "HEAD")
    assert (status, text, response.headers["Content-Length"]) == (200, "", "19")


def test_what_is_refused(started: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = started()
    assert get(server, "/")[:2] == (404, "ask for /healthz, /readyz, /metrics, /status, /broken")
    status, _, response = get(server, "/healthz", "POST")
    assert (status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert b" 405 " in send(server, b"POST /healthz HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000)
    assert b" 400 " in send(server, b"GET /healthz\r\n\r\n")
    assert b" 400 " in send(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n\n")  # TLS
    assert b" 400 " in send(server, b"GET /healthz HTTP/1.1\r\n", end=True)
    assert b" 414 " in send(server, b"GET /" + b"x" * health.REQUEST_LINE)
    assert b" 431 " in send(server, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000)
    monkeypatch.setattr(health, "SECONDS", 0.2)
    assert b" 408 " in send(server, b"GET /healthz HTTP/1.1\r\n")
    assert get(server, "/healthz")[0] == 200


def test_bare_newlines_end_a_request_too(started: Callable[..., Server]) -> None:
    assert send(started(), b"GET /healthz HTTP/1.0\n\n").endswith(b"flanneld is running")


def test_a_fault_is_answered_and_logged(started: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = started()
    assert get(server, "/broken")[:2] == (500, "the answer cannot be made; the log says why")
    assert "ValueError: a fault" in caplog.text
    assert get(server, "/healthz")[0] == 200


def test_at_most_16_at_once_and_the_others_wait(started: Callable[..., Server]) -> None:
    inside, most, gate, lock = [0], [0], threading.Event(), threading.Lock()

    def slow() -> Answer:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        gate.wait(10)
        with lock:
            inside[0] -= 1
        return Answer(200, "text/plain", "slow")

    server = started(table={"/slow": slow})
    found: list[int] = []
    clients = [threading.Thread(target=lambda: found.append(get(server, "/slow")[0])) for _ in range(24)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 5
    while inside[0] < health.CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    gate.set()
    for client in clients:
        client.join(10)
    assert (most[0], found) == (health.CONNECTIONS, [200] * 24)


def test_silent_clients_do_not_keep_others_out(started: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SECONDS", 0.3)
    server = started()
    silent = [socket.create_connection(server.address) for _ in range(2 * health.CONNECTIONS)]
    try:
        assert get(server, "/healthz")[0] == 200
    finally:
        for one in silent:
            one.close()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_literals(started: Callable[..., Server], host: str) -> None:
    server = started((host, 0))
    assert get(server, "/healthz")[0] == 200


def test_an_address_that_cannot_be_had(started: Callable[..., Server]) -> None:
    port = started().address[1]
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: .*in use.*-healthz-port"):
        started(("127.0.0.1", port))
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.77:0"):
        started(("192.0.2.77", 0))
    with pytest.raises(UsageError, match="cannot listen on x"):
        started(("x" * 300, 0))


def test_the_port_is_free_again_after_close(started: Callable[..., Server]) -> None:
    server = started()
    get(server, "/healthz")
    port = server.address[1]
    server.close()
    assert get(started(("127.0.0.1", port)), "/healthz")[0] == 200


def test_a_socket_in_the_file_system(tmp_path: Path, started: Callable[..., Server]) -> None:
    path = tmp_path / "run" / "flanneld.sock"
    with pytest.raises(FlanneldError, match="no flanneld answers at"):
        request(path, "/status")
    server = started(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert request(path, "/healthz") == "flanneld is running"
    assert len(request(path, "/status")) == 300000 + 11
    with pytest.raises(FlanneldError, match=r"answers /nothing with 'ask for /healthz"):
        request(path, "/nothing")
    with pytest.raises(UsageError, match="another flanneld answers"):
        started(path)
    server.close()
    with pytest.raises(FlanneldError, match="no flanneld answers at"):
        request(path, "/status")
    started(path)  # over the stale one
    assert request(path, "/healthz") == "flanneld is running"


def test_what_is_no_socket_stays(tmp_path: Path, started: Callable[..., Server]) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="in the way"):
        started(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(FlanneldError, match="cannot be made"):
        started(tmp_path / "file" / "sock")
    with pytest.raises(FlanneldError, match="cannot be made"):
        started(tmp_path / ("x" * 120))


def test_nothing_stays_open(tmp_path: Path, started: Callable[..., Server]) -> None:
    server = started(tmp_path / "sock")
    request(tmp_path / "sock", "/healthz")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is all
    for _ in range(50):
        request(tmp_path / "sock", "/healthz")
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:  # noqa: PTH208 - as above
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - as above
    assert server.address


@given(st.binary(max_size=200) | st.text("GETHAD /:?.1\r\n", max_size=60).map(str.encode))
@example(b"GET / HTTP/1.1\r\n\r\n")
@example(b"HEAD /healthz HTTP/1.\n\n")
@example(b"\n\n")
def test_any_bytes_get_an_answer(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        health.answer(ours, probes(lambda: "", lambda: ""))
        ours.close()
        assert theirs.recv(65536).startswith(b"HTTP/1.1 ")
