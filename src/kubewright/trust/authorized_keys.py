"""The operator's public key, and authorized_keys files (sshd(8), AUTHORIZED_KEYS FILE FORMAT) with it added. Pure."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass

from kubewright.errors import UserError


@dataclass(frozen=True)
class PublicKey:
    """One line of a `.pub` file; `base64` identifies the key, the comment is for people."""

    kind: str
    base64: str
    comment: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.base64, self.comment) if part)


def parse(text: str, path: str) -> PublicKey:
    """Read a `.pub` file; a `UserError` when it is something else, a private key above all."""
    if "PRIVATE KEY" in text:
        raise UserError(f"{path} is a private key", "set trust_public_key to the file beside it that ends in .pub")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    fields = lines[0].split(None, 2) if len(lines) == 1 else []
    if len(fields) < 2 or not _is_key(fields[0], fields[1]):
        raise UserError(
            f"{path} is no OpenSSH public key (one line: type, key in base64, comment)",
            "make a key pair with: ssh-keygen -t ed25519",
        )
    return PublicKey(fields[0], fields[1], fields[2] if len(fields) == 3 else "")


def _is_key(kind: str, text: str) -> bool:
    # RFC 4253, 6.6: the key begins with its own type, as a string with its length before it.
    try:
        blob = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return blob[4:].startswith(kind.encode()) and int.from_bytes(blob[:4], "big") == len(kind)


def contains(text: str, key: PublicKey) -> bool:
    """Whether a line lets the key in, whatever options are before it and comment is behind it."""
    for line in text.splitlines():
        fields = line.split()
        if fields and not fields[0].startswith("#") and (key.kind, key.base64) in itertools.pairwise(fields):
            return True
    return False


def extended(text: str, key: PublicKey) -> str:
    """The file with the key added at its end; a last line without an end is ended first."""
    separator = "\n" if text and not text.endswith("\n") else ""
    return f"{text}{separator}{key}\n"
