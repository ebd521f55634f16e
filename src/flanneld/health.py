"""A small HTTP server for probes, figures and `flanneld status`, and the client for the last one.

The standard library's server would cost 20 ms at the start and 2 MB for as long as the daemon runs. This one
answers GET and HEAD, one request per connection, and gives nobody much: 4 KB for the request line, 16 KB for the
whole request, 5 s, and 16 connections at once; others wait until one of these ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Optional, Tuple, Union

from flanneld.errors import FlanneldError, UsageError
from flanneld.log import logger

REQUEST_LINE = 4096
REQUEST = 16384
SECONDS = 5.0
CONNECTIONS = 16

_TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_LARGEST_ANSWER = 1 << 27


class Answer(NamedTuple):
    """What a route returns. `kind` is the media type."""

    status: int
    kind: str
    text: str


Routes = Mapping[str, Callable[[], Answer]]
"""What is answered by path. The functions are called from the server's threads."""


def probes(trouble: Callable[[], str], figures: Callable[[], str]) -> Routes:
    """Return the usual routes: /healthz as in the Go daemon, a /readyz that tells the truth, /metrics.

    `trouble` returns what keeps the daemon from being ready, empty when nothing does; `figures` is Prometheus' text.
    """

    def ready() -> Answer:
        why = trouble()
        return (
            Answer(503, _TEXT, f"flanneld is not ready yet: {why}") if why else Answer(200, _TEXT, "flanneld is ready")
        )

    return {
        "/healthz": lambda: Answer(200, _TEXT, "flanneld is running"),
        "/readyz": ready,
        "/metrics": lambda: Answer(200, "text/plain; version=0.0.4; charset=utf-8", figures()),
    }


class Server:
    """Answers on one socket in threads of its own, until `close`."""

    def __init__(self, sock: socket.socket, routes: Routes) -> None:
        self._sock = sock
        self._routes = routes
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False
        self.address = sock.getsockname()
        threading.Thread(target=self._accept, name="health", daemon=True).start()

    def close(self) -> None:
        """Take no more connections. What is being answered still is."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing does not
        self._sock.close()

    def _accept(self) -> None:
        while not self._closed:
            self._free.acquire()
            try:
                connection = self._sock.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), name="health", daemon=True).start()
            except (OSError, RuntimeError):  # no more descriptors or threads; or closed
                self._free.release()
                if not self._closed:
                    time.sleep(0.5)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                answer(connection, self._routes)
        except OSError:
            pass  # it went away
        except Exception:  # noqa: BLE001 - whatever a stranger sends, the daemon does not end by it
            logger.exception("a connection to the health server was not answered")
        finally:
            self._free.release()


def serve(address: Union[Tuple[str, int], Path], routes: Routes) -> Server:
    """Serve on a TCP address (a name, or an IPv4 or IPv6 literal; port 0 = any), or on a socket in the file system.

    The latter is for the machine's root only (mode 0600); one that a killed daemon left is replaced. Raises
    UsageError when the address cannot be had, another FlanneldError when the socket's directory will not do.
    """
    if isinstance(address, Path):
        return Server(_listen_unix(address), routes)
    return Server(_listen_tcp(*address), routes)


def request(path: Path, target: str) -> str:
    """Return what the daemon whose socket is `path` answers for `target`, such as /status.

    Raises FlanneldError when it does not answer, or with an error.
    """
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(SECONDS)
            sock.connect(str(path))
            sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            while len(received) < _LARGEST_ANSWER:
                part = sock.recv(1 << 16)
                if not part:
                    break
                received += part
    except (FileNotFoundError, ConnectionRefusedError):
        raise FlanneldError(f"no flanneld answers at {path}", "is it running, with this -subnet-file?") from None
    except PermissionError:
        raise FlanneldError(f"{path} may not be opened", "run it as root") from None
    except OSError as error:
        raise FlanneldError(f"flanneld does not answer at {path}: {error}") from None
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split(b" ", 2)
    if len(words) < 2 or words[1] != b"200":
        shown = body.decode("utf-8", "replace").strip() or "nothing"
        raise FlanneldError(f"flanneld at {path} answers {target} with {shown!r}")
    return body.decode("utf-8", "replace")


def answer(connection: socket.socket, routes: Routes) -> None:
    """Read one request and answer it. Raises OSError when the other side is gone."""
    deadline = time.monotonic() + SECONDS
    method, target, refused = _read_request(connection, deadline)
    found = refused or _ask(method, target, routes)
    body = found.text.encode("utf-8", "backslashreplace")
    head = (
        f"HTTP/1.1 {found.status} {_REASONS[found.status]}\r\nContent-Type: {found.kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    )
    if found.status == 405:
        head += "Allow: GET, HEAD\r\n"
    connection.settimeout(max(deadline - time.monotonic(), 1.0))
    connection.sendall(head.encode() + b"\r\n" + (b"" if method == "HEAD" else body))
    if refused is not None or found.status == 405:
        # Closing with something unread would reset the connection, and the answer would be lost.
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.5)
        connection.recv(REQUEST)


def _read_request(connection: socket.socket, deadline: float) -> Tuple[str, str, Optional[Answer]]:
    """Return method and target, and what to answer when the request is refused as it is."""
    received = b""
    while b"\r\n\r\n" not in received and b"\n\n" not in received:
        left = deadline - time.monotonic()
        if left <= 0:
            return "", "", Answer(408, _TEXT, f"a request must be complete within {SECONDS:g} s")
        connection.settimeout(left)
        try:
            part = connection.recv(REQUEST)
        except socket.timeout:  # an alias of TimeoutError since Python 3.10 only
            continue
        if not part:
            return "", "", Answer(400, _TEXT, "the request is not complete")
        received += part
        if len(received.split(b"\n", 1)[0]) > REQUEST_LINE:
            return "", "", Answer(414, _TEXT, f"a request line has at most {REQUEST_LINE} bytes")
        if len(received) > REQUEST:
            return "", "", Answer(431, _TEXT, f"a request has at most {REQUEST} bytes")
    words = received.split(b"\n", 1)[0].decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return "", "", Answer(400, _TEXT, "this is not an HTTP/1 request")
    return words[0], words[1], None


def _ask(method: str, target: str, routes: Routes) -> Answer:
    if method not in {"GET", "HEAD"}:
        return Answer(405, _TEXT, "only GET and HEAD are answered")
    route = routes.get(target.split("?", 1)[0])
    if route is None:
        return Answer(404, _TEXT, f"ask for {', '.join(routes)}")
    try:
        return route()
    except Exception:  # noqa: BLE001 - a fault in here is no reason to leave a probe without an answer
        logger.exception("the answer to %s cannot be made", target)
        return Answer(500, _TEXT, "the answer cannot be made; the log says why")


def _listen_tcp(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(found[0][4])
            sock.listen(CONNECTIONS)
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"the health server cannot listen on {shown}: {error}",
            "choose another -healthz-port, and for -healthz-ip an address of this machine",
        ) from None
    return sock


def _listen_unix(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _make_room(path)
            sock.bind(str(path))
            path.chmod(0o600)  # before anybody can connect: that takes the next line
            sock.listen(CONNECTIONS)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise FlanneldError(f"the socket {path} cannot be made: {error}", "is its directory writable?") from None
    return sock


def _make_room(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises UsageError for everything else that is there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"{path} is in the way", "it is not a socket; remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    except FileNotFoundError:
        return
    else:
        raise UsageError(
            f"another flanneld answers at {path}",
            "stop it, or give each daemon a -subnet-file of its own",
        )
