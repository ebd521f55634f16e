from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest

from kubewright.machine import probe


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_service_may_take_a_moment() -> None:
    port = _free_port()
    server: list[http.server.HTTPServer] = []

    def late() -> None:
        time.sleep(1)
        server.append(http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler))
        server[0].handle_request()
        server[0].server_close()

    thread = threading.Thread(target=late)
    thread.start()
    assert probe.fetch("127.0.0.1", port)["ok"]
    thread.join(10)


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_FETCH_SECONDS", 0.6)
    begin = time.monotonic()
    assert not probe.fetch("127.0.0.1", _free_port())["ok"]
    assert time.monotonic() - begin < 5
