"""What sysprep decides; what it does is tried in namespaces and in the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubewright.machine import sysprep

BUILTIN = "kernel/net/bridge/br_netfilter.ko\nkernel/fs/nf-x/nf-built-in.ko\n"


def test_modules_are_spelt_as_the_kernel_spells_them() -> None:
    names = ["nf-conntrack-kw", "nf_conntrack_kw", "br-netfilter", "nf-built_in"]
    # In the second run the module is loaded: the same list, and none of it is missing.
    for loaded in (set[str](), {"nf_conntrack_kw"}):
        assert sysprep.loadable(names, loaded, BUILTIN) == ["nf_conntrack_kw"]


def test_everything_that_is_missing_is_said_at_once_with_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysprep, "_CHRONY", ("no-such-unit-kw.service",))
    said = sysprep.lacking({"time_sync": {"servers": []}}, ["sh", "ping-kw", "no-such-program"])
    assert said.startswith("missing on this machine: ping-kw, no-such-program, chrony; nothing has been changed")
    assert "apt-get install ping-kw no-such-program chrony)" in said
    assert "sysprep_time_sync: false" in said


def test_packages_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysprep, "_PATH", "")
    said = sysprep.lacking({"time_sync": {}}, ["ip", "bridge", "ping", "ethtool"])
    assert "missing on this machine: ip, bridge, ping, ethtool;" in said
    assert "apt-get install iproute2 iputils-ping ethtool)" in said
    assert "chrony" not in said


def test_nothing_is_missing() -> None:
    assert sysprep.lacking({"swap": {"state": "keep"}}, ["sh"]) == ""


def test_what_is_not_utf8_in_a_file_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "hosts"
    there.write_bytes(b"127.0.0.1 b\xfcro\n")
    real = sysprep.read
    monkeypatch.setattr(sysprep, "read", lambda _: real(str(there)))
    written = sysprep._file
    monkeypatch.setattr(sysprep, "_file", lambda _, wanted, check: written(str(there), wanted, check))
    [difference] = sysprep.hosts({"entries": ["10.0.0.1 m1"]}, False)
    assert there.read_bytes() == b"127.0.0.1 b\xfcro\n# BEGIN kubewright\n10.0.0.1 m1\n# END kubewright\n"
    assert json.dumps(difference).encode().decode()
    assert difference["before"] == "127.0.0.1 b\N{REPLACEMENT CHARACTER}ro\n"
