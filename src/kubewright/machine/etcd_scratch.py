"""A member of etcd beside the real one: alone, on the loopback, on ports of its own, and gone afterwards.

It proves that a snapshot can be restored (`rehearse`), and gets a snapshot out of the data of a member that has lost
its cluster (`salvage`).
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from . import etcd, etcd_snapshot, etcd_status, files, health

BINARY = "/opt/etcd/bin/etcd"
_NAME = "scratch"
_START_SECONDS = 120
_STOP_SECONDS = 10
_PR_SET_PDEATHSIG = 1


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _die_with_parent() -> None:
    # A run that is killed must not leave a member behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(directory: str, ports: list[int], tls: dict[str, Any], more: list[str]) -> list[str]:
    scheme = "https" if tls else "http"
    client, peer = (f"{scheme}://127.0.0.1:{port}" for port in ports)
    command = [BINARY, f"--name={_NAME}", f"--data-dir={directory}", "--logger=zap"]
    command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    command += [f"--initial-cluster={_NAME}={peer}", *more]
    if tls:
        # Nobody else on the machine may read what is in there.
        for prefix in ("", "peer-"):
            command += [f"--{prefix}cert-file={tls['server_cert']}", f"--{prefix}key-file={tls['server_key']}"]
            command += [f"--{prefix}trusted-ca-file={tls['ca']}", f"--{prefix}client-cert-auth"]
    return command


def client_tls(tls: dict[str, Any]) -> dict[str, str]:
    """Of the paths {ca, cert, key, server_cert, server_key} those of a client."""
    return {name: tls[name] for name in ("ca", "cert", "key") if name in tls}


@contextlib.contextmanager
def member(directory: str, tls: dict[str, Any], ports: list[int], more: list[str]) -> Iterator[dict[str, Any]]:
    """A running member on the data in `directory`; its endpoint. SnapshotError when it does not become healthy."""
    log = f"{directory}.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            _command(directory, ports, tls, more),
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this program has one thread
        )
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{ports[0]}"
        endpoint = etcd_status.endpoint(client_tls(tls), url)
        check = {**endpoint, "kind": "etcd"}
        deadline = time.monotonic() + _START_SECONDS
        while True:
            reason = health.probe(check)
            if not reason:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                last = [line for line in files.read(log).splitlines() if line.strip()][-1:]
                raise etcd_snapshot.SnapshotError(
                    f"a member on this data does not become healthy: {(last or [reason])[0][:400]}"
                )
            time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def scratch(parent: str) -> Iterator[str]:
    """A directory that is gone afterwards, also that of a run before that was killed; only one at a time."""
    path = os.path.join(parent, "kubewright-scratch")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path, 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def restore(snapshot: str, directory: str, name: str, peer: str, cluster: str, token: str) -> None:
    """Make a data directory of a snapshot, as the first of a new cluster. `cluster`: NAME=PEER,... of all members."""
    arguments = ["snapshot", "restore", snapshot, "--data-dir", directory, "--name", name]
    arguments += ["--initial-advertise-peer-urls", peer, "--initial-cluster", cluster]
    arguments += ["--initial-cluster-token", token]
    if etcd_snapshot.offers("--bump-revision", "snapshot", "restore"):
        # From 3.6 on: what watches from a revision of before is told so, instead of waiting for it to come again.
        arguments += ["--bump-revision", "1000000000", "--mark-compacted"]
    etcd_snapshot.run_tool(*arguments)


def _b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def _read(endpoint: dict[str, Any], key: str, end: str = "") -> dict[str, Any]:
    body: dict[str, Any] = {"key": _b64(key.encode())}
    if end:
        body["range_end"] = _b64(end.encode())
    return etcd.ask(endpoint, "/v3/kv/range", body, 60)


def samples(endpoint: dict[str, Any], flannel_config: str) -> list[str]:
    """Proof that the keys mean something: Kubernetes' namespaces and flannel's configuration; SnapshotError if not."""
    told = []
    # The key behind all that begin with the prefix.
    found = _read(endpoint, "/registry/namespaces/", "/registry/namespaces0").get("kvs", [])
    if found:
        value = base64.b64decode(found[0]["value"])
        # Kubernetes' own envelope of protobuf, or JSON where the API server is told to write that.
        if not (value.startswith((b"k8s\0", b"k8s:enc:")) or value.lstrip().startswith(b"{")):
            raise etcd_snapshot.SnapshotError(f"/registry/namespaces/ holds nothing that is Kubernetes': {value[:8]!r}")
        told.append(f"{len(found)} namespaces")
    config = _read(endpoint, flannel_config).get("kvs", [])
    if config:
        try:
            network = json.loads(base64.b64decode(config[0]["value"]))["Network"]
        except (ValueError, KeyError, TypeError):
            raise etcd_snapshot.SnapshotError(f"{flannel_config} holds no configuration of flannel") from None
        told.append(f"flannel's network {network}")
    return told


def rehearse(snapshot: str, parent: str, tls: dict[str, Any], flannel_config: str, revision: int) -> dict[str, Any]:
    """Restore a snapshot into a member of its own below `parent`, ask it, and remove it.

    Returns {keys, revision, samples, seconds}. SnapshotError when it does not start or holds something else.
    """
    begin = time.monotonic()
    etcd_snapshot.need_room(parent, os.path.getsize(snapshot), "a rehearsal")
    with scratch(parent) as path:
        data = os.path.join(path, "data")
        ports = _free_ports(2)
        peer = f"{'https' if tls else 'http'}://127.0.0.1:{ports[1]}"
        restore(snapshot, data, _NAME, peer, f"{_NAME}={peer}", "rehearsal")
        with member(data, tls, ports, []) as endpoint:
            reply = etcd.ask(
                endpoint, "/v3/kv/range", {"key": _b64(b"\0"), "range_end": _b64(b"\0"), "count_only": True}, 60
            )
            seen = int(reply["header"]["revision"])
            if seen < revision:
                raise etcd_snapshot.SnapshotError(f"restored, it is at revision {seen}, the backup says {revision}")
            told = samples(endpoint, flannel_config)
            keys = int(reply.get("count", 0))
    return {"keys": keys, "revision": seen, "samples": told, "seconds": round(time.monotonic() - begin, 2)}


def salvage_room(source: str) -> int:
    """Bytes that `salvage` needs for the directory with a member's data."""
    places = os.walk(source)
    return 2 * sum(os.path.getsize(os.path.join(place, name)) for place, _, names in places for name in names)


def salvage(source: str, directory: str, tls: dict[str, Any], owner: str) -> dict[str, Any]:
    """Snapshot of what a stopped member holds, also what is in its log only; as `etcd_snapshot.lend` into `directory`.

    `source`: the directory with its data. It comes from a copy: the member's own data stays as it is.
    """
    etcd_snapshot.need_room(directory, salvage_room(source), "a copy of the data and a snapshot of it")
    with scratch(directory) as path:
        copy = os.path.join(path, "data")
        os.mkdir(copy, 0o700)
        subprocess.run(
            ["cp", "-a", "--reflink=auto", source, os.path.join(copy, "member")], check=True, capture_output=True
        )
        ports = _free_ports(2)
        with member(copy, tls, ports, ["--force-new-cluster"]) as endpoint:
            known = etcd_status.survey([{"name": _NAME, "url": endpoint["url"]}], client_tls(tls))
            taken = etcd_snapshot.take(known, client_tls(tls), directory, _NAME)
            return etcd_snapshot.hand_to(owner, taken)
