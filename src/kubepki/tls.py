"""A TLS server, asked what it presents: to be looked at or compared with a file, never to be trusted for it."""

from __future__ import annotations

import socket
import ssl

from cryptography import x509

from kubepki import issue
from kubepki.errors import CertificateError

_SECONDS = 10


def presented(host: str, port: int, where: str) -> x509.Certificate:
    """The server's own certificate, whoever signed it.

    CertificateError when that is none, or damaged; `where` is what its messages call the server. OSError, ValueError or
    OverflowError when there is no such host or port, when nothing answers, or when it speaks no TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), _SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as stream,
    ):
        found = stream.getpeercert(binary_form=True)
    if not found:
        raise CertificateError(f"{where} presents no certificate")
    return issue.load(ssl.DER_cert_to_PEM_cert(found).encode(), where)
