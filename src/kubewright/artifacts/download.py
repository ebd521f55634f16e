"""Files over HTTP: resumable, retried, never half a file under its own name."""

from __future__ import annotations

import hashlib
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from kubewright.cache import disk_errors
from kubewright.errors import UserError

_BLOCK = 1 << 20
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a server may be silent, how often it is asked, and the first pause between (then twice it, and so on).

    Times in seconds.
    """

    silence: float = 30.0
    tries: int = 4
    pause: float = 1.0


PATIENCE = Patience()
_WORTH_A_RETRY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_REMEDIES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "it wants a password, which is not supported: copy its files into a directory and use "
    "artifacts_source: local",
    HTTPStatus.FORBIDDEN: "may this machine read it? Otherwise copy its files into a directory and use "
    "artifacts_source: local",
    HTTPStatus.NOT_FOUND: "does this version exist there, under this name?",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "the proxy of http_proxy or https_proxy wants a password",
}


class NotThereError(UserError):
    """The server answers and does not have it."""


class _Again(Exception):  # noqa: N818 - is no failure, but the wish to be asked again
    """What went wrong may go right next time."""


def check_address(setting: str, url: str) -> None:
    """UserError unless `url`, the value of a user's `setting`, can be downloaded from. Never shows a password."""
    try:
        parts = urlsplit(url)
        known, secret = parts.hostname and (parts.port or 1), parts.password or parts.username
    except ValueError as error:
        raise UserError(f"{setting}: {url!r} is no URL: {error}", "write it as http://host/path") from error
    if secret:
        raise UserError(
            f"{setting}: the URL of {parts.hostname} holds a user name or password, which is not supported",
            "copy the mirror's files into a directory and use artifacts_source: local",
        )
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"{setting}: {url!r}: only http and https can be downloaded",
            "for a directory use artifacts_source: local with artifacts_dir",
        )
    if not known or any(character.isspace() for character in url):
        raise UserError(f"{setting}: {url!r} names no host, or has spaces in it", "write it as http://host/path")


def fetch(url: str, target: Path, progress: Callable[[str], None]) -> None:
    """Download to `target`, going on from `target`.part where an earlier try ended. UserError when it cannot be had."""
    check_address(url, url)
    part = target.with_name(target.name + ".part")
    with disk_errors(part):
        target.parent.mkdir(parents=True, exist_ok=True)
    reason: Exception = _Again()
    for attempt in range(PATIENCE.tries):
        if attempt:
            pause = PATIENCE.pause * 2 ** (attempt - 1)
            progress(f"{url}: {reason}; trying again in {pause:.0f} s")
            time.sleep(pause)
        try:
            _attempt(url, part, progress)
        except _Again as error:
            reason = error
            continue
        part.replace(target)
        return
    raise UserError(
        f"{url}: {reason} ({PATIENCE.tries} tries)",
        "can this machine reach it (proxy, firewall, certificates)? Running again goes on where it stopped",
    )


def _attempt(url: str, part: Path, progress: Callable[[str], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - checked
    try:
        # An opener of its own reads the proxies of the environment as they are now.
        with urllib.request.build_opener().open(request, timeout=PATIENCE.silence) as reply:
            if request.type == "https" and not str(reply.url).startswith("https:"):
                raise UserError(f"{url}: it leads to {reply.url}, without encryption", "correct artifacts.lock.yml")
            _receive(reply, url, part, progress)
    except urllib.error.HTTPError as error:
        _refused(url, error, part)
    except (OSError, http.client.HTTPException) as error:
        raise _Again(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _refused(url: str, error: urllib.error.HTTPError, part: Path) -> None:
    said = f"the server answered {error.code} {error.reason}"
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.unlink(missing_ok=True)
        raise _Again(said) from error
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code in _WORTH_A_RETRY:
        raise _Again(said) from error
    kind = NotThereError if error.code == HTTPStatus.NOT_FOUND else UserError
    raise kind(f"{url}: {said}", _REMEDIES.get(error.code, "is the address right?")) from error


def _receive(reply: http.client.HTTPResponse, url: str, part: Path, progress: Callable[[str], None]) -> None:
    resumed = reply.status == HTTPStatus.PARTIAL_CONTENT
    expected = int(reply.headers.get("Content-Length") or 0)
    received, said = 0, time.monotonic()
    try:
        with disk_errors(part):
            # Without a buffer: what a full disk did not take would be written again, and fail again, at the close.
            stream = part.open("ab" if resumed else "wb", buffering=0)
        with stream:
            # What has come, be it less than a block: a slow line would look like a dead one.
            while block := reply.read1(_BLOCK):
                with disk_errors(part):
                    _write(stream, block)
                received += len(block)
                if time.monotonic() - said >= _PROGRESS_SECONDS:
                    said = time.monotonic()
                    whole = f" of {expected / (1 << 20):.1f}" if expected else ""
                    progress(f"{url.rpartition('/')[2]}: {received / (1 << 20):.1f}{whole} MiB")
    except UserError:
        # A disk that is full stays full with half a file on it.
        part.unlink(missing_ok=True)
        raise
    if received < expected:
        raise _Again(f"the connection ended after {received} of {expected} bytes")


def _write(stream: io.RawIOBase, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def published_checksum(url: str, file_name: str, progress: Callable[[str], None], directory: Path) -> str:
    """The SHA-256 that a release publishes: a file with only the digest, or lines `digest  name`."""
    target = directory / (hashlib.sha256(url.encode()).hexdigest()[:16] + ".sha256")
    try:
        fetch(url, target, progress)
    except NotThereError as error:
        raise UserError(
            f"{error.message}: there is no checksum of {file_name}",
            f"on a mirror of your own: sha256sum {file_name} > {url.rpartition('/')[2]}; of a release: write the "
            "sha256 that you trust into artifacts.lock.yml",
        ) from error
    text = target.read_text(errors="replace")
    target.unlink()
    digest = checksum_of(text, file_name)
    if not digest:
        raise UserError(f"{url}: publishes no sha256 of {file_name}", "give the sha256 in artifacts.lock.yml")
    return digest


def checksum_of(text: str, file_name: str) -> str:
    """The SHA-256 in lower case that a checksum file gives for a file: as its only word, or in a line that names it.

    Empty when it gives none.
    """
    for line in text.splitlines():
        fields = line.split()
        named = len(fields) == 1 or (len(fields) > 1 and fields[-1].lstrip("*").rpartition("/")[2] == file_name)
        if named and len(fields[0]) == 64 and set(fields[0].lower()) <= set("0123456789abcdef"):
            return fields[0].lower()
    return ""
