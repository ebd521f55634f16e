"""What known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) say about a host key. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SSH_PORT = 22
State = Literal["new", "known", "changed", "revoked"]


@dataclass(frozen=True)
class HostKey:
    """A public host key: type as in known_hosts (`ssh-ed25519`, `ssh-rsa`), key in base64."""

    kind: str
    base64: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` writes it: `SHA256:` and base64 without padding."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def algorithm(self) -> str:
        """The name that people know the type by: ED25519, ECDSA, RSA."""
        return self.kind.removeprefix("ssh-").partition("-")[0].upper()


@dataclass(frozen=True)
class Entry:
    """A line that speaks about a host: where it is (line numbers from 1), and its marker (`@revoked`) if any."""

    path: Path
    number: int
    marker: str
    key: HostKey


@dataclass(frozen=True)
class Verdict:
    """What the files say about a key; `against` are the lines that contradict it, `confirmed` where it is known."""

    state: State
    against: tuple[Entry, ...] = ()
    confirmed: tuple[Entry, ...] = ()


def host_name(hostname: str, port: int) -> str:
    """Under which name OpenSSH looks a host up: `[host]:port` unless the port is 22."""
    name = hostname.lower()
    return name if port == SSH_PORT else f"[{name}]:{port}"


def entries(text: str, name: str, path: Path) -> list[Entry]:
    """Every line of a file about `name`; certificate authorities are left out, they vouch for other keys."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) < 3 or marker == "@cert-authority":
            continue
        if _speaks_of(fields[0], name) and _is_base64(fields[2]):
            found.append(Entry(path, number, marker, HostKey(fields[1], fields[2])))
    return found


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _speaks_of(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        return _is_hash_of(patterns, name)
    matches = False
    for pattern in patterns.lower().split(","):
        # Brackets are no character class here: they are part of [host]:port.
        expression = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, name):
            if pattern.startswith("!"):
                return False
            matches = True
    return matches


def _is_hash_of(hashed: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hashed.split("|")[2:4])
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def kinds(known: Iterable[Entry]) -> tuple[str, ...]:
    """Key types to ask a host for first, as OpenSSH does: those that are known."""
    return tuple(dict.fromkeys(entry.key.kind for entry in known if not entry.marker))


def judge(key: HostKey, own: Sequence[Entry], elsewhere: Sequence[Entry] = ()) -> Verdict:
    """Compare a key with the file that is used (`own`), and when that is silent with the operator's other files.

    A host that is known by another type of key has changed too: whoever answers could not show the key that is known.
    """
    revoked = tuple(e for e in (*own, *elsewhere) if e.marker == "@revoked" and e.key == key)
    if revoked:
        return Verdict("revoked", revoked)
    for source in (own, elsewhere):
        plain = tuple(e for e in source if not e.marker)
        matching = tuple(e for e in plain if e.key == key)
        if matching:
            return Verdict("known" if source is own else "new", confirmed=matching)
        if plain:
            return Verdict("changed", plain)
    return Verdict("new")


def line(name: str, key: HostKey) -> str:
    """The line that makes a key known."""
    return f"{name} {key.kind} {key.base64}"


def extended(text: str, lines: Iterable[str]) -> str:
    """The file with lines added, each once; what is there stays as it is."""
    present = set(text.splitlines())
    added = [entry for entry in dict.fromkeys(lines) if entry not in present]
    separator = "\n" if text and not text.endswith("\n") and added else ""
    return text + separator + "".join(f"{entry}\n" for entry in added)
