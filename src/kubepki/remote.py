"""A cfssl server, asked what it signs with (`/api/v1/cfssl/info`)."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from kubepki.errors import FlagError, KubepkiError

_DIAL = 6000
_API = 7000
_PORT = 8888
_LARGEST = 2**20


def info(server: str, label: str, profile: str) -> Any:
    """The server's answer: {certificate, usages, expiry}. KubepkiError with cfssl's codes for dialling and the API."""
    url = server if server.startswith(("http://", "https://")) else f"http://{server}"
    if ":" not in url.partition("://")[2]:
        url += f":{_PORT}"
    body = json.dumps({"label": label, "profile": profile}).encode()
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at above
            f"{url.rstrip('/')}/api/v1/cfssl/info", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            content = reply.read(_LARGEST)
    except urllib.error.HTTPError as error:
        content = error.read(_LARGEST)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise KubepkiError(f"{server}: {reason}", "is a cfssl server listening there?", _DIAL) from error
    try:
        answer = json.loads(content)
        if answer["success"]:
            return answer["result"]
        said = "; ".join(str(one["message"]) for one in answer["errors"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KubepkiError(
            f"{server}: the answer is not that of a cfssl server", "does it end in the right port?", _API
        ) from error
    raise FlagError(f"{server}: {said}", "-label and -profile name what the server has", _API)
