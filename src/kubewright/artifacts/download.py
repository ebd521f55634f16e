"""Files over HTTP: resumable, retried, never half a file under its own name."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from kubewright.artifacts.store import disk_errors
from kubewright.errors import UserError

_TIMEOUT_SECONDS = 30.0
_TRIES = 3
_BLOCK = 1 << 20
_PROGRESS_BYTES = 20 << 20


def fetch(url: str, target: Path, progress: Callable[[str], None]) -> None:
    """Download to `target`, going on from `target`.part where an earlier try ended. UserError when it cannot be had."""
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(attempt)
        try:
            with disk_errors(part):
                _attempt(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
                continue
            raise UserError(
                f"{url}: the server answered {error.code} {error.reason}", "is the address right?"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        part.replace(target)
        return
    raise UserError(
        f"{url}: {reason} ({_TRIES} tries)",
        "can this machine reach it (proxy, firewall)? Running again goes on where it stopped",
    )


def _attempt(url: str, part: Path, progress: Callable[[str], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - see scheme
    if request.type not in ("http", "https"):
        raise UserError(f"{url}: only http and https can be downloaded", "use the source 'local' for directories")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:  # noqa: S310 - the scheme was checked
        resumed = reply.status == http.HTTPStatus.PARTIAL_CONTENT
        expected = int(reply.headers.get("Content-Length") or 0)
        received = 0
        with part.open("ab" if resumed else "wb") as stream:
            while block := reply.read(_BLOCK):
                stream.write(block)
                before, received = received, received + len(block)
                if received // _PROGRESS_BYTES > before // _PROGRESS_BYTES:
                    progress(f"{url.rpartition('/')[2]}: {received >> 20} of {expected >> 20} MiB")
        if expected and received < expected:
            raise http.client.IncompleteRead(b"", expected - received)


def published_checksum(url: str, file_name: str, progress: Callable[[str], None], directory: Path) -> str:
    """The SHA-256 that a release publishes: a file with only the digest, or lines `digest  name`."""
    target = directory / (hashlib.sha256(url.encode()).hexdigest()[:16] + ".sha256")
    fetch(url, target, progress)
    text = target.read_text(errors="replace")
    target.unlink()
    for line in text.splitlines():
        fields = line.split()
        if fields and len(fields[0]) == 64 and (len(fields) == 1 or fields[-1].lstrip("*").endswith(file_name)):
            return fields[0].lower()
    raise UserError(f"{url}: publishes no sha256 of {file_name}", "give the sha256 in artifacts.lock.yml")
