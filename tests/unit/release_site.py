"""A web server on the loopback that misbehaves as told, answer by answer."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable
from typing import Any

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def good(body: bytes, *, ranges: bool = True) -> Answer:
    """The whole body, or the range that was asked for."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range") if ranges else None
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and begin >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(body) - begin))
        request.end_headers()
        request.wfile.write(body[begin:])

    return answer


def status(code: int) -> Answer:
    """An error."""
    return lambda request: request.send_error(code)


def redirect(location: str) -> Answer:
    """A redirection."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def part(body: bytes, sent: int, until: threading.Event | None = None) -> Answer:
    """Only the first bytes of what Content-Length promises; then the end, or silence until the event."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:sent])
        request.wfile.flush()
        if until:
            until.wait(20)

    return answer


class Site:
    """Answers by path, each as often as it stands there, the last one for ever; `seen`: (path, Range) of requests."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, str]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                del args

            def do_GET(self) -> None:
                site.seen.append((self.path, self.headers.get("Range") or ""))
                answers = site.answers.get(self.path) or [status(404)]
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return [seen for seen, _ in self.seen].count(path)
