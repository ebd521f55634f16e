from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from kubewright import components
from kubewright.errors import UserError

ARTIFACTS = {"etcd": {"version": "3.4.23", "sha256": "ab" * 32, "path": "/cache/etcd"}}


def render(name: str) -> str:
    return f"rendered {name}\n"


def test_a_template_path_is_the_target_path() -> None:
    declared = components.expand({"name": "x", "files": ["etc/docker/daemon.json"]}, render, {})
    [item] = declared.wire["files"]
    assert item["path"] == "/etc/docker/daemon.json"
    assert item["sha256"] == hashlib.sha256(b"rendered etc/docker/daemon.json.j2\n").hexdigest()
    assert item["restart"]


def test_a_unit_brings_its_unit_file() -> None:
    declared = components.expand({"name": "x", "unit": "x.service"}, render, {})
    assert [item["path"] for item in declared.wire["files"]] == ["/etc/systemd/system/x.service"]


def test_only_what_differs_is_shipped() -> None:
    declared = components.expand(
        {"name": "x", "binaries": {"etcd": "/opt/etcd/bin/etcd"}, "files": ["a", "b"]}, render, ARTIFACTS
    )
    found = {
        "differences": [
            {"kind": "file", "path": "/a", "reason": "missing", "content": True, "before": ""},
            {"kind": "file", "path": "/b", "reason": "mode", "content": False, "before": ""},
            {"kind": "binary", "path": "/opt/etcd/bin/etcd", "reason": "missing", "content": True},
        ],
    }
    contents, binaries = components.shipment([declared], [found])
    assert list(contents) == ["/a"]
    assert binaries == {"ab" * 32: "/cache/etcd"}


def test_a_diff_shows_no_secret() -> None:
    spec = {"name": "x", "files": [{"path": "/key", "content": "hush", "secret": True, "mode": "0600"}]}
    declared = components.expand(spec, render, {})
    found: dict[str, Any] = {
        "differences": [{"kind": "file", "path": "/key", "reason": "missing", "content": True, "before": ""}],
        "restart": "",
        "running": False,
    }
    text = repr(components.diffs([declared], [found]))
    assert "/key" in text
    assert "hush" not in text


def test_misspelt_keys_are_named() -> None:
    with pytest.raises(UserError, match="unknown helth"):
        components.expand({"name": "x", "helth": {}}, render, {})


def test_a_mode_that_yaml_made_a_number() -> None:
    with pytest.raises(UserError, match="not octal"):
        components.expand({"name": "x", "files": [{"path": "/a", "content": "", "mode": 420 * 100}]}, render, {})


def test_sources_that_are_not_there_name_the_stage(tmp_path: Path) -> None:
    spec = {"name": "pki", "files": [{"path": "/a", "sources": [str(tmp_path / "ca.pem")]}]}
    with pytest.raises(UserError, match="--tags pki"):
        components.expand(spec, render, {})


def test_sources_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A\n")
    (tmp_path / "b").write_text("B\n")
    spec = {"name": "pki", "files": [{"path": "/x", "sources": [str(tmp_path / "a"), str(tmp_path / "b")]}]}
    assert components.expand(spec, render, {}).contents["/x"] == b"A\nB\n"


def test_a_reload_takes_its_turn_as_a_restart_does() -> None:
    def found(**more: Any) -> list[dict[str, Any]]:
        return [{"restart": "", "reload": False, "running": True}, {"restart": "", "running": True, **more}]

    assert components.interrupts(found(restart="changed", reload=True))
    assert components.interrupts(found(restart="changed", reload=False))
    assert not components.interrupts(found(restart="not running", reload=False, running=False))
    assert not components.interrupts(found())


def test_check_mode_foresees_restarts_by_what_earlier_tasks_would_change() -> None:
    declared = components.expand({"name": "x", "unit": "x.service", "inputs": ["/ssl/ca.pem"]}, render, {})
    other = components.expand({"name": "y", "unit": "y.service", "inputs": ["/ssl/else.pem"]}, render, {})
    found: list[dict[str, Any]] = [
        {"differences": [{"kind": "file", "path": "/a", "reason": "missing"}], "restart": "", "running": False},
        {"differences": [], "restart": "", "running": True},
    ]
    assert components.foresee_restarts([declared, other], found, ["/ssl/ca.pem"]) == ["/a", "/ssl/ca.pem"]
    assert [f["restart"] for f in found] == ["will have changed: /ssl/ca.pem", ""]


def test_check_mode_does_not_read_what_would_be_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("old\n")
    spec = {"name": "pki", "files": [{"path": "/a", "sources": [str(tmp_path / "a.pem")], "pending": True}]}
    assert components.expand(spec, render, {}, foresee=True).contents["/a"] != b"old\n"
    assert components.expand(spec, render, {}).contents["/a"] == b"old\n"


def test_the_name_of_a_set_is_that_of_its_binaries() -> None:
    known = {"etcd": {"version": "3", "sha256": "a", "path": "/one"}, "flanneld": {"version": "1", "sha256": "b"}}
    name = components.set_name(known)
    same = {"flanneld": {"version": "2", "sha256": "c"}, "etcd": {"version": "3", "sha256": "a", "path": ""}}
    assert components.set_name(same) == name, "an interrupted upgrade goes on with whatever daemon of ours"
    assert components.set_name({**known, "etcd": {"version": "3", "sha256": "d"}}) != name
