"""What sysprep decides; what it does is tried in namespaces and in the lab."""

from __future__ import annotations

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
