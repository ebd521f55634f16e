"""The PKI directory: what is in it, and atomic writes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from kubepki import keys
from kubepki.errors import PrivateKeyError, StoreError
from kubepki.keys import PrivateKey


def read_certificate(path: Path) -> x509.Certificate | None:
    """The certificate in a file, None when the file is missing; ValueError when it is damaged."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return None


def read_key(path: Path) -> PrivateKey | None:
    """The private key in a file, None when the file is missing; ValueError when it is damaged or of another kind."""
    try:
        return keys.load(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except PrivateKeyError as error:
        raise ValueError(error.message) from error


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, with exactly this mode whatever the umask and whatever was there before."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kubepki-")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the directory (0700) and hold its lock; StoreError when another run holds it or it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        stream = (directory / ".lock").open("w")
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{directory}: another run is issuing certificates there", "wait for it to end") from error
        yield
