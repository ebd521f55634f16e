"""The answers of cfssl's commands, or of its API, as files (`cfssljson`).

Unlike cfssljson's, files are replaced in one step and have the modes that they should have, whatever was there before.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubepki import calls, issue, keys, sources, store
from kubepki import request as requests
from kubepki.calls import Call
from kubepki.errors import FlagError, KubepkiError, StoreError
from kubepki.goflags import Flag

_PUBLIC, _SECRET = 0o644, 0o600


@dataclass(frozen=True)
class _Kind:
    """A field of the answer, under any of its names, and the end of its file's name."""

    fields: tuple[str, ...]
    ending: str
    mode: int = _PUBLIC
    encoded: bool = False


# The key before the certificate: a crash in between leaves a pair that does not match, and no certificate without key.
_KINDS = (
    _Kind(("key", "private_key"), "-key.pem", _SECRET),
    _Kind(("encrypted_key",), "-key.enc", _SECRET, encoded=True),
    _Kind(("cert", "certificate"), ".pem"),
    _Kind(("csr", "certificate_request"), ".csr"),
    _Kind(("bundle",), "-bundle.pem"),
    _Kind(("root",), "-root.pem"),
    _Kind(("ocspResponse",), "-response.der", encoded=True),
)


def _parse(content: bytes) -> Mapping[str, Any]:
    if not content.strip():
        raise StoreError(
            "the input is empty: the command before the pipe failed",
            "its message is above; in scripts use set -o pipefail",
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Failed to parse input: {error}", "the input is the answer of gencert, genkey or sign"
        ) from error
    if not isinstance(found, dict):
        raise StoreError(
            "Failed to parse input: it is no JSON object", "the input is the answer of gencert, genkey or sign"
        )
    return found


def _unwrapped(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result in the envelope of the API."""
    if "success" not in found:
        raise StoreError('Request failed: the input has no "success" field', "-bare is for answers of commands")
    if not found["success"]:
        said = "; ".join(str(one.get("message")) for one in found.get("errors") or () if isinstance(one, dict))
        raise KubepkiError(f"Request failed: {said or 'the server gave no reason'}", code=7000)
    result = found.get("result")
    if not isinstance(result, dict):
        raise StoreError("Request failed: the answer has no result")
    return result


def _content(kind: _Kind, name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise StoreError(f"{name} in the input is no text")
    try:
        if kind.encoded:
            return base64.b64decode(value, validate=True)
        return value.encode() if value.endswith("\n") else value.encode() + b"\n"
    except ValueError as error:
        # Half of a pair of surrogates is a text of JSON, but of no encoding.
        raise StoreError(f"{name} in the input is {'not base64' if kind.encoded else 'no text'}") from error


def _files(found: Mapping[str, Any]) -> list[tuple[str, _Kind, bytes]]:
    files = []
    for kind in _KINDS:
        name = next((name for name in kind.fields if found.get(name)), None)
        if name:
            files.append((name, kind, _content(kind, name, found[name])))
    if not files:
        raise StoreError(
            "the input has neither a certificate, a key nor a CSR", "the input is the answer of gencert, genkey or sign"
        )
    return files


def _check(files: list[tuple[str, _Kind, bytes]], call: Call, base: str) -> None:
    """What is written can be read, and a key and a certificate in one answer are a pair."""
    by_ending = {kind.ending: content for _, kind, content in files}
    key, certificate, csr = (by_ending.get(ending) for ending in ("-key.pem", ".pem", ".csr"))
    own = keys.load(key, "the key in the input").public_key() if key else None
    if csr:
        requests.load(csr, "the CSR in the input")
    theirs = issue.load(certificate, "the certificate in the input").public_key() if certificate else None
    if own and theirs and own != theirs:
        raise StoreError("the key and the certificate in the input do not belong together", "were two answers mixed?")
    # The other half comes later, or has been there.
    try:
        if own and not theirs and (there := sources.read(f"{base}.pem")):
            theirs = issue.load(there, f"{base}.pem").public_key()
        elif theirs and not own and (there := sources.read(f"{base}-key.pem")):
            own = keys.load(there, f"{base}-key.pem").public_key()
    except KubepkiError:
        return
    if own and theirs and own != theirs:
        call.log.warn(f"{base}.pem and {base}-key.pem do not belong together now")


def _main(call: Call) -> None:
    base = call.arguments.given[0] if call.arguments.given else "cert"
    if len(call.arguments.given) > 1:
        raise FlagError(
            f"{call.arguments.given[1]!r} is one argument too many", "cfssljson [-bare] [-f FILE] [BASENAME]"
        )
    found = _parse(calls.read(call.text("f")))
    files = _files(found if call.arguments.switch("bare") else _unwrapped(found))
    if call.arguments.switch("stdout"):
        for _, _, content in files:
            sys.stdout.buffer.write(content)
        return
    _check(files, call, base)
    # All or none: a new key beside an old certificate serves nobody.
    store.replace([[store.File(Path(f"{base}{kind.ending}"), content, kind.mode) for _, kind, content in files]])


main = calls.command(
    _main,
    "kubepki cfssljson -- write the answers of the other commands to files\n\n"
    "    kubepki gencert ... | kubepki cfssljson -bare BASENAME\n\n"
    "    BASENAME-key.pem (0600), BASENAME.pem, BASENAME.csr, BASENAME-bundle.pem, BASENAME-root.pem (0644)",
    {
        "bare": Flag(False, "the response from CFSSL is not wrapped in the API standard response"),
        "f": Flag("-", "JSON input"),
        "stdout": Flag(False, "output the response instead of saving to a file"),
    },
)
