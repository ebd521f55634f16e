"""HTTP/1.1 over one connection, with and without TLS: what the stores need of it, and strict about the rest.

The standard library's client would cost 1.4 MB and 10 ms in every daemon, most of it for parsing headers as mail. One
request is under way at a time. Answers have a length, or come in chunks, or end with the connection; a streamed one is
read by lines.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Dict, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from flanneld.etcd.tls import Tls

if TYPE_CHECKING:
    import ssl

LIMIT = 128 << 20
"""Bytes of an answer, or of a line of a streamed one: about 300000 leases."""

_HEAD = 64 << 10  # bytes of an answer's head, and of a chunk's first line
_INTERIM = 8  # answers of the kind "100 Continue" before the real one
_PIECE = 64 << 10
_TARGET = re.compile(r"[!-~]+")
_HEADER = re.compile(r"[\t -~]*")


class HttpError(OSError):
    """The other end does not speak HTTP as it should, or too much of it."""


class ClosedError(HttpError):
    """The connection ended before the answer did; `answered`: after its first byte."""

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class Url(NamedTuple):
    """Where a server is."""

    scheme: str
    host: str
    port: int


def parse_url(text: str) -> Url:
    """Return the parts of http://HOST[:PORT] or https://HOST[:PORT]; raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{text!r} is not the URL of a server")
    return Url(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))


class _Source:
    """Bytes from a socket. After a timeout nothing is lost: the same call can be made again."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.seen = False  # whether anything came since it was last set

    def fill(self, deadline: float) -> bool:
        """Wait for more; False when the other end has closed. Raises socket.timeout at `deadline`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        self._sock.settimeout(left)
        piece = self._sock.recv(_PIECE)
        self._buffer += piece
        self.seen |= bool(piece)
        return bool(piece)

    def line(self, limit: int, deadline: float) -> bytes:
        """Return a line without its end."""
        start = 0
        while True:
            end = self._buffer.find(b"\n", start)
            if end > limit or (end < 0 and len(self._buffer) > limit):
                raise HttpError("it sends lines that are too long")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line[:-1] if line.endswith(b"\r") else line
            start = len(self._buffer)
            if not self.fill(deadline):
                raise ClosedError("it closed the connection without an answer", answered=self.seen)

    def some(self, limit: int, deadline: float) -> bytes:
        """Return 1 to `limit` bytes, none when the other end has closed."""
        if not self._buffer:
            self.fill(deadline)
        piece = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return piece


class Response:
    """An answer, its head read already. `headers` have lower-case names."""

    def __init__(self, source: _Source, deadline: float, method: str) -> None:
        self._source = source
        self._deadline = deadline
        self._data = bytearray()
        self._left = 0  # bytes of the body, or of its current chunk, that are still to come
        self._chunk_end = False  # a chunk was read, the end of its line was not
        self._last = False  # the last chunk was read, what follows it was not
        self.done = False
        for _ in range(_INTERIM):
            self.status, self._modern, self.headers = _head(source, deadline)
            if self.status >= 200:
                break
        else:
            raise HttpError("it sends interim answers only")
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self._sized = not self._chunked and "content-length" in self.headers
        if self._sized:
            length = self.headers["content-length"]
            if not length.isascii() or not length.isdigit() or len(length) > 15:
                raise HttpError("it sends a Content-Length that is not a number")
            self._left = int(length)
        elif not self._chunked and "transfer-encoding" in self.headers:
            raise HttpError("it sends a Transfer-Encoding that nobody asked for")
        if method == "HEAD" or self.status in {204, 304} or (self._sized and not self._left):
            self.done = True

    @property
    def reusable(self) -> bool:
        """Tell whether the connection can take another request."""
        ends_itself = self._chunked or self._sized or self.status in {204, 304}
        return self.done and ends_itself and self._modern and self.headers.get("connection", "").lower() != "close"

    def read(self) -> bytearray:
        """Return the whole body."""
        while not self.done:
            self._more(self._deadline)
            if len(self._data) > LIMIT:
                raise HttpError(f"its answer is longer than {LIMIT} bytes")
        data, self._data = self._data, bytearray()
        return data

    def line(self, timeout: float) -> Optional[bytes]:
        """Return the next line of a streamed body, None at its end.

        Raises socket.timeout when it is not there within `timeout` seconds; then it can be asked for again.
        """
        deadline = time.monotonic() + timeout
        start = 0
        while True:
            end = self._data.find(b"\n", start)
            if end >= 0:
                line = bytes(self._data[:end])
                del self._data[: end + 1]
                return line
            if self.done:
                rest = bytes(self._data)
                self._data.clear()
                return rest or None
            start = len(self._data)
            if start > LIMIT:
                raise HttpError(f"it sends a line longer than {LIMIT} bytes")
            self._more(deadline)

    def _more(self, deadline: float) -> None:
        """Take one step: after a timeout the same step is taken again."""
        if self._chunked and not self._left:
            self._next_chunk(deadline)
            return
        limit = self._left if self._chunked or self._sized else _PIECE
        piece = self._source.some(min(limit, _PIECE), deadline)
        if not piece:
            if self._chunked or self._sized:
                raise ClosedError("its answer broke off", answered=True)
            self.done = True
            return
        self._data += piece
        if self._chunked or self._sized:
            self._left -= len(piece)
            self._chunk_end = self._chunked and not self._left
            self.done = self._sized and not self._left

    def _next_chunk(self, deadline: float) -> None:
        if self._chunk_end:
            if self._source.line(_HEAD, deadline):
                raise HttpError("it sends chunks that are longer than they say")
            self._chunk_end = False
        if self._last:
            self._trailers(deadline)
            return
        size = self._source.line(_HEAD, deadline).split(b";", 1)[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            raise HttpError("it sends chunks of no size")
        self._left = int(size, 16)
        self._last = not self._left
        if self._last:
            self._trailers(deadline)

    def _trailers(self, deadline: float) -> None:
        """Skip what follows the last chunk; it ends with an empty line."""
        for _ in range(100):
            if not self._source.line(_HEAD, deadline):
                self.done = True
                return
        raise HttpError("it sends too many trailers")


class Connection:
    """A connection that is opened when there is something to send, and again when it was closed meanwhile.

    Methods raise OSError: HttpError, ssl.SSLError, socket.timeout and those of the socket; then it is closed.
    """

    def __init__(self, url: str, tls: Optional[Tls], connect_timeout: float) -> None:
        self._url = parse_url(url)
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._sock: Optional[socket.socket] = None
        self._source: Optional[_Source] = None
        self._response: Optional[Response] = None
        self._established = False

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: Optional[bytes], timeout: float
    ) -> Response:
        """Send a request and return the answer; `timeout`: seconds until its body must have been read.

        A request on a connection that turns out to be closed is sent once more on a new one: the server closes idle
        ones at any time. So a request may be carried out twice.
        """
        if self._response is not None and not self._response.reusable:
            self.close()
        kept = self._sock is not None
        content = self._format(method, target, headers, body)
        try:
            return self._exchange(method, content, timeout)
        except OSError as error:
            spoke = error.answered if isinstance(error, ClosedError) else isinstance(error, HttpError)
            if spoke or isinstance(error, socket.timeout):
                raise
            if not kept:
                if self._established and "ALERT" not in str(getattr(error, "reason", "")):
                    self._find_reason()
                raise
        return self._exchange(method, content, timeout)

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
        self._sock = self._source = self._response = None

    def _exchange(self, method: str, content: bytes, timeout: float) -> Response:
        try:
            if self._sock is None:
                self._established = False
                self._sock = self._open()
                self._established = True
                self._source = _Source(self._sock)
            source = self._source
            assert source is not None  # noqa: S101 - it comes and goes with the socket
            self._sock.settimeout(timeout)
            source.seen = False
            self._sock.sendall(content)
            self._response = Response(source, time.monotonic() + timeout, method)
        except BaseException:
            self.close()
            raise
        return self._response

    def _find_reason(self) -> None:
        """Raise ssl.SSLError when the server has refused the client certificate.

        With TLS 1.3 it says so after the handshake, and what was sent by then makes the kernel drop its words.
        """
        if self._tls is None:
            return
        silent = self._open()
        try:
            silent.settimeout(1.0)
            with contextlib.suppress(socket.timeout, ConnectionError):
                silent.recv(1)
        finally:
            silent.close()

    def _open(self) -> socket.socket:
        plain = socket.create_connection((self._url.host, self._url.port), self._connect_timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer that vanished is noticed within 25 s, also while nothing is sent.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                plain.setsockopt(socket.IPPROTO_TCP, option, value)
            if self._tls is None:
                return plain
            wrapped: ssl.SSLSocket = self._tls.context().wrap_socket(plain, server_hostname=self._url.host)
            return wrapped
        except BaseException:
            plain.close()
            raise

    def _format(self, method: str, target: str, headers: Mapping[str, str], body: Optional[bytes]) -> bytes:
        host = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        fields = {"Host": f"{host}:{self._url.port}", **headers}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        # Nothing that was read somewhere may end a line of the head.
        if not _TARGET.fullmatch(target):
            raise ValueError(f"{target!r} cannot be asked for")
        for name, value in fields.items():
            if not _HEADER.fullmatch(value):
                raise ValueError(f"the header {name} has a value that cannot be sent")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + (body or b"")


def _head(source: _Source, deadline: float) -> Tuple[int, bool, Dict[str, str]]:
    first = source.line(_HEAD, deadline)
    match = re.fullmatch(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?", first)
    if match is None:
        raise HttpError("it does not speak HTTP")
    headers: Dict[str, str] = {}
    left = _HEAD
    while True:
        line = source.line(left, deadline)
        if not line:
            return int(match.group(2)), match.group(1) == b"1", headers
        left -= len(line)
        name, colon, value = line.partition(b":")
        if left <= 0 or not colon or not name or name != name.strip():
            raise HttpError("it sends headers that cannot be read")
        headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
