"""Does the service answer? Asked of the service itself, never of systemd alone.

A check is a mapping with `kind`:
  http     `url`, optional `ca`, `cert`, `key` (paths), `expect` (text that the body must contain), `status` (200);
           `verify: false` for a service on the loopback that signs its own certificate at every start
  socket   HTTP over a unix socket: `socket` (path), `url` path, `expect`
  command  `argv`, optional `expect` (text that the output must contain)
  exists   `path`
  etcd     a member that can commit: `url`, `ca`, `cert`, `key` of its client door
No check at all means that the unit is active, which is enough only for Type=notify units: READY is their own word.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
import subprocess
import time
from typing import Any
from urllib.parse import urlsplit

from . import systemd

_INTERVAL = 0.25
_TRY_SECONDS = 5.0
# Restart loops are told apart from a slow start: systemd restarted it this often while we waited.
_RESTARTS_ARE_FAILURE = 3


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def tls_context(check: dict[str, Any]) -> ssl.SSLContext:
    """TLS client settings from `ca`, `cert` and `key` paths."""
    for path in (check.get("ca"), check.get("cert"), check.get("key")):
        # The TLS library's own error does not name the file.
        if path and not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, "not there yet, run --tags pki first", path)
    context = ssl.create_default_context(cafile=check.get("ca"))
    if not check.get("verify", True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if check.get("cert"):
        context.load_cert_chain(check["cert"], check["key"])
    return context


def connect(check: dict[str, Any], timeout: float = _TRY_SECONDS) -> http.client.HTTPConnection:
    """A connection to where the check points."""
    if check.get("socket"):
        return _UnixConnection(check["socket"], timeout)
    url = urlsplit(check["url"])
    host, port = str(url.hostname), url.port
    if url.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=tls_context(check))
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _http(check: dict[str, Any]) -> str:
    connection = connect(check)
    try:
        url = urlsplit(check["url"])
        connection.request("GET", url.path + ("?" + url.query if url.query else ""))
        reply = connection.getresponse()
        body = reply.read(65536).decode(errors="replace")
    finally:
        connection.close()
    wanted = int(check.get("status", 200))
    if reply.status != wanted:
        return f"answered {reply.status} {reply.reason}: {_brief(body)}"
    return _expect(check, body)


def _post(check: dict[str, Any], path: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = connect(check)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read(65536).decode(errors="replace")
    finally:
        connection.close()


def _etcd(check: dict[str, Any]) -> str:
    """A proposal that changes nothing, and takes the quorum: being told the alarms.

    Not /health: with an alarm, also one of a member that is gone, it says no on every member, and says no more than
    that (etcd, checkHealth). Alarms are for whoever lifts them; quorum and snapshots do not depend on them. Not a read
    either: before etcd 3.5 one whose question to the leader was lost is not answered for 7 s.
    """
    status, body = _post(check, "/v3/maintenance/alarm", {"action": "GET"})
    if status == 200:
        return ""
    # One without a vote proposes nothing; it follows a leader, or does not.
    if "learner" in body and '"leader":' in _post(check, "/v3/maintenance/status", {})[1]:
        return ""
    return f"{check['url']}: a proposal answered {status}: {_brief(body)}"


def _command(check: dict[str, Any]) -> str:
    reply = subprocess.run(check["argv"], capture_output=True, text=True, check=False, timeout=_TRY_SECONDS)
    if reply.returncode:
        return f"{check['argv'][0]} ended with {reply.returncode}: {_brief(reply.stderr or reply.stdout)}"
    return _expect(check, reply.stdout)


def _expect(check: dict[str, Any], text: str) -> str:
    expected = check.get("expect")
    if expected and expected not in text:
        return f"the answer lacks {expected!r}: {_brief(text)}"
    return ""


def _brief(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:300] + " ..."


def probe(check: dict[str, Any]) -> str:
    """Ask once: an empty text when healthy, else why not."""
    try:
        if check["kind"] in ("http", "socket"):
            return _http(check)
        if check["kind"] == "etcd":
            return _etcd(check)
        if check["kind"] == "command":
            return _command(check)
        if check["kind"] == "exists":
            return "" if os.path.exists(check["path"]) else f"{check['path']} does not exist"
        raise ValueError(check["kind"])
    except subprocess.TimeoutExpired:
        return f"{check['argv'][0]} did not end within {_TRY_SECONDS:.0f} s"
    except (OSError, http.client.HTTPException) as error:
        where = check.get("socket") or check.get("url") or ""
        return f"{where}: {error}"


def wait(unit: str, checks: list[dict[str, Any]], timeout: float) -> str:
    """Wait until the unit is active and every check is healthy; empty text, or why it is not after `timeout` s."""
    begin = time.monotonic()
    deadline = begin + timeout
    first = systemd.states([unit]).get(unit, {})
    restarts = int(first.get("NRestarts") or 0)
    while True:
        state = systemd.states([unit]).get(unit, {})
        reason = ""
        if state.get("ActiveState") != "active":
            reason = f"{unit} is {systemd.summary(state)}"
        else:
            for check in checks:
                reason = probe(check)
                if reason:
                    break
        if not reason:
            return ""
        if systemd.has_failed(state):
            return f"{unit} is {systemd.summary(state)}"
        again = int(state.get("NRestarts") or 0) - restarts
        if again >= _RESTARTS_ARE_FAILURE:
            waited = time.monotonic() - begin
            return f"it ends again and again: systemd has restarted it {again} times within {waited:.0f} s"
        if time.monotonic() >= deadline:
            return f"{reason} (waited {timeout:.0f} s)"
        time.sleep(_INTERVAL)
