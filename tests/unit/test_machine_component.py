"""The engine on this very machine: real files, no unit."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kubewright import components
from kubewright.machine import component, files, placed, turnover

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
    turnover.apply_all([declared.wire], contents, staged)
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
        turnover.apply_all([declared.wire], {}, {digest: str(staged)})
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


def test_a_configuration_that_its_program_refuses_never_goes_live(tmp_path: Path) -> None:
    target, other = tmp_path / "x.conf", tmp_path / "y.conf"

    def wanted(text: str) -> components.Declared:
        entries = [{"path": str(target), "content": text}, {"path": str(other), "content": "same\n"}]
        # Both are below the root, also the one that does not differ.
        judge = [
            "/bin/sh",
            "-c",
            f"cat {{root}}{other} && grep -q good {{root}}{target} || {{{{ echo bad line; exit 1; }}}}",
        ]
        return declare(tmp_path, files=entries, check=[part.replace("{{", "{").replace("}}", "}") for part in judge])

    bring(wanted("good 1\n"))
    assert target.read_text() == "good 1\n"
    worse = wanted("worse\n")
    found = component.inspect_all([worse.wire])
    contents, _ = components.shipment([worse], found)
    reply = turnover.apply_all([worse.wire], contents, {})
    assert reply["refusal"].startswith("x: sh refuses its new configuration, which was not put in place: ")
    assert "bad line" in reply["refusal"]
    assert str(tmp_path) + "/kubewright" not in reply["refusal"]
    assert target.read_text() == "good 1\n"
    bring(wanted("good 2\n"))
    assert target.read_text() == "good 2\n"


def test_what_a_service_takes_over_by_itself_is_a_reload(tmp_path: Path) -> None:
    soft, hard = tmp_path / "soft", tmp_path / "hard"

    def found(soft_text: str, hard_text: str) -> dict[str, Any]:
        entries = [{"path": str(soft), "content": soft_text}, {"path": str(hard), "content": hard_text}]
        declared = declare(tmp_path, files=entries, reload=[str(soft)])
        wire = {**declared.wire, "unit": "x.service"}
        states = {"x.service": {"ActiveState": "active", "UnitFileState": "enabled"}}
        return component.inspect(wire, files.DigestCache(), states)

    bring(declare(tmp_path, files=[{"path": str(soft), "content": "1"}, {"path": str(hard), "content": "1"}]))
    assert not found("1", "1")["reload"], "kubewright has not started it yet"
    ingredients = {str(soft): files.sha256_of(str(soft)), str(hard): files.sha256_of(str(hard))}
    files.write_atomic(f"{component.RECORDS}/x.json", json.dumps({"ingredients": ingredients}).encode(), 0o600)
    assert not found("1", "1")["restart"]
    assert found("2", "1")["reload"]
    assert found("2", "1")["restart"].startswith("changed since it was started")
    assert not found("2", "2")["reload"]
    assert found("1", "2")["restart"]
    assert not found("1", "2")["reload"]


def test_a_service_that_does_not_run_is_current_when_it_ran_last_with_what_is_there(tmp_path: Path) -> None:
    target = tmp_path / "one"

    def found(state: str, text: str = "1") -> dict[str, Any]:
        wire = {**declare(tmp_path, files=[{"path": str(target), "content": text}]).wire, "unit": "x.service"}
        states = {"x.service": {"ActiveState": state, "UnitFileState": "enabled"}}
        return component.inspect(wire, files.DigestCache(), states)

    bring(declare(tmp_path, files=[{"path": str(target), "content": "1"}]))
    assert not found("inactive")["current"], "kubewright has not started it yet"
    record = {"ingredients": {str(target): files.sha256_of(str(target))}}
    files.write_atomic(f"{component.RECORDS}/x.json", json.dumps(record).encode(), 0o600)
    assert found("active")["current"]
    ended = found("activating")
    assert (ended["restart"], ended["current"]) == ("not running (activating)", True)
    assert not found("inactive", "2")["current"]
