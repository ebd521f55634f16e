from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kubewright import network_pings
from kubewright.network_pings import Pair

NAMES = {"10.244.1.2": "b", "10.244.2.2": "c"}


def read(*lines: str) -> list[Pair]:
    return network_pings.read("a", "\n".join(lines), NAMES)


def test_pings_without_a_loss() -> None:
    assert read("10.244.1.2 50 50 0 49") == [Pair("a", "b", 50, 0, 0.0)]


def test_a_last_one_for_whose_answer_nobody_waited_is_not_lost() -> None:
    assert read("10.244.1.2 50 49 0 48") == [Pair("a", "b", 49, 0, 0.0)]


def test_losses_in_the_middle_and_at_the_end() -> None:
    assert read("10.244.1.2 50 45 5 49", "10.244.2.2 50 10 0 9") == [
        Pair("a", "b", 50, 5, 1.2),
        Pair("a", "c", 50, 40, 8.2),
    ]


def test_a_ping_that_never_answered_and_one_that_died() -> None:
    # The second one printed no figures at its end.
    assert read("10.244.1.2 50 0 0 -1", "10.244.2.2 0 7 0 6", "10.244.2.2 0 0 0 -1", "sh: nonsense") == [
        Pair("a", "b", 50, 50, 10.2)
    ]


def test_in_large_clusters_a_ring() -> None:
    assert network_pings.partners(["a", "b", "c"]) == {"a": ["b", "c"], "b": ["c", "a"], "c": ["a", "b"]}
    many = network_pings.partners([f"n{number}" for number in range(40)])
    assert {len(others) for others in many.values()} == {8}
    assert many["n39"][:2] == ["n0", "n1"]
    assert network_pings.partners(["a"]) == {}  # nobody to ping, and no script for it


def test_what_is_told() -> None:
    pairs = [Pair("a", "b", 50, 0, 0.0), Pair("b", "a", 50, 2, 0.6)]
    assert network_pings.lines(pairs) == [
        "100 pings between pods, 2 lost, the longest gap 0.6 s",
        "  a > b: 50 pings, 0 lost",
        "  b > a: 50 pings, 2 lost, the longest gap 0.6 s",
    ]


def test_more_than_may_be_lost_is_an_error_and_so_is_not_to_know() -> None:
    assert network_pings.judged({}, 0) == ""
    assert network_pings.judged({"lost": 2, "unknown": []}, 2) == ""
    assert "2 pings between pods were lost, 1 may be" in network_pings.judged({"lost": 2, "unknown": []}, 1)
    assert "of a > b nothing is known" in network_pings.judged({"lost": 0, "unknown": ["a > b"]}, 0)


BUSYBOX = "echo 64 bytes from $7: seq=0 ttl=64; echo 64 bytes from $7: seq=1 ttl=64"


@pytest.mark.parametrize(
    ("ping", "told"),
    [
        (f"{BUSYBOX}; [ $7 = 127.0.0.1 ] || exec sleep 3", network_pings.READY),
        ("echo ping: invalid number 0.2; exit 1", "invalid number"),
        ("echo 64 bytes from $7: icmp_seq=1 ttl=64; echo 64 bytes from $7: icmp_seq=2 ttl=64", "icmp_seq=2"),
        (f"{BUSYBOX}; [ $7 = 127.0.0.1 ] || {{ echo permission denied; exit 1; }}", "permission denied"),
    ],
)
def test_pings_that_do_not_run_or_cannot_be_read_are_seen_at_the_begin(tmp_path: Path, ping: str, told: str) -> None:
    (tmp_path / "ping").write_text(f"#!/bin/sh\n{ping}\n")
    (tmp_path / "ping").chmod(0o755)
    script = network_pings.begin(["10.244.1.2", "10.244.2.2"]).replace("/tmp", str(tmp_path))  # noqa: S108 - the pod's
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert told in done.stdout
    assert (network_pings.READY in done.stdout) == (done.returncode == 0) == (told == network_pings.READY)
