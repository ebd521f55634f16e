"""Modules that a lab loaded go with the last lab; a file plays the kernel, as this one may have no modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubewright.lab.modules import remembered, unload, use_counts

# Like rmmod(8): a module in use stays. $0 is the list, $1 the module; a module named in brackets is used by others.
RMMOD = r"""
grep -q "^$1 [0-9]* 0 " "$0" || exit 1
sed -i "/^$1 /d" "$0"
sed -i -E "s/^(\S+ [0-9]+) [0-9]+ $1, /\1 0 - /" "$0"
"""


class Kernel:
    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.modules = proc / "modules"
        self.rmmod = ("sh", "-c", RMMOD, str(self.modules))
        (proc / "sys/kernel/random").mkdir(parents=True)
        self.boot("one")

    def boot(self, identity: str) -> None:
        (self.proc / "sys/kernel/random/boot_id").write_text(identity + "\n")
        self.modules.write_text("ext4 1000 5 - Live 0x0\nbonding 1000 0 - Live 0x0\n")

    def load(self, *lines: str) -> None:
        self.modules.write_text(self.modules.read_text() + "".join(f"{line} Live 0x0\n" for line in lines))

    @property
    def names(self) -> list[str]:
        return list(use_counts(self.modules.read_text()))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "proc")


def test_users_go_before_what_they_use_and_others_stay(kernel: Kernel, tmp_path: Path) -> None:
    record = tmp_path / "modules.json"
    with remembered(record, kernel.proc):
        kernel.load("bridge 1000 1 br_netfilter, ", "br_netfilter 1000 0 -", "overlay 1000 2 -")
    with remembered(record, kernel.proc):
        kernel.load("vxlan 1000 0 -")
    unload(record, kernel.proc, kernel.rmmod)
    assert kernel.names == ["ext4", "bonding", "overlay"]
    assert not record.exists()


def test_a_module_that_refuses_to_go_is_not_asked_for_ever(kernel: Kernel, tmp_path: Path) -> None:
    record = tmp_path / "modules.json"
    with remembered(record, kernel.proc):
        kernel.load("vxlan 1000 0 -")
    unload(record, kernel.proc, ("false",))
    assert "vxlan" in kernel.names


def test_what_was_loaded_is_remembered_when_the_probe_fails(kernel: Kernel, tmp_path: Path) -> None:
    record = tmp_path / "modules.json"

    def probe() -> None:
        with remembered(record, kernel.proc):
            kernel.load("vxlan 1000 0 -")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe()
    unload(record, kernel.proc, kernel.rmmod)
    assert kernel.names == ["ext4", "bonding"]


def test_after_a_boot_of_the_host_nothing_is_ours(kernel: Kernel, tmp_path: Path) -> None:
    record = tmp_path / "modules.json"
    with remembered(record, kernel.proc):
        kernel.load("vxlan 1000 0 -")
    kernel.boot("two")
    kernel.load("vxlan 1000 0 -")
    unload(record, kernel.proc, kernel.rmmod)
    assert "vxlan" in kernel.names


def test_a_kernel_without_modules(kernel: Kernel, tmp_path: Path) -> None:
    kernel.modules.unlink()
    with remembered(tmp_path / "modules.json", kernel.proc):
        pass
    unload(tmp_path / "modules.json", kernel.proc, ("false",))
