"""Namespaces with the udp backend in them, on one bridge."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flannel_lab import Tools, run

_HERE = Path(__file__).parent
SOURCE = _HERE.parent.parent / "src"


class Node:
    """A namespace with eth0, an inner address 10.9.N.1, and the backend."""

    def __init__(self, name: str, switch: str, number: int, tools: Tools, directory: Path) -> None:
        self.namespace, self.number, self.tools = f"{name}-n{number}", number, tools
        self.address, self.subnet, self.inner = f"192.168.77.{number}", f"10.9.{number}.0/24", f"10.9.{number}.1"
        self.log_file = directory / f"node{number}.log"
        self.process: subprocess.Popen[str] | None = None
        run("ip", "netns", "add", self.namespace)
        wire = ["ip", "link", "add", f"ku{number}", "netns", switch, "type", "veth"]
        run(*wire, "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "-n", switch, "link", "set", f"ku{number}", "master", "br0", "up")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "add", "pods", "type", "bridge")
        self.ip("link", "set", "pods", "up")
        self.ip("addr", "add", f"{self.inner}/24", "dev", "pods")
        self.exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
        # The strictest setting: an ICMP error must arrive nevertheless.
        self.exec("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")

    def ip(self, *words: str, check: bool = True) -> str:
        return run("ip", "-n", self.namespace, *words, check=check)

    def exec(self, *command: str, check: bool = True, timeout: float = 30) -> str:
        return run("ip", "netns", "exec", self.namespace, *command, env=self.tools.env, check=check, timeout=timeout)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], text=True, **options)

    def python(self, code: str, *words: str) -> subprocess.Popen[str]:
        return self.popen(sys.executable, "-c", code, *words, stdout=subprocess.PIPE)

    def start(
        self, settings: dict[str, Any] | None = None, *words: str, python: str = sys.executable, source: Path = SOURCE
    ) -> str:
        """Start the backend; returns what it says: "ready", or why not."""
        command = [python, str(_HERE / "udp_node.py"), self.address, self.subnet, json.dumps(settings or {}), *words]
        env = {**os.environ, "PYTHONPATH": str(source)}
        with self.log_file.open("a") as log:
            self.process = self.popen(*command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        return self._answer()

    def ask(self, *message: Any) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 15)[0], f"no answer:\n{self.log}"
        return str(json.loads(self.process.stdout.readline() or '"ended"'))

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def child(self) -> int:
        """Return the process of the data path."""
        assert self.process is not None
        own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        every = {int(one) for path in threads for one in path.read_text().split()} | {int(one) for one in own}
        found = [one for one in every if Path(f"/proc/{one}/comm").read_text().strip() == "flanneld-udp"]
        assert len(found) == 1, f"{every}\n{self.log}"
        return found[0]

    def ping(self, target: str, *words: str) -> str:
        return self.exec("ping", "-n", "-c", "1", "-W", "1", "-I", self.inner, *words, target, check=False)

    def stop(self) -> None:
        if self.process is None:
            return
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate(timeout=10)
        self.process = None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=10)
        run("ip", "netns", "del", self.namespace, check=False)


@contextmanager
def nodes(count: int, tools: Tools, directory: Path) -> Iterator[list[Node]]:
    """Make nodes without a backend; ends and removes everything."""
    name = f"kwup{os.getpid()}x{time.monotonic_ns() % 10**6}"
    switch = f"{name}-sw"
    made: list[Node] = []
    run("ip", "netns", "add", switch)
    try:
        run("ip", "-n", switch, "link", "add", "br0", "address", "02:00:00:00:fe:01", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        made.extend(Node(name, switch, number, tools, directory) for number in range(1, count + 1))
        yield made
    finally:
        for node in made:
            node.close()
        run("ip", "netns", "del", switch, check=False)


def introduce(*every: Node) -> None:
    """Tell all about all."""
    leases = {node.subnet: node.address for node in every}
    for node in every:
        assert node.ask("leases", leases) == ""
