from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld.outputs import SubnetFile
from flanneld.publish import Publisher
from flanneld.wake import Wake

CONTENT = SubnetFile(
    {4: ipaddress.ip_network("10.5.0.0/16")}, {4: ipaddress.ip_network("10.5.66.0/24")}, 1450, ip_masq=True
)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(0.2)
        yield made


def publisher(directory: Path, cni: Path | None = None) -> Publisher:
    return Publisher(directory / "run/subnet.env", cni, {"NOTIFY_SOCKET": str(directory / "notify")})


def told(systemd: socket.socket) -> list[str]:
    found = []
    try:
        while True:
            found.append(systemd.recv(4096).decode())
    except TimeoutError:
        return found


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """In how many records; one may have been captured by more than one handler."""
    return len({id(record) for record in caplog.records if words in record.getMessage()})


def test_systemd_hears_of_every_change_and_of_nothing_else(tmp_path: Path, systemd: socket.socket) -> None:
    one = publisher(tmp_path)
    for trouble in ("", "", "no route", "no route", ""):
        one.show(trouble, "10.5.66.0/24")
    one.say("subnet 10.5.66.0/24", "READY=1")
    assert told(systemd) == [
        "STATUS=subnet 10.5.66.0/24",
        "STATUS=subnet 10.5.66.0/24, not ready: no route",
        "STATUS=subnet 10.5.66.0/24",
        "READY=1\nSTATUS=subnet 10.5.66.0/24",
    ]


def test_files_are_written_once_and_again_when_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    one = publisher(tmp_path, tmp_path / "net.d/10-flannel.conflist")
    file = tmp_path / "run/subnet.env"
    with caplog.at_level(logging.INFO):
        assert one.trouble
        assert one.write(CONTENT, look=False)
        assert one.write(CONTENT, look=False)
        assert not one.trouble
        file.unlink()
        assert one.write(CONTENT, look=False)
        assert not file.exists()
        assert one.write(CONTENT, look=True)
    assert "FLANNEL_MTU=1450" in file.read_text()
    assert said(caplog, "subnet.env") == 2
    assert said(caplog, "conflist") == 1


def test_what_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flanneld").propagate = True
    (tmp_path / "run").write_text("in the way")
    one = publisher(tmp_path)
    for _ in range(3):
        assert not one.write(CONTENT, look=False)
    assert "cannot be written" in one.trouble
    assert said(caplog, "cannot be written") == 1
    assert one.at < float("inf")
    (tmp_path / "run").unlink()
    assert one.write(CONTENT, look=False)
    assert (one.trouble, one.at) == ("", float("inf"))


def test_a_pause_ends_when_the_daemon_shall() -> None:
    wake = Wake()
    wake.up()
    threading.Timer(0.1, wake.stop).start()
    wake.pause(30)  # the wake-up alone does not end it
    assert wake.stopping
    wake.pause(30)
