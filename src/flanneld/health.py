"""The health server: /healthz as in the Go daemon, and a /readyz that tells the truth."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Tuple

from flanneld.errors import UsageError


def serve(address: Tuple[str, int], trouble: Callable[[], str]) -> ThreadingHTTPServer:
    """Serve in a thread. `trouble` returns what keeps the daemon from being ready, empty when nothing does.

    Raises UsageError when the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers GET requests."""

        timeout = 5

        def do_GET(self) -> None:
            """Answer /healthz and /readyz."""
            path = self.path.split("?", 1)[0]
            if path == "/healthz":
                self._answer(200, "flanneld is running")
            elif path == "/readyz":
                why = trouble()
                self._answer(503 if why else 200, f"flanneld is not ready yet: {why}" if why else "flanneld is ready")
            else:
                self._answer(404, "ask for /healthz or /readyz")

        def _answer(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Say nothing: probes come every second."""

    try:
        server = ThreadingHTTPServer(address, Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"the health server cannot listen on {address[0]}:{address[1]}: {error}", "choose another -healthz-port"
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
