"""What the lab promises, with real machines: the host stays as it is, all can be resumed, down leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubewright.lab.model import BRIDGE, LABS, LabSpec, lab_spec

ADDRESSES = {"one": "10.99.7.10", "two": "10.99.7.11"}
SHARED = ("kernel", "vm", "fs", "dev", "user")
# Counters and random numbers.
VOLATILE = re.compile(r"/(random/.*|ns_last_pid|pty/nr|\w+-(nr|state)|quota/.*|pid_max)$")
# A command that sees swap, which the host need not have.
WITH_SWAP = """
printf 'Filename Type Size Used Priority\n/dev/sdz partition 1 0 -2\n' > "$0"
mount --bind "$0" /proc/swaps && exec "$@"
"""


def inventory(directory: Path, names: tuple[str, ...]) -> LabSpec:
    directory.mkdir()
    addresses = {name: ADDRESSES[name] for name in names}
    hosts = {name: {"ansible_host": address} for name, address in addresses.items()}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    return lab_spec(directory, addresses)


def argv(spec: LabSpec, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "kubewright.lab", "-i", str(spec.inventory), *arguments]


def lab(spec: LabSpec, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(argv(spec, *arguments), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def inside(spec: LabSpec, machine: str, script: str, status: int = 0) -> str:
    return lab(spec, "exec", machine, "--", "sh", "-c", script, status=status).strip()


def by_ssh(spec: LabSpec, machine: str) -> str:
    command = ["ssh", "-F", str(spec.access / "ssh_config"), machine, "hostname; cat /proc/sys/kernel/random/boot_id"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def settings() -> dict[str, str]:
    """Every setting of the host's kernel that is not a namespace's."""
    found = {}
    for tree in SHARED:
        for path in Path("/proc/sys", tree).rglob("*"):
            if path.is_file() and path.stat().st_mode & 0o400 and not VOLATILE.search(str(path)):
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
    return found


def traces() -> set[str]:
    """Namespaces, control groups, mounts, directories and processes of labs, each as a line with its lab's id in it."""
    found = {f"namespace {path.name}" for path in Path("/run/netns").glob("kw-*")}
    found |= {f"group {path}" for path in Path("/sys/fs/cgroup").glob("**/kubewright-*")}
    for directory in ("/var/lib/kubewright", "/run/kubewright"):
        root = Path(directory)
        found |= {f"directory {path}" for path in (root, *root.glob("*"), *root.glob("labs/*")) if path.exists()}
    found |= {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().replace("\0", " ")
            group = re.search(r"kubewright-[0-9a-f]{8}", (process / "cgroup").read_text())
        except OSError:
            continue
        # Who has ended and waits to be noticed by init has no words left.
        if words and (group or "/var/lib/kubewright" in words):
            found.add(f"process {process.name} {group and group[0]} {words}")
    return found


@pytest.fixture(scope="module")
def before() -> tuple[set[str], dict[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root for machines")
    return traces(), settings()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, before: object) -> Iterator[LabSpec]:
    del before
    made = inventory(tmp_path_factory.mktemp("first") / "inventory", ("one", "two"))
    yield made
    lab(made, "down")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, before: object) -> Iterator[LabSpec]:
    del before
    made = inventory(tmp_path_factory.mktemp("second") / "inventory", ("one",))
    yield made
    if made.directory.exists():
        lab(made, "down", "--id", made.lab_id)


def test_up_that_was_killed_is_resumed(spec: LabSpec, tmp_path: Path) -> None:
    marks = [machine.state_file for machine in spec.machines]
    with subprocess.Popen(argv(spec, "up"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:
        deadline = time.monotonic() + 300
        while not any(mark.exists() for mark in marks) and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.01)
        first.kill()
    assert any(mark.exists() for mark in marks)
    command = ["unshare", "--mount", "sh", "-c", WITH_SWAP, str(tmp_path / "swaps"), *argv(spec, "up")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("swap") == 1
    assert "adapted: the host has swap: machines are shown none" in done.stdout
    for name in ADDRESSES:
        assert by_ssh(spec, name).splitlines()[0] in {name, "debian"}


def test_the_kernel_is_the_hosts_and_stays_as_it_is(spec: LabSpec) -> None:
    own = Path("/proc/sys/kernel/panic").read_text()
    assert inside(spec, "one", "mountpoint -q /proc/swaps && wc -l < /proc/swaps && swapoff -a && swapon --show") == "1"
    assert inside(spec, "one", "sysctl -q -w kernel.panic=77 vm.overcommit_memory=1 && sysctl -n kernel.panic") == "77"
    assert "77" not in inside(spec, "two", "sysctl -n kernel.panic")
    assert Path("/proc/sys/kernel/panic").read_text() == own
    assert "Read-only" in inside(spec, "one", "echo 11 > /proc/sys/vm/dirty_ratio", status=2)
    assert "degraded" not in inside(spec, "one", "systemctl is-system-running")
    identities = {by_ssh(spec, name) for name in ADDRESSES}
    assert len(identities) == 2
    assert not any(Path("/proc/sys/kernel/random/boot_id").read_text() in identity for identity in identities)


def test_a_supervisor_that_was_killed(spec: LabSpec) -> None:
    machine = spec.machines[0]
    os.kill(json.loads(machine.state_file.read_text())["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while re.search(r"one +\S+ +running", said := lab(spec, "status", status=3)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert re.search(r"one +\S+ +off", said)
    assert re.search(r"two +\S+ +running", said)
    lab(spec, "up")
    assert lab(spec, "status").count("running") == 2


def test_stop_start_reboot(spec: LabSpec) -> None:
    inside(spec, "one", "echo kept > /root/kept")
    first = by_ssh(spec, "one")
    assert re.search(r"one +\S+ +off", lab(spec, "stop", "one"))
    assert re.search(r"one +\S+ +off", lab(spec, "status", status=3))
    lab(spec, "start", "one")
    second = by_ssh(spec, "one")
    lab(spec, "reboot", "one")
    assert len({first, second, by_ssh(spec, "one")}) == 3
    assert inside(spec, "one", "cat /root/kept") == "kept"


def test_cut_and_connect(spec: LabSpec) -> None:
    ping = f"ping -q -c 1 -W 1 {ADDRESSES['two']} >/dev/null"
    inside(spec, "one", ping)
    lab(spec, "cut", "two")
    inside(spec, "one", ping, status=1)
    lab(spec, "connect", "two")
    inside(spec, "one", ping)


def test_the_bridge_keeps_its_address_when_machines_go(spec: LabSpec) -> None:
    def address() -> str:
        shown = subprocess.run(
            ["ip", "-j", "-n", spec.namespace, "link", "show", BRIDGE], capture_output=True, text=True, check=True
        )
        return str(json.loads(shown.stdout)[0]["address"])

    before = address()
    for machine in ("one", "two"):
        lab(spec, "cut", machine)
        assert address() == before
        lab(spec, "connect", machine)


def test_keys_that_were_lost_are_made_anew(spec: LabSpec) -> None:
    shutil.rmtree(spec.access)
    begin = time.monotonic()
    lab(spec, "up")
    assert time.monotonic() - begin < 60
    assert by_ssh(spec, "two")


def test_another_network_is_refused_while_the_lab_is_up(spec: LabSpec) -> None:
    variables = spec.inventory / "group_vars/all.json"
    variables.parent.mkdir()
    variables.write_text(json.dumps({"lab_network": "10.99.0.0/16"}))
    said = lab(spec, "up", status=1)
    assert "the lab that is up has the network 10.99.7.1/24, the inventory wants 10.99.0.1/16" in said
    shutil.rmtree(variables.parent)
    lab(spec, "up")


def test_disks_stay_on_the_image_they_were_made_on(spec: LabSpec) -> None:
    machine = spec.machines[0]
    image = machine.image_file.read_text()
    lab(spec, "kill", "one")
    machine.image_file.write_text("0123456789abcdef\n")
    assert "the base image below the disks of these machines is gone" in lab(spec, "start", "one", status=1)
    machine.image_file.write_text(image)
    lab(spec, "start", "one")


def test_two_labs_of_the_same_addresses_one_of_them_without_its_inventory(spec: LabSpec, second: LabSpec) -> None:
    lab(second, "up")
    assert len({by_ssh(spec, "one"), by_ssh(second, "one")}) == 2
    shutil.rmtree(second.inventory)
    said = lab(spec, "list")
    assert re.search(rf"{spec.lab_id} +2 of 2 +{spec.inventory}\n", said)
    assert re.search(rf"{second.lab_id} +1 of 1 +gone \(was {second.inventory}\)", said)
    assert "there is no lab '00000000'" in lab(spec, "down", "--id", "00000000", status=1)
    assert "is gone" in lab(spec, "down", "--id", second.lab_id)
    assert second.lab_id not in lab(spec, "list")
    assert by_ssh(spec, "one")


def test_down_leaves_nothing(spec: LabSpec, second: LabSpec, before: tuple[set[str], dict[str, str]]) -> None:
    assert any(spec.lab_id in trace for trace in traces())
    lab(spec, "down")
    others = {path.name for path in LABS.iterdir()} if LABS.is_dir() else set()
    assert not {spec.lab_id, second.lab_id} & others
    left = {line for line in traces() - before[0] if not any(name in line for name in others)}
    if others:
        # They keep what labs share.
        left = {line for line in left if re.search(r"[0-9a-f]{8}", line)}
    assert left == set()
    changed = {name: value for name, value in settings().items() if before[1].get(name, value) != value}
    assert changed == {}
    assert not spec.access.exists()
