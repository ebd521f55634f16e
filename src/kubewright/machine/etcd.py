"""etcd over its v3 JSON gateway: a key that is written once, and what a member is."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any, Callable, TypeVar

from . import health

_Answer = TypeVar("_Answer")


class EtcdError(Exception):
    """etcd refused or did not answer."""


class RefusedError(EtcdError):
    """etcd answered, and said no."""


class InUseError(Exception):
    """A key that is written once holds something else, and that is in use."""


def _call(endpoint: dict[str, Any], path: str, body: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    connection = health.connect(endpoint, timeout)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise EtcdError(f"etcd at {endpoint['url']} does not answer: {error}") from error
    finally:
        connection.close()
    if reply.status != 200:
        raise RefusedError(
            f"etcd at {endpoint['url']}: {path} answered {reply.status}: {text.decode(errors='replace')}"
        )
    try:
        result: dict[str, Any] = json.loads(text)
    except ValueError:
        raise EtcdError(f"{endpoint['url']}: {path} was not answered by etcd: it is no JSON") from None
    return result


def ask(endpoint: dict[str, Any], path: str, body: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """One request to the gateway of the member behind this endpoint; EtcdError, or RefusedError when it says no."""
    return _call(endpoint, path, body, timeout)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def leads(endpoint: dict[str, Any]) -> bool:
    """Whether the member behind this endpoint is the leader of its cluster."""
    status = _call(endpoint, "/v3/maintenance/status", {})
    return bool(status.get("leader")) and status["leader"] == status["header"]["member_id"]


def learns(endpoint: dict[str, Any]) -> bool:
    """Whether the member behind this endpoint is a learner: it was started, and has no vote yet."""
    return bool(_call(endpoint, "/v3/maintenance/status", {}).get("isLearner"))


def cluster_version(endpoint: dict[str, Any]) -> str:
    """The version that all members have agreed on, such as 3.5.0; empty when the member does not say."""
    try:
        connection = health.connect(endpoint)
        try:
            connection.request("GET", "/version")
            return str(json.loads(connection.getresponse().read()).get("etcdcluster", ""))
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return ""


def members(endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Members of the cluster as etcd describes them; one that has never started has no `clientURLs`."""
    found: list[dict[str, Any]] = _call(endpoint, "/v3/cluster/member/list", {})["members"]
    return found


def is_healthy(endpoint: dict[str, Any]) -> bool:
    """Whether the member behind this endpoint is part of a quorum, whatever alarms there are."""
    return not health.probe({**endpoint, "kind": "etcd"})


def quorum(voters: int) -> int:
    """How many of so many voters must work."""
    return voters // 2 + 1


def quorum_depends_on(endpoint: dict[str, Any]) -> str:
    """Why stopping the member behind this endpoint would take the quorum of its cluster away; empty when it would not.

    Clusters of one or two members cannot do without any, and are not held up. Learners do not vote (etcd, learner
    design), so they do not count.
    """
    own = _call(endpoint, "/v3/maintenance/status", {})["header"]["member_id"]
    voters = [m for m in members(endpoint) if not m.get("isLearner")]
    needed = quorum(len(voters))
    if len(voters) < 3 or all(member["ID"] != own for member in voters):
        return ""
    down = []
    for member in voters:
        if member["ID"] == own:
            continue
        urls = member.get("clientURLs") or []
        # A member without client URLs has never started.
        if not any(is_healthy({**endpoint, "url": url}) for url in urls):
            down.append(member.get("name") or member["ID"])
    left = len(voters) - 1 - len(down)
    if left >= needed or left + 1 < needed:
        return ""
    return (
        f"restarting this etcd member would stop the cluster: {', '.join(sorted(down))} of {len(voters)} members does "
        f"not answer, and {needed} must run. Nothing was changed here. Bring it back first: journalctl -u etcd there"
    )


def first_answer(endpoints: list[dict[str, Any]], ask: Callable[[dict[str, Any]], _Answer]) -> _Answer:
    """What `ask` gets from the first member that answers it; EtcdError with the words of all when none does."""
    errors = []
    for endpoint in endpoints:
        try:
            return ask(endpoint)
        except EtcdError as error:
            errors.append(error)
    # A refusal is an answer: etcd runs.
    hint = "" if any(isinstance(error, RefusedError) for error in errors) else "; run --tags etcd first"
    raise EtcdError(f"{'; '.join(map(str, errors))}{hint}")


def value(endpoint: dict[str, Any], key: str) -> str | None:
    """The text of a key, None when it does not exist."""
    found = _call(endpoint, "/v3/kv/range", {"key": _b64(key)}).get("kvs")
    return base64.b64decode(found[0].get("value", "")).decode() if found else None


def put(endpoint: dict[str, Any], key: str, value: str) -> None:
    """Write the text of a key."""
    ask(endpoint, "/v3/kv/put", {"key": _b64(key), "value": _b64(value)})


def delete(endpoint: dict[str, Any], key: str) -> bool:
    """Delete a key; whether there was one."""
    return int(ask(endpoint, "/v3/kv/deleterange", {"key": _b64(key)}).get("deleted", 0)) > 0


def write_once(
    endpoint: dict[str, Any], key: str, value: dict[str, Any], users: str, replaces: str, check: bool
) -> str | None:
    """Bring about that a key holds a JSON object; returns what it held before, None when it did not exist.

    What is there already is replaced only while no key begins with `users`: nobody has acted on it then; or when it is
    `replaces`. InUseError otherwise. With `check` nothing is written.
    """
    found = _call(endpoint, "/v3/kv/range", {"key": _b64(key)}).get("kvs")
    before = base64.b64decode(found[0].get("value", "")).decode() if found else None
    if before is not None and holds(before, value):
        return before
    known = before is not None and before == replaces
    if before is not None and not known and _any_below(endpoint, users):
        raise InUseError(before)
    if not check:
        # In one transaction with the comparison: neither another writer nor a first user gets in between.
        revision = str(found[0]["mod_revision"]) if found else "0"
        compare = [{"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}]
        if found and not known:
            # Of a range, all keys are compared: true where there is none.
            unused = {"target": "CREATE", "result": "LESS", "create_revision": "1"}
            compare.append({"key": _b64(users), "range_end": _b64(_behind(users)), **unused})
        put = {"request_put": {"key": _b64(key), "value": _b64(text(value))}}
        if not _call(endpoint, "/v3/kv/txn", {"compare": compare, "success": [put]}).get("succeeded"):
            raise EtcdError(f"{key}: somebody else was faster; run again")
    return before


def text(value: dict[str, Any]) -> str:
    """JSON as it is stored."""
    return json.dumps(value, separators=(",", ":"))


def holds(stored: str, value: dict[str, Any]) -> bool:
    """Whether a stored text is this JSON object."""
    try:
        return bool(json.loads(stored) == value)
    except ValueError:
        return False


def _behind(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _any_below(endpoint: dict[str, Any], prefix: str) -> bool:
    body = {"key": _b64(prefix), "range_end": _b64(_behind(prefix)), "count_only": True}
    return int(_call(endpoint, "/v3/kv/range", body).get("count", 0)) > 0
