"""TLS towards a store: contexts that follow the files on disk, and failures in words that tell which side refused."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

from flanneld.errors import UsageError
from flanneld.log import Repeated

if TYPE_CHECKING:
    import ssl


class TlsFiles(NamedTuple):
    """Files in PEM, empty where there is none: without a CA those of the system are trusted.

    `names` are what the user sets them with, for messages.
    """

    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    names: Tuple[str, str, str] = ("-etcd-cafile", "-etcd-certfile", "-etcd-keyfile")


class Tls:
    """The settings of TLS, made once and again when a file has changed: renewed certificates need no restart.

    Any thread may ask. While a renewal is half done (the new certificate with the old key) the old ones stay in use.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Read the files; raises UsageError when they cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._trouble = Repeated()
        self._stamps = self._stat()
        self._context = _make(files)

    def context(self) -> "ssl.SSLContext":
        """Return the settings for a new connection."""
        with self._lock:
            stamps = self._stat()
            if stamps != self._stamps:
                try:
                    self._context = _make(self._files)
                    self._stamps = stamps
                    self._trouble.clear("the changed certificates are in use")
                except UsageError as error:
                    self._trouble.warn(f"changed certificates cannot be used, the old ones stay: {error}")
            return self._context

    def _stat(self) -> List[Tuple[int, int, int]]:
        stamps = []
        for name in self._files[:3]:
            try:
                found = os.stat(name) if name else None  # noqa: PTH116 - a Path per file and connection buys nothing
            except OSError:
                found = None
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino) if found else (0, 0, 0))
        return stamps


def _make(files: TlsFiles) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415 - 2 MB, and plain connections do without it

    ca, certificate, key = files.names
    try:
        # Python's default context would read the CAs of the system, too, when there is no file of our own.
        context = ssl.create_default_context(cafile=files.cafile or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{ca} {files.cafile} cannot be used: {_why(error)}", "it must hold CAs in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 refuses CAs without a key usage, of which there are many and which Go takes.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if files.certfile:
        try:
            # Never ask on a terminal for the password of an encrypted key.
            context.load_cert_chain(files.certfile, files.keyfile, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise UsageError(
                f"{certificate} {files.certfile} with {key} {files.keyfile} cannot be used: {_why(error)}",
                "both must be PEM, the key without a password, and the key must belong to the certificate",
            ) from None
    return context


def _why(error: BaseException) -> str:
    text: Any = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(text)


class Failure(NamedTuple):
    """Why a server could not be asked, and what to do about it."""

    message: str
    hint: str = ""


_CERTIFICATE_HINTS = {
    9: "it is valid in the future only: compare the clocks",
    10: "it has expired: renew it on the server, or set this machine's clock",
    18: "a CA file must hold the CA that signed it",
    19: "a CA file must hold the CA that signed it",
    20: "a CA file must hold the CA that signed it",
    21: "a CA file must hold the CA that signed it",
    62: "ask for the server by a name that its certificate has",
    64: "ask for the server by an address that its certificate has",
}
"""By OpenSSL's verify codes (X509_V_ERR_*)."""

_NOT_TLS = (
    "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG",
)  # fmt: skip
_CLOSED = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
_CLOSED_TLS = Failure(
    "the server closed the TLS connection",
    "if it is a plain port, use http://; otherwise it may not accept the client certificate: see its log",
)
_CLOSED_PLAIN = Failure("it closed the connection without an answer", "if it wants TLS, use https://")


def explain(error: BaseException, *, tls: bool) -> Failure:
    """Return in words what went wrong with a connection; `tls`: it was meant to be one with TLS."""
    if "ssl" in sys.modules:  # otherwise it is no error of TLS, and the module would cost 2 MB
        import ssl  # noqa: PLC0415

        if isinstance(error, ssl.SSLError):
            return _tls_failure(error)
    if isinstance(error, _CLOSED) or getattr(error, "answered", None) is False:
        return _CLOSED_TLS if tls else _CLOSED_PLAIN
    if isinstance(error, socket.timeout):
        return Failure("it did not answer in time")
    if isinstance(error, socket.gaierror):
        return Failure(f"its name cannot be resolved: {error.strerror}")
    if isinstance(error, ConnectionRefusedError):
        return Failure("connection refused", "nothing listens there, or a firewall refuses")
    return Failure(str(getattr(error, "strerror", None) or error) or type(error).__name__)


def _tls_failure(error: "ssl.SSLError") -> Failure:
    code = getattr(error, "verify_code", None)  # that of an SSLCertVerificationError
    if code is not None:
        words = getattr(error, "verify_message", "")
        return Failure(f"this side does not accept the server's certificate: {words}", _CERTIFICATE_HINTS.get(code, ""))
    reason = error.reason or ""
    words = reason.replace("_", " ").lower()
    if "ALERT" in reason:
        return _alert(reason, words.partition("alert ")[2] or words)
    if "EOF" in reason or "EOF" in str(error):
        return _CLOSED_TLS
    if reason in _NOT_TLS:
        return Failure(f"it does not speak TLS ({words})", "if it is a plain port, use http://")
    return Failure(f"TLS failed: {words or error}")


def _alert(reason: str, words: str) -> Failure:
    if "CERTIFICATE_REQUIRED" in reason:
        return Failure("the server wants a client certificate", "give one that its CA has signed, with its key")
    if any(part in reason for part in ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR", "ACCESS_DENIED")):
        hint = "it must be signed by the CA that the server trusts, be valid now, and be meant for clients"
        return Failure(f"the server does not accept our client certificate ({words})", hint)
    return Failure(f"the server ended the TLS handshake ({words})", "see its log")


def tls_for(endpoints: Tuple[str, ...], files: TlsFiles) -> Optional[Tls]:
    """Return the settings, None when every endpoint is plain HTTP; raises UsageError on unusable files."""
    return Tls(files) if any(endpoint.startswith("https:") for endpoint in endpoints) else None
