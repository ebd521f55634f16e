"""What the host offers is read from the kernel's own texts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kubewright.artifacts import kubernetes_build
from kubewright.errors import UserError
from kubewright.lab.host import (
    CAP_SYS_RESOURCE,
    Cgroups,
    Host,
    complete_path,
    has_capability,
    has_swap,
    host_packages,
    parse_cgroups,
    require_programs,
    require_space,
)

V1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
V2_BESIDE = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"


def test_pure_version_2() -> None:
    assert parse_cgroups(V2) == Cgroups(2, (Path("/sys/fs/cgroup"),))


def test_a_hybrid_host_counts_as_version_1_and_has_every_hierarchy() -> None:
    found = parse_cgroups(V1 + V2_BESIDE)
    assert found == Cgroups(1, (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/unified")))


def test_no_control_groups_is_an_error() -> None:
    with pytest.raises(UserError, match="no control groups"):
        parse_cgroups("proc /proc proc rw 0 0\n")


@pytest.mark.parametrize(
    ("bounding", "expected"), [("000001ffffffffff", True), ("000001fffeffffff", False), ("0", False)]
)
def test_capability_is_a_bit_of_the_bounding_set(bounding: str, expected: bool) -> None:
    status = f"CapEff:\t000001ffffffffff\nCapBnd:\t{bounding}\n"
    assert has_capability(status, CAP_SYS_RESOURCE) is expected


def test_a_full_server_needs_no_adaptation() -> None:
    assert Host(Cgroups(2, ()), systemd=True, can_lower_oom_score=True).adaptations() == []


def test_each_adaptation_is_one_line() -> None:
    host = Host(
        Cgroups(1, ()),
        systemd=False,
        can_lower_oom_score=False,
        swap=True,
        missing_features=("ip_vs",),
        devices=("/dev/kmsg",),
    )
    lines = host.adaptations()
    for word in ("version 1", "systemd", "CAP_SYS_RESOURCE", "/dev/fuse", "/dev/net/tun", "ip_vs", "swap"):
        assert sum(word in line for line in lines) >= 1
    assert all("\n" not in line for line in lines)


def test_missing_programs_are_named_together_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError) as caught:
        require_programs()
    assert "debootstrap" in caught.value.message
    assert "systemd-nspawn" in caught.value.message
    assert "systemd-container" in caught.value.hint


def test_what_setup_installs_is_enough_to_build_kubernetes() -> None:
    assert kubernetes_build._PROGRAMS.items() <= host_packages().items()


def test_programs_of_an_administrator_are_found_with_the_path_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/games")
    complete_path()
    complete_path()
    assert os.environ["PATH"] == "/usr/local/bin:/usr/bin:/bin:/usr/games:/usr/local/sbin:/usr/sbin:/sbin"
    assert shutil.which("debootstrap")


def test_the_head_line_of_proc_swaps_is_no_swap() -> None:
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert not has_swap(head)
    assert has_swap(head + "/dev/vdb                                partition\t1048572\t0\t-2\n")


def test_too_little_space_names_what_is_free_and_needed(tmp_path: Path) -> None:
    require_space(tmp_path / "not/yet/there", 1, "nothing")
    with pytest.raises(UserError, match=r"needs 1048576\.0 GiB"):
        require_space(tmp_path, 2**50, "a lab")
