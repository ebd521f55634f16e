"""Go's own verifier in a rotation: a real etcd of three members changes its CA one member at a time."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from debian_packages import unpacked

from kubepki import issue, reconcile, rotation, spec

PORTS = {"a": (32379, 32380), "b": (32381, 32382), "c": (32383, 32384)}
SPEC = spec.parse(
    {
        "cas": {"etcd": {"cn": "etcd-ca", "role": "etcd"}},
        "certificates": [
            {
                "name": name,
                "ca": "etcd",
                "cn": name,
                "profile": "peer",
                "hosts": ["127.0.0.1"],
                "role": "etcd-peer",
                "consumers": [f"etcd@{name}"],
            }
            for name in PORTS
        ],
    }
)
NOW = datetime.now(UTC)


class Member:
    """One etcd with files of its own, which change only when `fetch` is called."""

    def __init__(self, name: str, pki: Path, home: Path) -> None:
        self.name = name
        self.pki = pki
        self.home = home
        home.mkdir()
        self.log = home / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def fetch_bundle(self) -> None:
        shutil.copy(self.pki / "etcd-ca-bundle.pem", self.home / "ca.pem")

    def fetch_pair(self) -> None:
        for end in (".pem", "-key.pem"):
            shutil.copy(self.pki / f"{self.name}{end}", self.home / f"pair{end}")

    def start(self) -> None:
        client, peer = PORTS[self.name]
        home = self.home
        files = ("--cert-file", "--peer-cert-file"), ("--key-file", "--peer-key-file")
        flags = [f"{flag}={home}/pair.pem" for flag in files[0]] + [f"{flag}={home}/pair-key.pem" for flag in files[1]]
        flags += [f"--trusted-ca-file={home}/ca.pem", f"--peer-trusted-ca-file={home}/ca.pem"]
        members = ",".join(f"{name}=https://127.0.0.1:{ports[1]}" for name, ports in PORTS.items())
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    unpacked("etcd", ["etcd-server"]) / "usr/bin/etcd",
                    f"--name={self.name}",
                    f"--data-dir={home}/data",
                    f"--listen-client-urls=https://127.0.0.1:{client}",
                    f"--advertise-client-urls=https://127.0.0.1:{client}",
                    f"--listen-peer-urls=https://127.0.0.1:{peer}",
                    f"--initial-advertise-peer-urls=https://127.0.0.1:{peer}",
                    f"--initial-cluster={members}",
                    "--client-cert-auth",
                    "--peer-client-cert-auth",
                    "--heartbeat-interval=50",
                    "--election-timeout=500",
                    *flags,
                ],
                stdout=stream,
                stderr=stream,
            )

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(20)

    def healthy(self, caller: Member) -> bool:
        """Whether this member answers another with a quorum behind it; the caller uses its own files."""
        context = ssl.create_default_context(cafile=str(caller.home / "ca.pem"))
        context.load_cert_chain(caller.home / "pair.pem", caller.home / "pair-key.pem")
        try:
            url = f"https://127.0.0.1:{PORTS[self.name][0]}/health"
            with urllib.request.urlopen(url, timeout=3, context=context) as reply:
                return bool(json.load(reply)["health"] == "true")
        except OSError as error:
            # A refusal stays one, however long one waits.
            if "certificate" in str(error).lower():
                raise AssertionError(f"{caller.name} to {self.name}: {error}") from error
            return False


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Member]]:
    pki = tmp_path / "pki"
    reconcile.apply(SPEC, pki, NOW)
    found = [Member(name, pki, tmp_path / name) for name in PORTS]
    for member in found:
        member.fetch_bundle()
        member.fetch_pair()
        member.start()
    yield found
    for member in found:
        member.stop()


def all_healthy(members: list[Member]) -> None:
    deadline = time.monotonic() + 30
    while not all(member.healthy(caller) for member in members for caller in members):
        assert time.monotonic() < deadline, "\n".join(member.log.read_text()[-1500:] for member in members)
        time.sleep(0.1)


def rolling(members: list[Member], change: Callable[[Member], Any]) -> None:
    for member in members:
        change(member)
        member.stop()
        member.start()
        all_healthy(members)


def test_etcd_keeps_its_quorum_through_a_rotation(members: list[Member]) -> None:
    pki = members[0].pki
    all_healthy(members)

    rotation.trust(SPEC, pki, "etcd", NOW)
    rolling(members, Member.fetch_bundle)
    for member in members:
        shown = issue.load_all((member.home / "ca.pem").read_bytes(), "ca.pem")
        rotation.confirm(SPEC, pki, "etcd", f"etcd@{member.name}", NOW, trusts=[shown])

    rotation.issue(SPEC, pki, "etcd", NOW)
    reconcile.apply(SPEC, pki, NOW)
    rolling(members, Member.fetch_pair)
    for member in members:
        served = ssl.get_server_certificate(("127.0.0.1", PORTS[member.name][0]), timeout=5)
        presents = [issue.load(served.encode(), member.name)]
        rotation.confirm(SPEC, pki, "etcd", f"etcd@{member.name}", NOW, presents=presents)

    assert rotation.drop(SPEC, pki, "etcd", NOW).phase == rotation.SETTLED
    rolling(members, Member.fetch_bundle)
    for member in members:
        assert (member.home / "ca.pem").read_bytes() == (pki / "etcd-ca.pem").read_bytes()
        refusals = re.findall(r".*(?:x509:|bad certificate|unknown authority).*", member.log.read_text())
        assert refusals == []
