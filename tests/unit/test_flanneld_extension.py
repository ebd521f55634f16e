"""The extension and alloc backends, with real commands of the shell."""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flanneld.backend import shell
from flanneld.backend.alloc import AllocBackend
from flanneld.backend.base import Existing, Underlay
from flanneld.backend.extension import ExtensionBackend
from flanneld.dataplane import Desired, Ownership
from flanneld.errors import ConfigError, NetworkError
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Lease, encode_attributes

UNDERLAY = Underlay("eth0", 1500, {4: "192.0.2.1"})
EXISTING = Existing({}, {}, {4: "192.0.2.1"})


def lease(number: int, data: Any = "00:11", kind: str = "extension", ipv6: bool = False) -> Lease:
    subnets: tuple[Any, ...] = (ipaddress.ip_network(f"10.5.{number}.0/24"),)
    if ipv6:
        subnets += (ipaddress.ip_network(f"fc00:0:0:{number}::/64"),)
    public6 = f"2001:db8::{number}" if ipv6 else ""
    return Lease(subnets, Attributes(f"192.0.2.{number}", kind, data, public6))


OWN = lease(1)


def config(**commands: Any) -> Any:
    backend = {"Type": "extension", **commands}
    return parse_config(json.dumps({"Network": "10.5.0.0/16", "Backend": backend}))


def until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


class Run:
    """A backend whose commands write lines into a journal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = directory / "journal"
        self.backend: ExtensionBackend | None = None

    def start(self, **commands: str) -> ExtensionBackend:
        write = f'read data; echo "%s $SUBNET $PUBLIC_IP $data" >> {self.journal}'
        commands = {"SubnetAddCommand": write % "add", "SubnetRemoveCommand": write % "remove", **commands}
        self.backend = ExtensionBackend(config(**commands), UNDERLAY)
        self.backend.prepare(EXISTING)
        self.backend.start(OWN)
        return self.backend

    @property
    def lines(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    if made.backend is not None:
        made.backend.close()


def test_what_the_first_command_prints_is_announced() -> None:
    # As in the Go daemon's samples: several commands, quotes and a pipe.
    command = "export X=1; echo \"a: 'b'\" | tr a-z A-Z && echo $X"
    backend = ExtensionBackend(config(PreStartupCommand=command), UNDERLAY)
    backend.prepare(EXISTING)
    assert backend.data(4) == "A: 'B'\n1"
    assert backend.data(6) is None
    assert encode_attributes(Attributes("192.0.2.1", backend.announced, backend.data(4))) == (
        '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"A: \'B\'\\n1"}'
    )
    assert backend.mtu == 1500


def test_without_a_first_command_nothing_is_announced() -> None:
    backend = ExtensionBackend(config(), UNDERLAY)
    backend.prepare(EXISTING)
    assert backend.data(4) is None


def test_a_first_command_that_fails_says_why() -> None:
    backend = ExtensionBackend(config(PreStartupCommand="echo no such device >&2; exit 3"), UNDERLAY)
    with pytest.raises(NetworkError, match="PreStartupCommand failed with status 3: no such device"):
        backend.prepare(EXISTING)


def test_the_first_command_is_run_once_however_often_a_lease_is_tried_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = f"echo x >> {tmp_path}/ran; test -e {tmp_path}/good && wc -l < {tmp_path}/ran"
    backend = ExtensionBackend(config(PreStartupCommand=command, ShutdownCommand="true"), UNDERLAY)
    with caplog.at_level(logging.INFO, "flanneld"):
        with pytest.raises(NetworkError):
            backend.prepare(EXISTING)
        (tmp_path / "good").touch()
        for _ in range(3):
            backend.prepare(EXISTING)
            assert backend.data(4) == "2", "one failed, one did not"
    assert len(caplog.records) == 2


def test_a_command_is_a_string() -> None:
    with pytest.raises(ConfigError, match=r'SubnetAddCommand is \["a"\]'):
        ExtensionBackend(config(SubnetAddCommand=["a"]), UNDERLAY)


def test_peers_are_added_changed_and_removed_in_order(ran: Run) -> None:
    post = f'echo "post $NETWORK $SUBNET [$IPV6SUBNET] $PUBLIC_IP [$PUBLIC_IPV6]" >> {ran.journal}'
    backend = ran.start(PostStartupCommand=post)
    assert "PostStartupCommand" in backend.trouble() or "not all been run" in backend.trouble()
    backend.update([OWN, lease(2), lease(3, "00:33"), lease(4, kind="vxlan"), lease(5, {"a": 1})])
    until(lambda: not backend.trouble(), backend.trouble)
    assert ran.lines == [
        "post 10.5.0.0/16 10.5.1.0/24 [] 192.0.2.1 []",
        "add 10.5.2.0/24 192.0.2.2 00:11",
        "add 10.5.3.0/24 192.0.2.3 00:33",
    ]
    assert set(backend.ignored) == {"10.5.4.0/24", "10.5.5.0/24"}
    backend.update([lease(2, "changed"), OWN])
    until(lambda: len(ran.lines) == 6, lambda: ran.lines)
    changed = [line for line in ran.lines[3:] if "10.5.2.0" in line]
    assert changed == ["remove 10.5.2.0/24 192.0.2.2 00:11", "add 10.5.2.0/24 192.0.2.2 changed"]
    assert "remove 10.5.3.0/24 192.0.2.3 00:33" in ran.lines
    backend.update([OWN, lease(2, "changed")._replace(revision=99)])  # a renewal
    time.sleep(0.2)
    assert len(ran.lines) == 6


def test_ipv6_of_a_peer(ran: Run) -> None:
    backend = ran.start(SubnetAddCommand=f'echo "$IPV6SUBNET $PUBLIC_IPV6" >> {ran.journal}')
    backend.update([lease(2, ipv6=True)])
    until(lambda: ran.lines == ["fc00:0:0:2::/64 2001:db8::2"], lambda: ran.lines)


def test_variables_are_not_put_into_the_text(ran: Run) -> None:
    # Data of a peer that would be a command if it were.
    backend = ran.start()
    backend.update([lease(2, f'$(touch {ran.directory}/hacked) "`touch {ran.directory}/hacked`"')])
    until(lambda: len(ran.lines) == 1, lambda: ran.lines)
    assert ran.lines[0].startswith("add 10.5.2.0/24 192.0.2.2 $(touch")
    assert not (ran.directory / "hacked").exists()


def test_a_failure_is_tried_again_and_others_do_not_wait(ran: Run, caplog: pytest.LogCaptureFixture) -> None:
    good = ran.directory / "good"
    command = f'test $SUBNET != 10.5.2.0/24 || test -e {good} || {{ echo "not yet" >&2; exit 1; }}'
    backend = ran.start(SubnetAddCommand=f'{command}; echo "$SUBNET" >> {ran.journal}')
    with caplog.at_level(logging.WARNING, "flanneld"):
        backend.update([lease(2), lease(3)])
        until(lambda: ran.lines == ["10.5.3.0/24"], lambda: ran.lines)
        until(lambda: "SubnetAddCommand for 10.5.2.0/24 failed with status 1: not yet" in backend.trouble())
        good.touch()
        until(lambda: not backend.trouble(), backend.trouble)
    assert ran.lines == ["10.5.3.0/24", "10.5.2.0/24"]
    assert caplog.text.count("not yet; trying again") == 1


def test_a_peer_that_could_not_be_added_is_removed_when_it_goes(ran: Run) -> None:
    backend = ran.start(SubnetAddCommand="exit 1")
    backend.update([lease(2)])
    until(lambda: "SubnetAddCommand" in backend.trouble(), backend.trouble)
    backend.update([])
    until(lambda: not backend.trouble(), backend.trouble)
    assert ran.lines == ["remove 10.5.2.0/24 192.0.2.2 00:11"]


def test_the_peers_wait_for_the_command_after_the_start(ran: Run) -> None:
    good = ran.directory / "good"
    backend = ran.start(PostStartupCommand=f"test -e {good}")
    backend.update([lease(2)])
    until(lambda: "PostStartupCommand failed with status 1" in backend.trouble(), backend.trouble)
    assert ran.lines == []
    good.touch()
    until(lambda: not backend.trouble(), backend.trouble)
    assert len(ran.lines) == 1


def test_update_does_not_wait_for_commands(ran: Run) -> None:
    backend = ran.start(SubnetAddCommand="sleep 20")
    leases = [lease(one) for one in range(2, 200)]
    started = time.monotonic()
    for number in range(len(leases)):
        backend.update(leases[:number])
    assert time.monotonic() - started < 10
    assert "not all been run" in backend.trouble()


def test_shutdown_command_is_not_run_and_its_owner_is_told(ran: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flanneld"):
        backend = ran.start(ShutdownCommand=f"touch {ran.directory}/shut")
        backend.update([])
        until(lambda: not backend.trouble())
        backend.close()
    assert not (ran.directory / "shut").exists()
    assert "ShutdownCommand is not run" in caplog.text
    assert "root on every machine" in caplog.text


def test_new_commands_are_used_from_now_on(ran: Run) -> None:
    backend = ran.start()
    backend.follow(config(SubnetAddCommand=f"echo new >> {ran.journal}"), UNDERLAY._replace(mtu=9000))
    backend.update([lease(2)])
    until(lambda: ran.lines == ["new"], lambda: ran.lines)
    assert backend.mtu == 9000


def test_leases_are_judged_anew_with_another_configuration(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, leases = ran.start(), [lease(2)]
    backend.update(leases)
    until(lambda: len(ran.lines) == 1, lambda: ran.lines)
    monkeypatch.setattr(backend, "_unfit", lambda *_: "the network has changed")
    backend.update(leases)
    assert backend.ignored == {}
    backend.follow(backend.config, UNDERLAY)
    backend.update(leases)
    assert set(backend.ignored) == {"10.5.2.0/24"}


def test_nothing_of_the_kernel_is_owned(ran: Run) -> None:
    backend = ran.start()
    assert backend.desired(OWN, [OWN, lease(2)]) == Desired(Ownership({}))


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    result = shell.run(f"(sleep 1; touch {tmp_path}/late) & sleep 60", {}, timeout=0.3)
    assert result.failure == "did not end within 0.3 s and was killed"
    assert time.monotonic() - started < 5
    time.sleep(1)
    assert not (tmp_path / "late").exists()


def test_a_program_left_in_the_background_is_not_waited_for() -> None:
    started = time.monotonic()
    assert shell.run("sleep 5 & echo done", {}) == ("done\n", "")
    assert time.monotonic() - started < 3


def test_large_input_that_is_not_read_and_output_that_is_no_text() -> None:
    assert shell.run("printf '\\377'", {}, "x" * (1 << 20)) == ("\ufffd", "")
    assert shell.run("kill -9 $$", {}).failure == "was ended by signal 9"
    assert shell.run("echo \0", {}).failure.startswith("cannot be run")


def test_data_of_a_peer_that_is_no_text(ran: Run) -> None:
    backend = ran.start()
    backend.update([lease(2, json.loads('"a\\ud800"')), lease(3)])
    until(lambda: len(ran.lines) == 2, lambda: ran.lines)
    assert not backend.trouble()
    assert ran.lines[0] == "add 10.5.2.0/24 192.0.2.2 a?"


def test_no_room_for_the_files_is_a_failure_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda: full)
        assert shell.run("true", {}, "x").failure == "cannot be run: [Errno 28] No space left on device"


def test_secrets_of_the_daemon_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLANNELD_ETCD_PASSWORD", "ACCESS_KEY_SECRET", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("LANG_OF_USER", "de")
    printed = shell.run("env", {"SUBNET": "10.5.1.0/24"}).output
    assert "hunter2" not in printed
    assert "LANG_OF_USER=de" in printed
    assert "SUBNET=10.5.1.0/24" in printed


def test_alloc_leases_and_does_nothing_else() -> None:
    backend = AllocBackend(parse_config('{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}'), UNDERLAY)
    assert (backend.announced, backend.data(4), backend.mtu) == ("", None, 1500)
    assert backend.desired(OWN, [lease(2)]) == Desired(Ownership({}))
    assert encode_attributes(Attributes("192.0.2.1", backend.announced, backend.data(4))) == (
        '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
    )
    backend.follow(backend.config, UNDERLAY._replace(mtu=1400))
    assert backend.mtu == 1400
