"""Certificates of a machine: what lies there, what services were started with, and what they show when asked.

Only public parts leave the machine: of a file with a key nothing but its certificates.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import socket
import ssl
from typing import Any, Iterator

from . import component, files, systemd

_LARGEST = 1 << 20
_BLOCK = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# The kubelet leaves its former pairs beside the present one, to which a link leads.
_FORMER = re.compile(r"(.+)-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d\.pem")
# What a kubeconfig trusts and presents: key in the file -> entry, as `kubectl config view` calls them.
_ENTRIES = {"certificate-authority": "cluster", "client-certificate": "user"}
_ENTRY = re.compile(r"^[ \t-]*(certificate-authority|client-certificate)(-data)?:[ \t]*[\"']?([^\s\"']+)", re.MULTILINE)
_TRY_SECONDS = 5.0


def blocks(text: str) -> str:
    """The certificates of a PEM text, and nothing else of it."""
    return "".join(f"{block}\n" for block in _BLOCK.findall(text))


def entries(text: str) -> list[dict[str, str]]:
    """What a kubeconfig trusts and presents: {entry, pem} of what it holds itself, {entry, path} of what it names."""
    found = []
    for key, data, value in _ENTRY.findall(text):
        entry = {"entry": _ENTRIES[key]}
        if not data:
            found.append({**entry, "path": value})
            continue
        try:
            pem = blocks(base64.b64decode(value).decode("ascii", "replace"))
        except (binascii.Error, ValueError):
            pem = ""
        found.append({**entry, "pem": pem})
    return found


def _is_former(path: str) -> bool:
    match = _FORMER.fullmatch(path)
    return bool(match) and os.path.exists(f"{match[1]}-current.pem" if match else "")


def _below(paths: list[str]) -> Iterator[str]:
    for top in paths:
        if os.path.isfile(top):
            yield top
        for directory, _, names in os.walk(top):
            yield from (os.path.join(directory, name) for name in sorted(names))


def _file(path: str) -> dict[str, Any] | None:
    """What is public of a file; None when that is nothing."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST or _is_former(path):
            return None
    except OSError:
        return None
    text = files.read(path)
    pem = blocks(text)
    known = [] if pem else entries(text)
    return {"path": path, "sha256": files.sha256_of(path), "pem": pem, "entries": known} if pem or known else None


def serving(asked: dict[str, Any]) -> dict[str, str]:
    """The certificate that a service shows: {unit, where, file, pem} or {unit, where, file, error}.

    `asked`: `unit`, `address`, `port`, `file` (where the certificate should lie, or empty), and where needed
    `server_name`, `cert` and `key`. Nothing is verified: whatever is served is to be seen.
    """
    name = asked.get("server_name") or ""
    where = f"{asked['address']}:{asked['port']}" + (f" ({name})" if name else "")
    found = {"unit": asked["unit"], "where": where, "file": asked.get("file") or ""}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        if asked.get("cert"):
            context.load_cert_chain(asked["cert"], asked["key"])
        address = (asked["address"], int(asked["port"]))
        with (
            socket.create_connection(address, _TRY_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name or None) as secured,
        ):
            encoded = secured.getpeercert(True) or b""
    except (OSError, ValueError) as error:
        return {**found, "error": str(error)}
    return {**found, "pem": ssl.DER_cert_to_PEM_cert(encoded)}


def components() -> dict[str, dict[str, Any]]:
    """Component -> {active, ingredients: path -> SHA-256 that its service was started with}."""
    names = []
    if os.path.isdir(component.RECORDS):
        names = sorted(name[:-5] for name in os.listdir(component.RECORDS) if name.endswith(".json"))
    states = systemd.states([f"{name}.service" for name in names])
    found = {}
    for name in names:
        record = files.read_json(f"{component.RECORDS}/{name}.json") or {}
        found[name] = {
            "active": states.get(f"{name}.service", {}).get("ActiveState") == "active",
            "ingredients": record.get("ingredients", {}),
        }
    return found


def collect(paths: list[str], served: list[dict[str, Any]]) -> dict[str, Any]:
    """{files: [{path, sha256, pem, entries}], components, served}; see the functions above."""
    found = [_file(path) for path in _below(paths)]
    running = components()
    return {
        "files": [one for one in found if one],
        "components": running,
        "served": [serving(one) for one in served if running.get(one["unit"], {}).get("active")],
    }
