"""The engine on this very machine: real files, no unit."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from kubewright import components
from kubewright.machine import component, files, placed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are owned by root, as on machines")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "STORE", str(tmp_path / "store"))
    monkeypatch.setattr(component, "RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(placed, "PLACED", str(tmp_path / "placed.json"))
    monkeypatch.setattr(files.DigestCache.__init__, "__defaults__", (str(tmp_path / "digests.json"),))


def declare(tmp_path: Path, **spec: Any) -> components.Declared:
    artifact = tmp_path / "artifact"
    if not artifact.exists():
        artifact.write_bytes(b"#!/bin/sh\nexit 0\n")
    known = {"tool": {"version": "1", "sha256": files.sha256_of(str(artifact)), "path": str(artifact)}}
    return components.expand({"name": "x", **spec}, lambda name: name, known)


def bring(declared: components.Declared) -> list[dict[str, Any]]:
    found = component.inspect_all([declared.wire])
    contents, binaries = components.shipment([declared], found)
    staged = {}
    for digest, path in binaries.items():
        copy = Path(path).with_suffix(".staged")
        copy.write_bytes(Path(path).read_bytes())
        staged[digest] = str(copy)
    component.apply_all([declared.wire], contents, staged)
    differences: list[dict[str, Any]] = found[0]["differences"]
    return differences


def test_a_second_run_finds_nothing(tmp_path: Path) -> None:
    link, target = tmp_path / "bin" / "tool", tmp_path / "etc" / "x.conf"
    declared = declare(
        tmp_path,
        binaries={"tool": str(link)},
        files=[{"path": str(target), "content": "a\n", "mode": "0640"}],
        directories=[{"path": str(tmp_path / "d"), "mode": "0700"}],
    )
    assert {d["kind"] for d in bring(declared)} == {"binary", "file", "directory"}
    assert target.read_text() == "a\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.access(link, os.X_OK)
    assert bring(declared) == []


def test_reasons_are_told_apart(tmp_path: Path) -> None:
    target = tmp_path / "x.conf"
    declared = declare(tmp_path, files=[{"path": str(target), "content": "new\n"}])
    target.write_text("old\n")
    [difference] = bring(declared)
    assert difference["reason"] == "content differs"
    assert difference["before"] == "old\n"
    target.chmod(0o666)
    [difference] = bring(declared)
    assert difference["reason"] == "mode 0666, wanted 0644"
    assert not difference["content"]


def test_inspection_changes_nothing(tmp_path: Path) -> None:
    declared = declare(
        tmp_path, files=[{"path": str(tmp_path / "sub" / "x"), "content": "x"}], absent=[str(tmp_path / "gone")]
    )
    (tmp_path / "gone").write_text("still here")
    assert len(component.inspect_all([declared.wire])[0]["differences"]) == 2
    assert not (tmp_path / "sub").exists()
    assert (tmp_path / "gone").exists()


def test_a_damaged_transfer_is_refused(tmp_path: Path) -> None:
    declared = declare(tmp_path, binaries={"tool": str(tmp_path / "bin" / "tool")})
    staged = tmp_path / "half"
    staged.write_bytes(b"#!/bin")
    digest = declared.wire["binaries"][0]["sha256"]
    with pytest.raises(OSError, match="transfer was damaged"):
        component.apply_all([declared.wire], {}, {digest: str(staged)})
    assert not (tmp_path / "bin" / "tool").exists()


def test_a_tampered_binary_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "bin" / "tool"
    declared = declare(tmp_path, binaries={"tool": str(link)})
    bring(declared)
    stored = link.readlink()
    stored.write_bytes(b"evil")
    [difference] = bring(declared)
    assert difference["reason"] == "content differs" or "becomes" in difference["reason"]
    assert stored.read_bytes() == b"#!/bin/sh\nexit 0\n"


def test_secret_content_never_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "key"
    target.write_text("old secret")
    declared = declare(tmp_path, files=[{"path": str(target), "content": "new", "secret": True}])
    assert "old secret" not in repr(component.inspect_all([declared.wire]))


def test_a_write_leaves_no_temporary_file_when_the_owner_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        files.write_atomic(str(tmp_path / "x"), base64.b64decode("eA=="), 0o600, "no-such-user")
    assert list(tmp_path.iterdir()) == []
