"""Where secrets and other content come from, when they are not to be written down: `env:NAME`, `file:PATH`, `PATH`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from kubepki.errors import StoreError

_LARGEST = 10 * 2**20


def read(source: str) -> bytes:
    """The content of a file (`PATH`, `file:PATH`) or of a variable of the environment (`env:NAME`), as it is.

    StoreError when there is none, or more than 10 MB; it names the source, never the content.
    """
    kind, _, rest = source.partition(":")
    if kind == "env":
        value = os.environb.get(os.fsencode(rest))
        if value is None:
            raise StoreError(f"{source}: there is no such variable in the environment", f"export {rest}=...")
        return value
    return file(rest if kind == "file" else source)


def file(path: str, called: str = "") -> bytes:
    """The content of a file, a device or a pipe. StoreError as in `read`, which says `called` instead of the path."""
    return _bounded(lambda: Path(path).open("rb"), called or str(Path(path)))


def stdin() -> bytes:
    """Standard input to its end. StoreError as in `read`."""
    return _bounded(lambda: nullcontext(sys.stdin.buffer), "standard input")


def _bounded(opened: Callable[[], AbstractContextManager[BinaryIO]], called: str) -> bytes:
    try:
        # No more is read than needed to see that it is too much.
        with opened() as stream:
            content = stream.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{called}: {getattr(error, 'strerror', None) or error}", "give a file that can be read"
        ) from error
    if len(content) > _LARGEST:
        raise StoreError(f"{called}: larger than {_LARGEST // 2**20} MB", "is it the right file?")
    return content


def password(source: str) -> bytes:
    """The password in a source, without one newline at its end; b"" for no source (an empty text).

    StoreError, also when the source is there and the password empty.
    """
    if not source:
        return b""
    content = read(source)
    for end in (b"\r\n", b"\n"):
        if content.endswith(end):
            content = content[: -len(end)]
            break
    if not content:
        raise StoreError(f"{source}: the password is empty", "write one there")
    return content
