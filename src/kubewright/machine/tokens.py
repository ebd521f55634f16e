"""Tokens of service accounts, and the CA beside them, through the API server: what pods have been given."""

from __future__ import annotations

import base64
import binascii
import json
import time
from typing import Any, Iterator

from . import api

_PAGE = 250
_POLL_SECONDS = 1.0
_SIGN_POLL_SECONDS = 0.1
_TOKENS = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io/service-account-token"
_ROOTS = "/api/v1/configmaps?fieldSelector=metadata.name%3Dkube-root-ca.crt"


def items(client: api.Client, path: str) -> Iterator[dict[str, Any]]:
    """All objects of a list, page by page; ApiError when it is refused."""
    following = ""
    while True:
        query = f"{path}{'&' if '?' in path else '?'}limit={_PAGE}" + (f"&continue={following}" if following else "")
        status, answer = client.request("GET", query)
        if status == 410 and following:
            # The list has become too old to be continued: from the beginning.
            following = ""
            continue
        if status != 200:
            raise api.ApiError(f"GET {path}: {status} {answer.get('message')}")
        yield from answer.get("items") or ()
        following = answer.get("metadata", {}).get("continue") or ""
        if not following:
            return


def _name(thing: dict[str, Any]) -> str:
    return f"{thing['metadata']['namespace']}/{thing['metadata']['name']}"


def _text(secret: dict[str, Any], key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "").decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""


def lacking_root(client: api.Client, root: str) -> list[str]:
    """ConfigMaps and token Secrets that do not publish this CA text to pods."""
    found = [
        f"configmap {_name(one)}" for one in items(client, _ROOTS) if (one.get("data") or {}).get("ca.crt") != root
    ]
    return found + [f"secret {_name(one)}" for one in items(client, _TOKENS) if _text(one, "ca.crt") != root]


def wait_for_root(client: api.Client, root: str, timeout: float) -> None:
    """Wait until every namespace publishes this CA text; the controller manager does it. ApiError after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        lacking = lacking_root(client, root)
        if not lacking:
            return
        if time.monotonic() > deadline:
            raise api.ApiError(
                f"{len(lacking)} objects still publish another CA to pods after {timeout:.0f} s, such as {lacking[0]}; "
                "journalctl -u kube-controller-manager on the master that leads says why"
            )
        time.sleep(_POLL_SECONDS)


def has_token(pod: dict[str, Any], secrets: set[str]) -> bool:
    """Whether a pod has a token of its service account. `secrets`: NAMESPACE/NAME of those with tokens."""
    for volume in pod["spec"].get("volumes") or ():
        if any("serviceAccountToken" in source for source in (volume.get("projected") or {}).get("sources") or ()):
            return True
        name = (volume.get("secret") or {}).get("secretName")
        if name and f"{pod['metadata']['namespace']}/{name}" in secrets:
            return True
    return False


def old_pods(client: api.Client, before: str) -> list[str]:
    """NAMESPACE/NAME of running pods with a token that started before a time (RFC 3339, UTC)."""
    secrets = {_name(one) for one in items(client, _TOKENS)}
    found = []
    for pod in items(client, "/api/v1/pods"):
        ended = pod["status"].get("phase") in ("Succeeded", "Failed")
        started = pod["status"].get("startTime")
        # Times of the API are all written alike, so that their texts compare. One that no node has taken has none.
        if not ended and started and started < before and has_token(pod, secrets):
            found.append(_name(pod))
    return sorted(found)


def key_id(token: str) -> str:
    """The `kid` in the header of a token; empty when it cannot be read."""
    head = token.split(".", maxsplit=1)[0]
    try:
        found = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        return str(found.get("kid", ""))
    except (binascii.Error, ValueError, AttributeError):
        return ""


def outdated(client: api.Client, wanted: str) -> list[dict[str, Any]]:
    """Token Secrets whose token another key than `wanted` (its id) signed, or that have none."""
    return [one for one in items(client, _TOKENS) if key_id(_text(one, "token")) != wanted]


def sign_anew(client: api.Client, wanted: str, timeout: float) -> int:
    """Have the controller manager sign all tokens in Secrets with the key of this id; returns how many it were.

    It makes a token for every such Secret that has none (Kubernetes, tokens_controller). One after the other: while no
    controller manager leads, pods miss one token, and not all of them. ApiError when one takes `timeout` s.
    """
    found = outdated(client, wanted)
    for secret in found:
        _sign_one(client, secret, wanted, timeout)
    return len(found)


def _sign_one(client: api.Client, secret: dict[str, Any], wanted: str, timeout: float) -> None:
    metadata = secret["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/secrets/{metadata['name']}"
    deadline = time.monotonic() + timeout
    while True:
        status, secret = client.request("GET", path)
        if status == 404:
            return
        if status != 200:
            raise api.ApiError(f"GET {path}: {status} {secret.get('message')}")
        token = _text(secret, "token")
        if key_id(token) == wanted:
            return
        if time.monotonic() > deadline:
            raise api.ApiError(
                f"the token of secret {_name(secret)} is not signed by the new key after {timeout:.0f} s; "
                "journalctl -u kube-controller-manager on the master that leads says why"
            )
        if token:
            version = secret["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": {"token": None}}
            status, answer = client.request("PATCH", path, patch, "application/merge-patch+json")
            # Changed or removed meanwhile: the next look tells.
            if status not in (200, 404, 409):
                raise api.ApiError(f"PATCH {path}: {status} {answer.get('message')}")
        time.sleep(_SIGN_POLL_SECONDS)


def rewrite_secrets(client: api.Client) -> int:
    """Write every Secret back as it is, so that the API server encrypts it with its first key; returns how many.

    One that somebody changes meanwhile is read again: whoever wrote it had it encrypted already, but that is cheap.
    """
    count = 0
    for secret in list(_references(client)):
        for _ in range(10):
            status, found = client.request("GET", secret)
            if status == 404:
                break
            if status != 200:
                raise api.ApiError(f"GET {secret}: {status} {found.get('message')}")
            status, answer = client.request("PUT", secret, found)
            if status == 200:
                count += 1
                break
            if status not in (404, 409):
                raise api.ApiError(f"PUT {secret}: {status} {answer.get('message')}")
        else:
            raise api.ApiError(f"{secret}: somebody changes it all the time; run the same command again")
    return count


def _references(client: api.Client) -> Iterator[str]:
    for one in items(client, "/api/v1/secrets"):
        yield f"/api/v1/namespaces/{one['metadata']['namespace']}/secrets/{one['metadata']['name']}"
