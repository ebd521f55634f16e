"""Images in Docker, asked and loaded over its socket."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any
from urllib.parse import quote

from . import health

_SOCKET = {"kind": "socket", "socket": "/var/run/docker.sock", "url": "/"}
_LOAD_SECONDS = 120.0


def image_id(reference: str) -> str:
    """Id of the image that a reference names; empty when Docker has none or does not run."""
    connection = health.connect(_SOCKET)
    try:
        connection.request("GET", f"/images/{quote(reference, safe='')}/json")
        reply = connection.getresponse()
        body = reply.read()
        return str(json.loads(body)["Id"]) if reply.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def load(image: dict[str, Any], archive: str) -> None:
    """Load an archive and make sure that it was the image that was meant; OSError otherwise."""
    connection = health.connect(_SOCKET, timeout=_LOAD_SECONDS)
    try:
        with open(archive, "rb") as stream:
            headers = {"Content-Type": "application/x-tar", "Content-Length": str(os.path.getsize(archive))}
            connection.request("POST", "/images/load?quiet=1", stream, headers)
        reply = connection.getresponse()
        text = reply.read().decode(errors="replace")
    finally:
        connection.close()
    seen = image_id(image["reference"])
    if reply.status != 200 or seen != image["id"]:
        raise OSError(f"{image['reference']}: docker load gave {seen or reply.status}, expected {image['id']}: {text}")
