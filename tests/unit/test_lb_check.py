"""The health checks of the load balancer, against real TLS servers on the loopback."""

from __future__ import annotations

import argparse
import http.server
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kubepki import reconcile, spec
from kubewright.machine import lb_check

BASE = "# all\nserver 192.0.2.1:6443 max_fails=1;\nserver 192.0.2.2:6443 max_fails=1;\n"
ONE, TWO = ("192.0.2.1", 6443), ("192.0.2.2", 6443)


def test_those_that_are_ready_stay() -> None:
    assert lb_check.servers(BASE) == [ONE, TWO]
    assert lb_check.chosen(BASE, {ONE, TWO}) == BASE
    assert lb_check.servers(lb_check.chosen(BASE, {TWO})) == [TWO]
    assert "max_fails=1" in lb_check.chosen(BASE, {TWO})


def test_all_stay_while_none_is_ready() -> None:
    assert lb_check.chosen(BASE, set()) == BASE
    assert lb_check.chosen(BASE, {("192.0.2.9", 6443)}) == BASE


def test_one_bad_answer_is_no_failure() -> None:
    memory = lb_check.Memory()
    assert [memory.learn(answer) for answer in (True, False, True, False, False, True, True)] == [
        True, True, True, True, False, False, True,
    ]  # fmt: skip


def test_a_new_server_counts_as_its_first_answer_says() -> None:
    assert not lb_check.Memory().learn(False)


class _Server:
    """An API server's /readyz on a port of the loopback."""

    def __init__(self, certificate: Path, key: Path) -> None:
        outer = self
        self.status = 200

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    usage = {"name": "server", "ca": "kubernetes", "cn": "kube-apiserver", "profile": "server", "hosts": ["127.0.0.1"]}
    data = {"cas": {"kubernetes": {"cn": "kubernetes-ca"}}, "certificates": [usage]}
    reconcile.apply(spec.parse(data), directory, datetime.now(UTC))
    return directory


@pytest.fixture
def servers(pki: Path) -> Iterator[list[_Server]]:
    running = [_Server(pki / "server.pem", pki / "server-key.pem") for _ in range(2)]
    yield running
    for server in running:
        server.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_counts_only_from_a_server_of_the_cluster(servers: list[_Server], pki: Path, tmp_path: Path) -> None:
    port, ca = servers[0].port, str(pki / "kubernetes-ca.pem")
    assert lb_check.ask("127.0.0.1", port, ca, 5) == (200, "")
    servers[0].status = 500
    assert lb_check.ask("127.0.0.1", port, ca, 5) == (500, "answered 500 Internal Server Error")
    servers[0].status = 401
    assert lb_check.ask("127.0.0.1", port, ca, 5) == (401, "")
    reconcile.apply(spec.parse({"cas": {"kubernetes": {"cn": "kubernetes-ca"}}}), tmp_path, datetime.now(UTC))
    status, reason = lb_check.ask("127.0.0.1", port, str(tmp_path / "kubernetes-ca.pem"), 5)
    assert status == 0
    assert "CERTIFICATE_VERIFY_FAILED" in reason


def test_what_is_ready_is_what_nginx_reads(servers: list[_Server], pki: Path, tmp_path: Path) -> None:
    base, live = tmp_path / "base", tmp_path / "live"
    base.mkdir()
    live.mkdir()
    lines = "".join(f"server 127.0.0.1:{server.port} max_fails=1;\n" for server in servers)
    (base / "upstreams.conf").write_text(lines)
    (live / "upstreams.conf").write_text(lines)
    # In its place: it refuses what the test wants it to refuse, and notes what it is asked.
    nginx = tmp_path / "nginx"
    nginx.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest ! -e {tmp_path}/refuse || {{ echo no; exit 1; }} >&2\n'
    )
    nginx.chmod(0o755)
    options = argparse.Namespace(
        base=str(base),
        live=str(live),
        nginx=str(nginx),
        ca=str(pki / "kubernetes-ca.pem"),
        interval=0.05,
    )
    keeper = lb_check.Keeper(options)
    now = live / "upstreams.conf"
    _until(keeper.round)
    assert now.read_text() == lines

    servers[0].status = 500
    (tmp_path / "refuse").touch()
    _until(lambda: keeper.round() and (tmp_path / "asked").exists())
    assert now.read_text() == lines, "what nginx refuses is taken back"
    (tmp_path / "refuse").unlink()
    _until(lambda: keeper.round() and now.read_text() != lines)
    assert lb_check.servers(now.read_text()) == [("127.0.0.1", servers[1].port)]
    assert (tmp_path / "asked").read_text().splitlines()[-1] == f"-c {live}/nginx.conf -s reload"

    keeper.changed.clear()
    servers[0].status = 200
    assert keeper.changed.wait(5), "nobody waits for the next round"
    _until(lambda: keeper.round() and now.read_text() == lines)
    # A master that is taken out of the inventory.
    (base / "upstreams.conf").write_text(lines.splitlines(keepends=True)[0])
    _until(lambda: keeper.round() and len(lb_check.servers(now.read_text())) == 1)


def test_whoever_answers_serves(servers: list[_Server], pki: Path, tmp_path: Path) -> None:
    path = tmp_path / "serving"
    announcer = lb_check.Announcer(str(path), servers[0].port, str(pki / "kubernetes-ca.pem"), 0.05)
    # An API server without its etcd is not ready, and another machine would do no better.
    servers[0].status = 500
    announcer.announce()
    assert path.exists()
    servers[0].stop()
    announcer.announce()
    assert not path.exists()


def test_a_part_that_fails_takes_the_process_with_it(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "upstreams.conf").write_text("server not..a..name:6443;\n")
    argv = [sys.executable, lb_check.__file__, f"--base={tmp_path}", f"--live={tmp_path}", "--nginx=/bin/true"]
    argv += ["--port=1", f"--ca={pki}/kubernetes-ca.pem"]
    reply = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert reply.returncode == 1
    assert "Traceback" in reply.stderr
