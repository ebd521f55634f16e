from __future__ import annotations

import ipaddress
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld.errors import FlanneldError
from flanneld.notify import notify, watchdog_interval
from flanneld.outputs import SubnetFile, cni_conflist, parse_env, previous_subnets, subnet_env, write_atomically

SRC = Path(__file__).parent.parent.parent / "src"
N4, S4 = ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.1.74.0/24")
N6, S6 = ipaddress.ip_network("fc00::/48"), ipaddress.ip_network("fc00:0:0:7::/64")
V4 = SubnetFile({4: N4}, {4: S4}, 1472, ip_masq=False)
V6 = SubnetFile({6: N6}, {6: S6}, 1430, ip_masq=True)
BOTH = SubnetFile({4: N4, 6: N6}, {4: S4, 6: S6}, 1450, ip_masq=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (V4, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"),
        (
            V6,
            "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\n"
            "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
        ),
        (
            BOTH,
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n"
            "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\n"
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        ),
    ],
)
def test_subnet_env_and_back(tmp_path: Path, content: SubnetFile, text: str) -> None:
    path = tmp_path / "new" / "subnet.env"
    assert write_atomically(path, subnet_env(content))
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert previous_subnets(path) == tuple(content.subnets.values())
    assert os.listdir(path.parent) == ["subnet.env"]  # noqa: PTH208 - hidden leftovers must show


@pytest.mark.parametrize(
    ("text", "subnets"),
    [
        ("", ()),
        ("FLANNEL_SUBNET=nonsense\nFLANNEL_IPV6_SUBNET=fc00::1/64\n", ("fc00::/64",)),
        ("FLANNEL_SUBNET=10.1.74.1\n", ()),
        ("FLANNEL_SUBNET=fc00::1/64\n", ()),
        ("FLANNEL_SUBNET=10.1.74.1/33\nFLANNEL_IPV6_SUBNET=::g/64", ()),
        ("FLANNEL_SUBNET=x,10.1.74.1/24,10.1.75.1/24\n", ("10.1.74.0/24",)),
        (" FLANNEL_SUBNET = '10.1.74.1/24' \r\n# FLANNEL_SUBNET=10.9.9.1/24\n", ("10.1.74.0/24",)),
        ("\0\udcff\nFLANNEL_SUBNET=10.1.74.1/24", ("10.1.74.0/24",)),
    ],
)
def test_previous_subnets_of_damaged_files(tmp_path: Path, text: str, subnets: tuple[str, ...]) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert tuple(map(str, previous_subnets(path))) == subnets


def test_previous_subnets_without_a_file(tmp_path: Path) -> None:
    assert previous_subnets(tmp_path / "absent") == ()
    assert previous_subnets(tmp_path) == ()


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert all(name.isascii() and name.isidentifier() for name in parse_env(text))


def test_a_file_that_is_right_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_atomically(path, "one\n")
    before = path.stat()
    assert not write_atomically(path, "one\n")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write_atomically(path, "two\n")
    assert path.read_text() == "two\n"


def test_links_are_followed_and_devices_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", "one\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "one\n"
    reader, writer = os.pipe()
    try:
        assert write_atomically(Path(f"/dev/fd/{writer}"), "two\n")
        assert os.read(reader, 100) == b"two\n"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_redirected_output_is_written_to_and_not_replaced(tmp_path: Path, name: str) -> None:
    code = (
        "import pathlib, sys; from flanneld.outputs import write_atomically;"
        "write_atomically(pathlib.Path(sys.argv[1]), 'ours\\n')"
    )
    command = f'{{ echo before; {sys.executable} -c "{code}" {name}; echo after; }} > out'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)}, check=True)
    assert (tmp_path / "out").read_text() == "before\nours\nafter\n"


def test_the_output_of_another_process_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, subprocess.Popen(["sleep", "60"], stdout=out) as other:
        inode = (tmp_path / "out").stat().st_ino
        write_atomically(Path(f"/proc/{other.pid}/fd/1"), "ours\n")
        other.kill()
    assert (tmp_path / "out").read_text() == "ours\n"
    assert (tmp_path / "out").stat().st_ino == inode


def test_a_closed_output_is_an_error_of_ours() -> None:
    with pytest.raises(FlanneldError, match="/dev/fd/99999 cannot be written: Bad file descriptor"):
        write_atomically(Path("/dev/fd/99999"), "x\n")


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getpid()}").write_text("half")
    write_atomically(tmp_path / "file", "one\n")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlanneldError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "subnet.env", "x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FlanneldError, match="cannot be written"):
        write_atomically(tmp_path / "loop", "x")


def test_conflist() -> None:
    document = json.loads(cni_conflist(V4))
    assert (document["name"], document["cniVersion"]) == ("cbr0", "0.3.1")
    bridge, portmap = document["plugins"]
    assert bridge == {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "mtu": 1472,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.74.0/24"}]],
        },
    }
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}


def test_conflist_of_two_families() -> None:
    bridge = json.loads(cni_conflist(BOTH))["plugins"][0]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.1.74.0/24"}], [{"subnet": "fc00:0:0:7::/64"}]]
    assert (bridge["ipMasq"], bridge["mtu"]) == (False, 1450)


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_socket(tmp_path: Path, abstract: bool) -> None:
    address = f"@kubewright-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        assert notify({"NOTIFY_SOCKET": address}, "READY=1", "STATUS=up\nMAINPID=1")
        assert sock.recv(100) == b"READY=1\nSTATUS=up MAINPID=1"
    assert not notify({"NOTIFY_SOCKET": address}, "READY=1")
    assert not notify({}, "READY=1")


@pytest.mark.parametrize(
    ("usec", "seconds"), [("30000000", 15.0), ("500000", 0.25), ("0", None), ("", None), ("-1", None), ("x", None)]
)
def test_watchdog_interval(usec: str, seconds: float | None) -> None:
    assert watchdog_interval({"WATCHDOG_USEC": usec}) == seconds
    assert watchdog_interval({"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid())}) == seconds


def test_a_watchdog_for_another_process() -> None:
    assert watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_interval({}) is None
