"""Keys that the API server encrypts Secrets with, the key pair of service-account tokens, and the bootstrap token.

What a rotation of each does to the files on the controller; every function can be run again after it was cut short.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import shutil
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from kubepki import keys
from kubepki.keys import Key
from kubewright.errors import UserError
from kubewright.files import write_file

RETIRED = "retired"
_LETTERS = string.ascii_letters + string.digits
_SMALL = string.ascii_lowercase + string.digits
_FIRST = "key1"
_LINE = re.compile(r"key[1-9][0-9]*:[A-Za-z0-9]{32}")


class EncryptionKey(NamedTuple):
    """`name` is stored beside everything that was encrypted with it, so it is never used for another."""

    name: str
    secret: str


def parse(text: str) -> list[EncryptionKey]:
    """The keys of secrets/encryption_key, the one that encrypts first.

    A file with nothing but a key, as the first run writes it, is `key1`; otherwise each line is NAME:KEY.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and ":" not in lines[0]:
        return [EncryptionKey(_FIRST, lines[0])]
    for number, line in enumerate(lines or [""], 1):
        if not _LINE.fullmatch(line):
            raise UserError(
                f"secrets/encryption_key: line {number} is not NAME:KEY, with a name such as key2 and 32 letters and "
                "digits",
                "restore the file from a backup",
            )
    return [EncryptionKey(*line.split(":", 1)) for line in lines]


def _text(known: Sequence[EncryptionKey]) -> str:
    return "".join(f"{one.name}:{one.secret}\n" for one in known)


def _number(key: EncryptionKey) -> int:
    return int(key.name.removeprefix("key"))


def encryption_next(text: str) -> str:
    """The name for a new key: one that none of the keys has, and none before them had."""
    return f"key{max(map(_number, parse(text))) + 1}"


def encryption_added(text: str, name: str) -> str:
    """With a new key of this name behind the others: everybody can read what it will have encrypted."""
    known = parse(text)
    if any(one.name == name for one in known):
        return text
    return _text([*known, EncryptionKey(name, "".join(secrets.choice(_LETTERS) for _ in range(32)))])


def encryption_promoted(text: str, name: str) -> str:
    """With the key of this name first: it encrypts, the others only read."""
    return _text(sorted(_with(text, name), key=lambda one: one.name != name))


def encryption_dropped(text: str, name: str) -> str:
    """With the key of this name alone."""
    return _text([one for one in _with(text, name) if one.name == name])


def _with(text: str, name: str) -> list[EncryptionKey]:
    known = parse(text)
    if all(one.name != name for one in known):
        raise UserError(
            f"secrets/encryption_key: {name} is not there, which this rotation made",
            "restore the file from a backup; secrets/retired has those of before",
        )
    return known


def keep(path: Path, name: str) -> None:
    """A copy of a secret in `retired/` beside it, where none of this name and content is."""
    target = path.parent / RETIRED / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    number = 1
    while target.exists() and target.read_bytes() != path.read_bytes():
        number += 1
        target = target.with_name(f"{name}-{number}")
    write_file(target, path.read_bytes(), 0o600)


class Pair(NamedTuple):
    """Files of a key pair in the PKI directory."""

    key: Path
    public: Path


def pair(directory: Path, which: str = "") -> Pair:
    """`which`: empty, `-next` or `-previous`."""
    return Pair(directory / f"service-account{which}.key", directory / f"service-account{which}.pub")


def pair_made(directory: Path, kind: Key) -> None:
    """The next key pair of service accounts lies beside the one in use."""
    following = pair(directory, "-next")
    if following.key.exists():
        made = keys.load(following.key.read_bytes(), str(following.key))
    else:
        made = keys.generate(kind)
        write_file(following.key, keys.pem(made), 0o600)
    write_file(following.public, keys.public_pem(made))


def pair_promoted(directory: Path) -> None:
    """The next pair signs, the one before is `-previous`. The order bears an end in between."""
    current, following, previous = (pair(directory, which) for which in ("", "-next", "-previous"))
    if not following.key.exists():
        return
    if following.key.read_bytes() != current.key.read_bytes():
        write_file(previous.key, current.key.read_bytes(), 0o600)
        write_file(previous.public, current.public.read_bytes())
        write_file(current.key, following.key.read_bytes(), 0o600)
    write_file(current.public, following.public.read_bytes())
    following.key.unlink()
    following.public.unlink(missing_ok=True)


def pair_dropped(directory: Path) -> None:
    """The previous pair moves to `retired/`."""
    previous = pair(directory, "-previous")
    retired = directory / RETIRED
    for path in previous:
        if path.exists():
            retired.mkdir(mode=0o700, exist_ok=True)
            name = key_id(previous.public.read_bytes()) if previous.public.exists() else "service-account"
            shutil.move(path, retired / f"service-account-{name}{path.suffix}")


def key_id(public: bytes) -> str:
    """The `kid` that Kubernetes writes into tokens: SHA-256 of the public key's DER, in URL-safe base64 (jwt.go)."""
    encoded = load_pem_public_key(public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()).decode().rstrip("=")


class Token(NamedTuple):
    """A bootstrap token: `id` is its public half."""

    id: str
    secret: str


def token() -> Token:
    """A new bootstrap token."""
    return Token(*("".join(secrets.choice(_SMALL) for _ in range(length)) for length in (6, 16)))


def is_partial(run_tags: Sequence[str], skip_tags: Sequence[str]) -> bool:
    """Whether --tags or --skip-tags leave out some of a playbook."""
    return bool(set(run_tags) - {"all"} or skip_tags)


def behind(running: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Masters that do not run with what the controller has for them, and why.

    `running`: master -> what the action kubewright_component says in check mode of its components. A unit that does
    not run at this moment is not behind when it ran last with that: kube-scheduler and kube-controller-manager end
    themselves when they lose their lease, and systemd starts them again.
    """
    found = {}
    for name, told in running.items():
        if "differences" not in told:
            found[name] = str(told.get("msg") or "nobody asked it")
            continue
        restarts = [unit for unit in told["restarted"] if unit not in told["stopped"]]
        paths = [str(one["path"]) for one in told["differences"]] + [f"restart of {unit}" for unit in restarts]
        if paths:
            found[name] = ", ".join(paths)
    return found
