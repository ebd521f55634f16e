"""How the load counts, and that its requests are what they say: the loopback answers them."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from kubewright.errors import UserError
from kubewright.lab import load_api, load_ping


def test_a_gap_is_between_two_answers_with_losses_between() -> None:
    pair = load_ping.Pair()
    for now in (0.0, 0.2, 0.4, 0.6):
        pair.send(now)
    pair.answer(0)
    pair.answer(3)
    assert pair.figures() == {"sent": 4, "lost": 0, "longest_gap_seconds": 0.0}
    pair.expire(1.5)
    assert pair.figures()["lost"] == 2
    pair.answer(pair.send(2.0))
    assert pair.figures() == {"sent": 5, "lost": 2, "longest_gap_seconds": 1.4}
    pair.answer(77)
    assert pair.sent == 5


def test_late_answers_are_lost() -> None:
    pair = load_ping.Pair()
    sequence = pair.send(0.0)
    pair.expire(1.01)
    pair.answer(sequence)
    assert pair.lost == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are root's")
def test_the_kernel_answers_our_requests() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as opened:
        opened.settimeout(2)
        opened.sendto(load_ping.request(7, 4711), ("127.0.0.1", 0))
        seen = [load_ping.answered(opened.recv(2048)) for _ in range(2)]
    assert (7, 4711) in seen
    assert load_ping.answered(b"") is None


def test_pods_are_found_by_their_environment(tmp_path: Path) -> None:
    for pid, environment in (("10", "LOAD=abc\0NODE=node01\0POD_IP=10.0.0.1\0"), ("11", "LOAD=xyz\0NODE=b\0")):
        directory = tmp_path / pid
        (directory / "ns").mkdir(parents=True)
        (directory / "ns/net").write_text("")
        (directory / "environ").write_text(environment)
    (tmp_path / "12").mkdir()
    (tmp_path / "self").mkdir()
    found = load_ping.pods("abc", tmp_path)
    assert [(pod.node, pod.address, pod.pid) for pod in found.values()] == [("node01", "10.0.0.1", 10)]
    with pytest.raises(UserError, match="0 of 1 nodes"):
        load_ping.wait_for_pods("nobody's", 1, 0)


class Script(load_api.Api):
    """Answers as it is told; stores what it acknowledges."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.turns = 0
        self.stored: dict[str, str] = {}

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        assert path.startswith("/")
        if method == "GET":
            items = [{"metadata": {"name": name}, "data": {"name": text}} for name, text in self.stored.items()]
            return 200, {"items": items, "metadata": {}}
        answer = self.answers.pop(0) if self.answers else 201
        if isinstance(answer, Exception):
            raise answer
        if answer == 201:
            self.stored[body["metadata"]["name"]] = body["data"]["name"]
        return answer, {"message": "as told"}

    def turn(self) -> None:
        self.turns += 1


def run(writer: load_api.Writer, writes: int) -> None:
    ending = threading.Event()
    waited = ending.wait

    class Ending(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if writer.tally.writes + writer.tally.failed >= writes:
                self.set()
            return waited(min(timeout or 0.0, 0.001))

    writer.run(Ending())


def test_writes_are_tried_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_api, "_INTERVAL", 0.001)
    api = Script(201, ConnectionRefusedError("refused"), 503, 409, 201)
    writer = load_api.Writer(api)
    run(writer, 3)
    figures = writer.tally.figures()
    assert (figures["writes"], figures["retried"], figures["failed"], api.turns) == (3, 1, 0, 2)
    assert figures["reasons"] == {"ConnectionRefusedError: refused": 1, "503 as told": 1}
    # The second one was answered with "there already", but is not there.
    assert writer.lost() == 1


def test_a_write_fails_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_api, "_INTERVAL", 0.001)
    monkeypatch.setattr(load_api, "_PATIENCE", 0.0)
    writer = load_api.Writer(Script(409, 500))
    run(writer, 2)
    assert writer.tally.failed == 2
    assert writer.lost() == 0
    with pytest.raises(UserError, match="as told"):
        load_api.patiently(Script(500, 500), "POST", "/x", {})


class Deleted:
    """An object that answers so often before it is gone."""

    def __init__(self, times: int) -> None:
        self.times = times

    def request(self, _method: str, path: str, _body: Any = None) -> tuple[int, dict[str, Any]]:
        assert path == "/api/v1/namespaces/x"
        self.times -= 1
        return (200, {"metadata": {"deletionTimestamp": "now"}}) if self.times >= 0 else (404, {})


def test_a_load_begins_after_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_api, "_INTERVAL", 0.001)
    api: Any = Deleted(3)
    load_api.wait_until_gone(api, "/api/v1/namespaces/x", 5)
    assert api.times == -1
    api = Deleted(10_000)
    with pytest.raises(UserError, match="ending for more than"):
        load_api.wait_until_gone(api, "/api/v1/namespaces/x", 0.01)
