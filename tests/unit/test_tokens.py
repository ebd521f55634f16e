"""Tokens and Secrets, against a small API server of real HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from kubewright.machine import api, tokens


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def token(kid: str) -> str:
    return base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": kid}).encode()).decode().rstrip("=") + ".x.y"


def secret(name: str, kid: str, version: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "a", "name": name, "resourceVersion": str(version)}
    return {"metadata": metadata, "data": {"token": b64(token(kid)), "ca.crt": b64("OLD")}}


class Server(api.Client):
    """Answers requests from memory as the API server does: versions, conflicts, pages of one object."""

    def __init__(self, secrets: list[dict[str, Any]], pods: list[dict[str, Any]] | None = None) -> None:
        self.secrets = {one["metadata"]["name"]: one for one in secrets}
        self.pods = pods or []
        self.maps: list[dict[str, Any]] = []
        self.before: Callable[[str, str], None] = lambda _method, _path: None
        self.written: list[str] = []
        self.signer = "new"

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        del content_type
        self.before(method, path)
        place, _, query = path.partition("?")
        if place.startswith("/api/v1/namespaces/"):
            return self._one(method, place.rpartition("/")[2], body)
        known = {
            "/api/v1/secrets": list(self.secrets.values()),
            "/api/v1/pods": self.pods,
            "/api/v1/configmaps": self.maps,
        }
        start = int(query.rpartition("continue=")[2]) if "continue=" in query else 0
        page = known[place][start : start + 1]
        more = str(start + 1) if start + 1 < len(known[place]) else ""
        return 200, {"items": json.loads(json.dumps(page)), "metadata": {"continue": more}}

    def _one(self, method: str, name: str, body: Any) -> tuple[int, Any]:
        if name not in self.secrets:
            return 404, {}
        found = self.secrets[name]
        if method == "GET":
            return 200, json.loads(json.dumps(found))
        if body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            return 409, {"message": "conflict"}
        self.written.append(name)
        self.touch(name)
        if method == "PATCH":
            # The controller manager's part.
            found["data"]["token"] = b64(token(self.signer)) if self.signer else ""
        return 200, found

    def touch(self, name: str) -> None:
        metadata = self.secrets[name]["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)


def test_the_id_of_a_key() -> None:
    assert tokens.key_id(token("abc")) == "abc"
    for damaged in ("", "x", "..", "é", base64.urlsafe_b64encode(b"[]").decode()):
        assert tokens.key_id(damaged) == ""


def test_every_secret_is_written_once() -> None:
    server = Server([secret(name, "k") for name in "abc"])
    assert tokens.rewrite_secrets(server) == 3
    assert server.written == ["a", "b", "c"]


def test_a_secret_that_changes_meanwhile_is_read_again_and_one_that_goes_is_no_error() -> None:
    server = Server([secret(name, "k") for name in "abc"])
    changes = []

    def interfere(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("/a") and not changes:
            changes.append(1)
            server.touch("a")
        if method == "GET" and path.endswith("/b"):
            server.secrets.pop("b", None)

    server.before = interfere
    assert tokens.rewrite_secrets(server) == 2
    assert server.written == ["a", "c"]


def test_a_secret_that_changes_all_the_time_ends_with_its_name() -> None:
    server = Server([secret("a", "k")])
    server.before = lambda method, _path: server.touch("a") if method == "PUT" else None
    with pytest.raises(api.ApiError, match="secrets/a: somebody changes it all the time"):
        tokens.rewrite_secrets(server)


def test_only_tokens_of_other_keys_are_signed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_SIGN_POLL_SECONDS", 0.01)
    server = Server([secret("a", "old"), secret("b", "new")])
    assert tokens.sign_anew(server, "new", 5) == 1
    assert server.written == ["a"]
    assert tokens.sign_anew(server, "new", 5) == 0


def test_a_token_that_nobody_signs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_SIGN_POLL_SECONDS", 0.01)
    with pytest.raises(api.ApiError, match="the token of secret a/a is not signed by the new key after 0 s"):
        tokens.sign_anew(Server([secret("a", "old")]), "other", 0)


def test_never_is_more_than_one_token_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_SIGN_POLL_SECONDS", 0.01)
    server = Server([secret(name, "old") for name in "abc"])
    # Nobody leads: what is emptied stays empty.
    server.signer = ""
    with pytest.raises(api.ApiError, match="a/a is not signed"):
        tokens.sign_anew(server, "new", 0.05)
    left = [name for name, one in server.secrets.items() if one["data"]["token"]]
    assert left == ["b", "c"]
    # Somebody leads again, and signs the one that has none.
    server.secrets["a"]["data"]["token"] = b64(token("new"))
    server.signer = "new"
    assert tokens.sign_anew(server, "new", 5) == 2


def test_what_is_published_to_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_POLL_SECONDS", 0.01)
    tokens.wait_for_root(Server([secret("a", "k")]), "OLD", 0)
    with pytest.raises(api.ApiError, match="1 objects still publish another CA to pods after 0 s, such as secret a/a"):
        tokens.wait_for_root(Server([secret("a", "k")]), "NEW", 0)


def test_a_config_map_that_somebody_emptied_publishes_nothing() -> None:
    server = Server([])
    server.maps = [{"metadata": {"namespace": "a", "name": "kube-root-ca.crt"}}]
    assert tokens.lacking_root(server, "OLD") == ["configmap a/kube-root-ca.crt"]


def pod(name: str, start: str, volumes: list[dict[str, Any]], phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "a", "name": name},
        "spec": {"volumes": volumes},
        "status": {"startTime": start, "phase": phase},
    }


def test_pods_that_know_the_old_ca_alone() -> None:
    mounted = [{"secret": {"secretName": "s"}}]
    projected = [{"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]
    pods = [
        pod("old", "2026-01-01T00:00:00Z", mounted),
        pod("projected", "2026-01-01T00:00:00Z", projected),
        pod("waits", "", mounted, "Pending"),
        pod("new", "2026-03-01T00:00:00Z", mounted),
        pod("ended", "2026-01-01T00:00:00Z", mounted, "Succeeded"),
        pod("other", "2026-01-01T00:00:00Z", [{"secret": {"secretName": "of-somebody"}}, {"emptyDir": {}}]),
    ]
    assert tokens.old_pods(Server([secret("s", "k")], pods), "2026-02-01T00:00:00Z") == ["a/old", "a/projected"]
