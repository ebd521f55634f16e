"""remove-docker0 and the route check of mk-docker-opts against a kernel, each in a namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flannel_lab import run, until

SOURCES = Path(__file__).parents[2] / "src"


class Namespace:
    """A network namespace in which commands of flanneld are run from the sources."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.env_file = directory / "subnet.env"

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def flanneld(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "flanneld", *words, "-f", str(self.env_file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    @property
    def has_docker0(self) -> bool:
        return "docker0" in self.ip("-br", "link")

    def bridge(self, address: str = "172.17.0.1/16") -> None:
        self.ip("link", "add", "docker0", "type", "bridge")
        self.ip("addr", "add", address, "dev", "docker0")
        self.ip("link", "set", "docker0", "up")


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    made = Namespace(f"kwsurf{os.getpid()}", tmp_path)
    run("ip", "netns", "add", made.name)
    try:
        yield made
    finally:
        run("ip", "netns", "del", made.name, check=False)


def test_without_docker0_there_is_nothing_to_do(namespace: Namespace) -> None:
    assert namespace.flanneld("remove-docker0") == (0, "")


def test_an_unused_docker0_goes(namespace: Namespace) -> None:
    namespace.bridge()
    assert namespace.flanneld("remove-docker0") == (0, "docker0 removed\n")
    assert not namespace.has_docker0
    namespace.env_file.write_text("FLANNEL_SUBNET=10.1.74.1/24\n")
    namespace.bridge()
    namespace.ip("link", "set", "docker0", "down")
    assert namespace.flanneld("remove-docker0") == (0, "docker0 removed\n")
    assert not namespace.has_docker0


def test_a_docker0_in_flannels_subnet_stays(namespace: Namespace) -> None:
    namespace.env_file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n")
    namespace.bridge("10.1.74.1/24")
    assert namespace.flanneld("remove-docker0") == (
        0,
        "docker0 stays: its address 10.1.74.1 is in flannel's subnet already\n",
    )
    assert namespace.has_docker0


def test_one_with_containers_stays_unless_forced(namespace: Namespace) -> None:
    namespace.bridge()
    namespace.ip("link", "add", "veth1", "type", "veth", "peer", "name", "eth9")
    namespace.ip("link", "set", "veth1", "master", "docker0")
    status, told = namespace.flanneld("remove-docker0")
    assert (status, told.startswith("docker0 stays: containers are attached to it (veth1)")) == (0, True)
    assert "UP" in namespace.ip("-br", "link", "show", "docker0")
    assert namespace.flanneld("remove-docker0", "-force") == (0, "docker0 removed\n")
    assert not namespace.has_docker0


def test_one_of_a_running_docker_stays(namespace: Namespace) -> None:
    namespace.bridge()
    program = namespace.directory / "dockerd"
    shutil.copy(str(shutil.which("sleep")), program)
    docker = subprocess.Popen(["ip", "netns", "exec", namespace.name, str(program), "60"])
    try:
        comm = Path(f"/proc/{docker.pid}/comm")
        until(5, lambda: comm.read_text() == "dockerd\n", "dockerd runs")
        status, told = namespace.flanneld("remove-docker0")
        assert (status, told.startswith(f"docker0 stays: dockerd runs (process {docker.pid})")) == (0, True)
        assert namespace.has_docker0
    finally:
        docker.kill()
        docker.wait(10)
    assert namespace.flanneld("remove-docker0") == (0, "docker0 removed\n")


def test_a_docker_of_another_namespace_does_not_matter(namespace: Namespace) -> None:
    namespace.bridge()
    program = namespace.directory / "dockerd"
    shutil.copy(str(shutil.which("sleep")), program)
    docker = subprocess.Popen([str(program), "60"])
    try:
        time.sleep(0.1)
        assert namespace.flanneld("remove-docker0") == (0, "docker0 removed\n")
    finally:
        docker.kill()
        docker.wait(10)


def test_what_is_not_a_bridge_stays(namespace: Namespace) -> None:
    namespace.ip("link", "add", "docker0", "type", "veth", "peer", "name", "other")
    assert namespace.flanneld("remove-docker0", "-force") == (
        0,
        "docker0 stays: it is not a bridge, so it is not Docker's\n",
    )
    assert namespace.has_docker0


def test_without_permission_it_says_so_and_leaves_it_up(namespace: Namespace) -> None:
    namespace.bridge()
    weak = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace.name, *weak, sys.executable, "-m", "flanneld", "remove-docker0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert (done.returncode, done.stderr) == (
        1,
        "flanneld: docker0 cannot be removed: Operation not permitted (run it as root)\n",
    )
    assert "UP" in namespace.ip("-br", "link", "show", "docker0")


def test_a_route_to_the_own_subnet_is_told_after_writing(namespace: Namespace) -> None:
    namespace.env_file.write_text("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    output = namespace.directory / "docker"
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "lo")
    namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    namespace.ip("addr", "add", "198.51.100.1/24", "dev", "eth0")
    namespace.ip("link", "set", "eth0", "up")
    namespace.bridge("10.1.74.1/24")
    assert namespace.flanneld("mk-docker-opts", "-d", str(output)) == (0, "")
    namespace.ip("route", "replace", "10.1.74.0/24", "via", "198.51.100.7", "dev", "eth0", "metric", "5")
    assert namespace.flanneld("mk-docker-opts", "-c", "-d", str(output)) == (
        1,
        "Your routing table already contains the subnet: 10.1.74.0/24 via 198.51.100.7 dev eth0\n",
    )
    assert output.read_text() == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=false --mtu=1450"\n'
