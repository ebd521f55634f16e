from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import cli, issue, keys, reconcile, rotation, rules, spec, store, verify
from kubepki.errors import KubepkiError, PrivateKeyError, RotationError, SpecError, StoreError
from kubepki.rotation import ISSUE_FROM_NEW, SETTLED, TRUST_BOTH, State

NOW = datetime.now(UTC)
MEMBERS = ("a", "b", "c")
Data = dict[str, Any]
DATA: Data = {
    "cas": {"etcd": {"cn": "etcd-ca", "consumers": ["backup"]}, "other": {"cn": "other-ca"}},
    "certificates": [
        {
            "name": f"peer-{name}",
            "ca": "etcd",
            "cn": name,
            "profile": "peer",
            "hosts": ["localhost", "127.0.0.1"],
            "consumers": [name],
        }
        for name in MEMBERS
    ]
    + [{"name": "client", "ca": "other", "cn": "client", "profile": "client", "consumers": ["client"]}],
}
SPEC = spec.parse(DATA)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rotation") / "pki"
    reconcile.apply(SPEC, directory, NOW)
    return directory


@pytest.fixture
def pki(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pki"))


def anchors(directory: Path) -> list[x509.Certificate]:
    return issue.load_all((directory / "etcd-ca-bundle.pem").read_bytes(), "bundle")


def certificate(directory: Path, name: str) -> x509.Certificate:
    return issue.load((directory / f"{name}.pem").read_bytes(), name)


def trusted_by_all(directory: Path, wanted: spec.Spec = SPEC) -> State:
    for consumer in ("backup", *MEMBERS):
        found = rotation.confirm(wanted, directory, "etcd", consumer, NOW, trusts=[anchors(directory)])
    return found


def presented_by_all(directory: Path) -> State:
    for name in MEMBERS:
        found = rotation.confirm(SPEC, directory, "etcd", name, NOW, presents=[certificate(directory, f"peer-{name}")])
    return found


def to_trust(directory: Path) -> None:
    rotation.trust(SPEC, directory, "etcd", NOW)


def to_issue(directory: Path) -> None:
    to_trust(directory)
    trusted_by_all(directory)
    rotation.issue(SPEC, directory, "etcd", NOW)


def to_drop(directory: Path) -> None:
    to_issue(directory)
    reconcile.apply(SPEC, directory, NOW)
    presented_by_all(directory)


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --- The way through.


def test_a_rotation(pki: Path) -> None:
    old = certificate(pki, "etcd-ca")
    old_key = (pki / "etcd-ca-key.pem").read_bytes()
    assert rotation.state(SPEC, pki, "etcd").phase == SETTLED

    found = rotation.trust(SPEC, pki, "etcd", NOW)
    new = certificate(pki, "etcd-ca-next")
    assert (found.phase, found.old, found.new, found.next) == (TRUST_BOTH, old, new, "issue")
    assert found.trusted == (old, new)
    assert set(anchors(pki)) == {old, new}
    assert certificate(pki, "etcd-ca") == old
    assert [one.who for one in found.missing] == ["backup", *MEMBERS]
    assert reconcile.plan(SPEC, pki, NOW).issued == ()

    assert trusted_by_all(pki).missing == ()
    found = rotation.issue(SPEC, pki, "etcd", NOW)
    assert (found.phase, found.next) == (ISSUE_FROM_NEW, "drop")
    assert (certificate(pki, "etcd-ca"), certificate(pki, "etcd-ca-previous")) == (new, old)
    assert set(anchors(pki)) == {old, new}
    assert not list(pki.glob("*-next*"))
    assert reconcile.plan(SPEC, pki, NOW).issued == tuple(f"peer-{name}" for name in MEMBERS)

    reconcile.apply(SPEC, pki, NOW)
    assert [one.who for one in rotation.state(SPEC, pki, "etcd").missing] == [*MEMBERS]
    assert presented_by_all(pki).missing == ()
    found = rotation.drop(SPEC, pki, "etcd", NOW)
    assert (found.phase, found.old, found.new, found.next) == (SETTLED, new, None, "trust")
    assert anchors(pki) == [new]
    assert not [*pki.glob("*-previous*"), *pki.glob("*-rotation*")]
    assert reconcile.plan(SPEC, pki, NOW).issued == ()

    retired = pki / "retired"
    assert retired.stat().st_mode & 0o777 == 0o700
    stem = f"etcd-ca-{rotation.fingerprint(old)}"
    assert (retired / f"{stem}-key.pem").read_bytes() == old_key
    assert (retired / f"{stem}-key.pem").stat().st_mode & 0o777 == 0o600
    assert certificate(retired, stem) == old
    history = json.loads((retired / f"{stem}-rotation.json").read_text())
    assert set(history["trust"]) == {"backup", *MEMBERS}
    # The next one begins where this one ended.
    assert rotation.trust(SPEC, pki, "etcd", NOW).phase == TRUST_BOTH


def test_every_step_can_be_taken_twice(pki: Path) -> None:
    for step, then in (
        (rotation.trust, trusted_by_all),
        (rotation.issue, lambda d: (reconcile.apply(SPEC, d, NOW), presented_by_all(d))),
        (rotation.drop, lambda _: None),
    ):
        first = step(SPEC, pki, "etcd", NOW)
        before = content(pki)
        assert step(SPEC, pki, "etcd", NOW) == first
        assert content(pki) == before
        then(pki)
    assert rotation.abort(SPEC, pki, "etcd", NOW).phase == SETTLED


def test_a_bundle_that_lost_a_ca_is_mended_by_the_step_again(pki: Path) -> None:
    for prepare, step in ((to_trust, rotation.trust), (trusted_by_all, rotation.issue)):
        prepare(pki)
        step(SPEC, pki, "etcd", NOW)
        both = anchors(pki)
        (pki / "etcd-ca-bundle.pem").unlink()
        step(SPEC, pki, "etcd", NOW)
        assert set(anchors(pki)) == set(both)


def test_abort_goes_back(pki: Path) -> None:
    old = certificate(pki, "etcd-ca")
    to_trust(pki)
    new = certificate(pki, "etcd-ca-next")
    found = rotation.abort(SPEC, pki, "etcd", NOW)
    assert (found.phase, found.old) == (SETTLED, old)
    assert anchors(pki) == [old]
    assert certificate(pki / "retired", f"etcd-ca-{rotation.fingerprint(new)}") == new
    assert not [*pki.glob("*-next*"), *pki.glob("*-rotation*")]
    # What was shown for one rotation is worth nothing for another.
    to_trust(pki)
    assert len(rotation.state(SPEC, pki, "etcd").missing) == 4


def test_the_rules_have_no_objection_in_any_phase(pki: Path) -> None:
    def found() -> set[str]:
        return {one.rule for one in rules.judge(SPEC, verify.read(SPEC, pki), NOW)}

    to_trust(pki)
    assert found() == set()
    trusted_by_all(pki)
    rotation.issue(SPEC, pki, "etcd", NOW)
    assert found() == {"previous-issuer"}
    reconcile.apply(SPEC, pki, NOW)
    assert found() == set()
    presented_by_all(pki)
    rotation.drop(SPEC, pki, "etcd", NOW)
    assert found() == set()


# --- What is refused.


@pytest.mark.parametrize(
    ("prepare", "step", "message", "hint"),
    [
        (lambda _: None, rotation.issue, "no new CA has been made yet", "rotate trust SPEC etcd"),
        (to_trust, rotation.drop, "its phase is trust-both", "rotate issue SPEC etcd"),
        (to_issue, rotation.trust, "under way already", "rotate drop SPEC etcd"),
        (to_issue, rotation.abort, "no way back", "rotate drop SPEC etcd"),
    ],
)
def test_a_step_out_of_turn_is_refused_with_the_one_whose_turn_it_is(
    prepare: Callable[[Path], None], step: Callable[..., State], message: str, hint: str, pki: Path
) -> None:
    prepare(pki)
    before = content(pki)
    with pytest.raises(RotationError, match=message) as caught:
        step(SPEC, pki, "etcd", NOW)
    assert hint in caught.value.hint
    assert content(pki) == before


def test_issue_waits_for_everybody_at_once(pki: Path) -> None:
    to_trust(pki)
    rotation.confirm(SPEC, pki, "etcd", "b", NOW, trusts=[anchors(pki)])
    with pytest.raises(RotationError) as caught:
        rotation.issue(SPEC, pki, "etcd", NOW, call="pki.yml")
    assert caught.value.waiting == ("backup", "a", "c")
    for name in caught.value.waiting:
        assert f"- {name} has not shown that it trusts both CAs" in caught.value.message
        assert f"kubepki rotate confirm pki.yml etcd {name} --trust FILE" in caught.value.hint
    assert rotation.state(SPEC, pki, "etcd").phase == TRUST_BOTH


def test_drop_waits_for_certificates_and_consumers(pki: Path) -> None:
    to_issue(pki)
    with pytest.raises(RotationError) as caught:
        rotation.drop(SPEC, pki, "etcd", NOW)
    assert caught.value.waiting == ("peer-a", "peer-b", "peer-c", "a", "b", "c")
    assert "kubepki apply SPEC" in caught.value.hint

    reconcile.apply(SPEC, pki, NOW)
    rotation.confirm(SPEC, pki, "etcd", "a", NOW, presents=[certificate(pki, "peer-a")])
    with pytest.raises(RotationError) as caught:
        rotation.drop(SPEC, pki, "etcd", NOW)
    assert caught.value.waiting == ("b", "c")
    assert "kubepki rotate confirm SPEC etcd b --cert FILE" in caught.value.hint


def test_what_was_shown_is_worth_nothing_for_another_certificate(pki: Path) -> None:
    to_drop(pki)
    (pki / "peer-b.pem").unlink()
    reconcile.apply(SPEC, pki, NOW)
    with pytest.raises(
        RotationError, match=r"b has not shown that it has the new peer-b\.pem, but one before it"
    ) as caught:
        rotation.drop(SPEC, pki, "etcd", NOW)
    assert caught.value.waiting == ("b",)


def test_a_consumer_that_came_later_is_waited_for(pki: Path) -> None:
    to_drop(pki)
    data = copy.deepcopy(DATA)
    data["cas"]["etcd"]["consumers"].append("metrics")
    with pytest.raises(RotationError) as caught:
        rotation.drop(spec.parse(data), pki, "etcd", NOW)
    assert caught.value.waiting == ("metrics",)


def test_a_certificate_that_left_the_specification_holds_the_old_ca(pki: Path) -> None:
    to_issue(pki)
    data = copy.deepcopy(DATA)
    del data["certificates"][2]
    wanted = spec.parse(data)
    reconcile.apply(wanted, pki, NOW)
    for name in ("a", "b"):
        rotation.confirm(wanted, pki, "etcd", name, NOW, presents=[certificate(pki, f"peer-{name}")])
    with pytest.raises(RotationError, match=r"peer-c\.pem is issued by the old CA, and not in the specification"):
        rotation.drop(wanted, pki, "etcd", NOW)
    (pki / "peer-c.pem").unlink()
    assert rotation.drop(wanted, pki, "etcd", NOW).phase == SETTLED


def test_a_consumer_without_both_is_told_which_it_lacks(pki: Path) -> None:
    old = certificate(pki, "etcd-ca")
    to_trust(pki)
    new = certificate(pki, "etcd-ca-next")
    for shown, lacking in (([old], "the new CA"), ([new], "the old CA"), ([], "the old CA")):
        with pytest.raises(RotationError, match=f"a does not trust {lacking}"):
            rotation.confirm(SPEC, pki, "etcd", "a", NOW, trusts=[[old, new], shown])
    assert len(rotation.state(SPEC, pki, "etcd").missing) == 4
    more = certificate(pki, "other-ca")
    assert len(rotation.confirm(SPEC, pki, "etcd", "a", NOW, trusts=[[more, new, old]]).missing) == 3


def test_a_consumer_with_its_former_certificate_is_told_so(pki: Path) -> None:
    former = certificate(pki, "peer-a")
    to_issue(pki)
    with pytest.raises(RotationError, match=r"shows peer-a\.pem, which is not issued by the new CA yet"):
        rotation.confirm(SPEC, pki, "etcd", "a", NOW, presents=[former])
    reconcile.apply(SPEC, pki, NOW)
    for shown, message in (
        (former, "CN=a from the old CA .* not what is in the directory for it: peer-a.pem"),
        (certificate(pki, "client"), "CN=client from another CA"),
        (certificate(pki, "peer-b"), "CN=b from the new CA .*: peer-a.pem"),
    ):
        with pytest.raises(RotationError, match=message):
            rotation.confirm(SPEC, pki, "etcd", "a", NOW, presents=[shown])
    with pytest.raises(RotationError, match=r"CN=a from the new CA .*: none"):
        rotation.confirm(SPEC, pki, "etcd", "backup", NOW, presents=[certificate(pki, "peer-a")])


def test_what_cannot_be_confirmed(pki: Path) -> None:
    with pytest.raises(RotationError, match="nothing is being rotated"):
        rotation.confirm(SPEC, pki, "etcd", "a", NOW, trusts=[[]])
    to_trust(pki)
    with pytest.raises(RotationError, match="'bakup' is no consumer") as caught:
        rotation.confirm(SPEC, pki, "etcd", "bakup", NOW, trusts=[anchors(pki)])
    assert caught.value.hint == "did you mean backup?"
    with pytest.raises(RotationError, match="nothing is issued from the new CA yet"):
        rotation.confirm(SPEC, pki, "etcd", "a", NOW, presents=[certificate(pki, "peer-a")])
    with pytest.raises(RotationError, match="nothing is shown"):
        rotation.confirm(SPEC, pki, "etcd", "a", NOW)
    with pytest.raises(RotationError, match="there is no CA 'etd'"):
        rotation.state(SPEC, pki, "etd")


def test_nobody_to_wait_for_is_said(pki: Path) -> None:
    assert rotation.state(SPEC, pki, "etcd").unwatched == ()
    data = copy.deepcopy(DATA)
    del data["certificates"][0]["consumers"]
    assert rotation.state(spec.parse(data), pki, "etcd").unwatched == ("peer-a",)
    del data["cas"]["etcd"]["consumers"], data["certificates"][1]["consumers"], data["certificates"][2]["consumers"]
    assert rotation.state(spec.parse(data), pki, "etcd").unwatched == ("etcd-ca", "peer-a", "peer-b", "peer-c")


def test_kubelets_show_certificates_that_are_in_no_directory(tmp_path: Path) -> None:
    wanted = spec.parse(
        {"cas": {"signer": {"cn": "signer", "role": "kubelet-signer", "consumers": ["kube-apiserver", "kubelet@n1"]}}}
    )
    reconcile.apply(wanted, tmp_path / "pki", NOW)
    pki = tmp_path / "pki"

    def kubelet() -> x509.Certificate:
        ca = certificate(pki, "signer-ca")
        signer = keys.load((pki / "signer-ca-key.pem").read_bytes(), "key")
        leaf = spec.parse(DATA).certificates[0]
        key = keys.generate(leaf.key)
        return issue.sign(issue.for_certificate(leaf, key, ca, NOW), key.public_key(), signer, ca)

    before = kubelet()
    rotation.trust(wanted, pki, "signer", NOW)
    both = issue.load_all((pki / "signer-ca-bundle.pem").read_bytes(), "bundle")
    for consumer in ("kube-apiserver", "kubelet@n1"):
        rotation.confirm(wanted, pki, "signer", consumer, NOW, trusts=[both])
    rotation.issue(wanted, pki, "signer", NOW)
    with pytest.raises(RotationError, match="kubelet@n1 has not shown a certificate from the new CA") as caught:
        rotation.drop(wanted, pki, "signer", NOW)
    assert caught.value.waiting == ("kubelet@n1",)
    with pytest.raises(RotationError, match="from the old CA"):
        rotation.confirm(wanted, pki, "signer", "kubelet@n1", NOW, presents=[kubelet(), before])
    rotation.confirm(wanted, pki, "signer", "kubelet@n1", NOW, presents=[kubelet()])
    assert rotation.drop(wanted, pki, "signer", NOW).phase == SETTLED


# --- CAs that are not as one would wish.


def test_an_expired_ca_whose_key_is_lost_can_be_rotated(pki: Path) -> None:
    late = NOW + timedelta(days=3651)
    (pki / "etcd-ca-key.pem").unlink()
    rotation.trust(SPEC, pki, "etcd", late)
    trusted_by_all(pki)
    rotation.issue(SPEC, pki, "etcd", late)
    data = copy.deepcopy(DATA)
    data["certificates"].pop()
    del data["cas"]["other"]
    reconcile.apply(spec.parse(data), pki, late)
    presented_by_all(pki)
    assert rotation.drop(SPEC, pki, "etcd", late).phase == SETTLED
    assert certificate(pki, "peer-a").not_valid_after_utc > late


def test_an_encrypted_key_stays_encrypted(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy.deepcopy(DATA)
    data["cas"]["etcd"]["password"] = "env:ETCD_CA"
    wanted = spec.parse(data)
    old = (pki / "etcd-ca-key.pem").read_bytes()
    encrypted = keys.pem(keys.load(old, "key"), b"secret")
    (pki / "etcd-ca-key.pem").write_bytes(encrypted)
    before = content(pki)
    with pytest.raises(StoreError, match="ETCD_CA"):
        rotation.trust(wanted, pki, "etcd", NOW)
    assert content(pki) == before

    monkeypatch.setenv("ETCD_CA", "secret")
    rotation.trust(wanted, pki, "etcd", NOW)
    following = (pki / "etcd-ca-next-key.pem").read_bytes()
    assert b"ENCRYPTED" in following
    trusted_by_all(pki, wanted)
    monkeypatch.setenv("ETCD_CA", "wrong")
    with pytest.raises(PrivateKeyError, match="cannot be decrypted") as caught:
        rotation.issue(wanted, pki, "etcd", NOW)
    assert "--old-password" in caught.value.hint
    monkeypatch.setenv("ETCD_CA", "secret")
    rotation.issue(wanted, pki, "etcd", NOW)
    assert (pki / "etcd-ca-key.pem").read_bytes() == following
    assert (pki / "etcd-ca-previous-key.pem").read_bytes() == encrypted
    assert keys.load(following, "key", lambda: b"secret").public_key() == certificate(pki, "etcd-ca").public_key()


def test_a_password_that_was_changed_in_between(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy.deepcopy(DATA)
    data["cas"]["etcd"]["password"] = "env:ETCD_CA"
    wanted = spec.parse(data)
    monkeypatch.setenv("ETCD_CA", "before")
    rotation.trust(wanted, pki, "etcd", NOW)
    trusted_by_all(pki, wanted)
    monkeypatch.setenv("ETCD_CA", "now")
    monkeypatch.setenv("BEFORE", "before")
    path = tmp_path / "pki.yml"
    path.write_text(yaml.safe_dump(data))
    assert cli.main(["rotate", "issue", str(path), "etcd"]) == 1
    assert cli.main(["rotate", "issue", str(path), "etcd", "--old-password", "env:ETCD_CA"]) == 1
    assert rotation.state(wanted, pki, "etcd").phase == TRUST_BOTH
    assert cli.main(["rotate", "issue", str(path), "etcd", "--old-password", "env:BEFORE"]) == 0
    capsys.readouterr()
    key = (pki / "etcd-ca-key.pem").read_bytes()
    assert keys.load(key, "key", lambda: b"now").public_key() == certificate(pki, "etcd-ca").public_key()
    reconcile.apply(wanted, pki, NOW)
    presented_by_all(pki)
    assert rotation.drop(wanted, pki, "etcd", NOW).phase == SETTLED


def bring(directory: Path, cn: str = "brought", *, life: timedelta = timedelta(days=9), key: Any = None) -> None:
    authority = spec.parse({"cas": {"x": {"cn": cn}}}).authorities["x"]
    key = key or keys.generate(authority.key)
    begin = NOW - timedelta(days=3)
    template = issue.for_authority(authority, begin)
    made = issue.sign(template._replace(not_after=begin + life), key.public_key(), key)
    store.write(directory / "etcd-ca-next.pem", made.public_bytes(Encoding.PEM), 0o644)
    store.write(directory / "etcd-ca-next-key.pem", keys.pem(key), 0o600)


def test_a_ca_that_somebody_brings_is_taken(pki: Path) -> None:
    bring(pki)
    assert rotation.state(SPEC, pki, "etcd").phase == SETTLED
    found = rotation.trust(SPEC, pki, "etcd", NOW)
    assert found.new
    assert found.new.subject.rfc4514_string() == "CN=brought"


def test_a_key_that_somebody_brings_becomes_its_owners_alone(pki: Path) -> None:
    bring(pki)
    key = pki / "etcd-ca-next-key.pem"
    key.chmod(0o644)
    rotation.trust(SPEC, pki, "etcd", NOW)
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_key_that_was_brought_before_its_certificate_is_kept(pki: Path) -> None:
    bring(pki)
    brought = (pki / "etcd-ca-next-key.pem").read_bytes()
    (pki / "etcd-ca-next.pem").unlink()
    before = content(pki)
    with pytest.raises(StoreError, match=r"next-key\.pem is there, but not its certificate etcd-ca-next\.pem"):
        rotation.trust(SPEC, pki, "etcd", NOW)
    assert content(pki) == before
    # In an interrupted beginning it may be ours or not: going back keeps it.
    record = {"version": 1, "phase": "settled", "doing": "trust", "begun": NOW.isoformat()}
    record["old"] = rotation.fingerprint(certificate(pki, "etcd-ca"))
    (pki / "etcd-ca-rotation.json").write_text(json.dumps(record))
    rotation.abort(SPEC, pki, "etcd", NOW)
    assert [path.read_bytes() for path in (pki / "retired").glob("*-key.pem")] == [brought]


def test_nothing_in_retired_is_replaced(pki: Path) -> None:
    known = set()
    for _ in range(3):
        to_trust(pki)
        stem = f"etcd-ca-{rotation.fingerprint(certificate(pki, 'etcd-ca-next'))}"
        (pki / "retired").mkdir(exist_ok=True)
        for end in ("-key.pem", ".pem", "-rotation.json"):
            known.add((pki / "retired" / f"{stem}{end}", end))
            (pki / "retired" / f"{stem}{end}").write_text("another's")
        rotation.abort(SPEC, pki, "etcd", NOW)
        for end in ("-2-key.pem", "-2.pem", "-2-rotation.json"):
            assert (pki / "retired" / f"{stem}{end}").stat().st_size > 20
    assert all(path.read_text() == "another's" for path, _ in known)


def test_a_pipe_stops_nobody(pki: Path) -> None:
    for name, step in (("etcd-ca-next.pem", rotation.trust), ("etcd-ca-bundle.pem", rotation.trust)):
        path = pki / name
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        if name.endswith("next.pem"):
            os.mkfifo(pki / "etcd-ca-next-key.pem")
        with pytest.raises(StoreError, match="is no ordinary file"):
            step(SPEC, pki, "etcd", NOW)
        for one in (path, pki / "etcd-ca-next-key.pem"):
            if one.is_fifo():
                one.unlink()
        if before:
            path.write_bytes(before)
    to_drop(pki)
    os.mkfifo(pki / "stray.pem")
    assert rotation.drop(SPEC, pki, "etcd", NOW).phase == SETTLED


def test_a_ca_that_cannot_take_over_is_refused_before_anything_is_written(pki: Path) -> None:
    own = keys.load((pki / "etcd-ca-key.pem").read_bytes(), "key")
    before = content(pki)
    for breach, message in (
        (lambda: bring(pki, life=timedelta(days=2)), "expired on"),
        (lambda: bring(pki, key=own), "a rotation needs a new key"),
        (lambda: (bring(pki), (pki / "etcd-ca-next-key.pem").unlink()), "next-key.pem is missing"),
        (lambda: (bring(pki), shutil.copy(pki / "other-ca-key.pem", pki / "etcd-ca-next-key.pem")), "is not the key"),
        (lambda: (bring(pki), shutil.copy(pki / "peer-a.pem", pki / "etcd-ca-next.pem")), "is no CA"),
        (lambda: (bring(pki), (pki / "etcd-ca-next.pem").write_text("x")), "holds no certificate"),
    ):
        breach()
        with pytest.raises(KubepkiError, match=message):
            rotation.trust(SPEC, pki, "etcd", NOW)
        for path in pki.glob("etcd-ca-next*"):
            path.unlink()
        assert content(pki) == before


def test_other_anchors_in_the_bundle_stay(pki: Path) -> None:
    root = certificate(pki, "other-ca")
    (pki / "etcd-ca-bundle.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in (certificate(pki, "etcd-ca"), root))
    )
    to_drop(pki)
    assert len(anchors(pki)) == 3
    rotation.drop(SPEC, pki, "etcd", NOW)
    assert anchors(pki) == [certificate(pki, "etcd-ca"), root]


def test_a_ca_that_was_exchanged_behind_our_back_is_noticed(pki: Path) -> None:
    to_trust(pki)
    shutil.copy(pki / "other-ca.pem", pki / "etcd-ca.pem")
    with pytest.raises(StoreError, match="is not the CA that the rotation of etcd began with"):
        rotation.state(SPEC, pki, "etcd")


def test_a_lost_record_costs_the_confirmations_and_no_more(pki: Path) -> None:
    to_drop(pki)
    (pki / "etcd-ca-rotation.json").unlink()
    found = rotation.state(SPEC, pki, "etcd")
    assert (found.phase, len(found.missing)) == (ISSUE_FROM_NEW, 7)
    trusted_by_all(pki)
    assert presented_by_all(pki).missing == ()
    assert rotation.drop(SPEC, pki, "etcd", NOW).phase == SETTLED


def test_a_lost_record_before_the_new_ca_issues(pki: Path) -> None:
    to_trust(pki)
    (pki / "etcd-ca-rotation.json").unlink()
    found = rotation.state(SPEC, pki, "etcd")
    assert (found.phase, found.new, len(found.missing)) == (TRUST_BOTH, certificate(pki, "etcd-ca-next"), 4)
    with pytest.raises(RotationError, match="has to wait"):
        rotation.issue(SPEC, pki, "etcd", NOW)
    trusted_by_all(pki)
    assert rotation.issue(SPEC, pki, "etcd", NOW).phase == ISSUE_FROM_NEW


GOOD = '{"version": 1, "phase": "trust-both", "doing": "", "old": "a", "new": "b"'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "phase": "x", "doing": "", "old": ""}',
        '{"version": 1, "phase": "trust-both", "doing": "", "old": "a"}',
        f'{GOOD}, "trust": [1]}}',
        f'{GOOD}, "trust": {{"etcd": 5}}}}',
        f'{GOOD}, "trust": {{"etcd": {{"anchors": "ab"}}}}}}',
        f'{GOOD}, "trust": {{"etcd": {{"anchors": [1]}}}}}}',
        f'{GOOD}, "shown": {{"etcd": 5}}}}',
        f'{GOOD}, "shown": {{"etcd": {{"a": 5}}}}}}',
        f'{GOOD}, "shown": {{"etcd": {{"a": {{"fingerprint": 1}}}}}}}}',
        f'{GOOD}, "begun": "yesterday"}}',
        f'{GOOD}, "begun": 5}}',
        "[" * 100_000,
        '{"version": 1, "phase": ' + "[" * 100_000,
    ],
)
def test_a_damaged_record_is_a_message(text: str, pki: Path) -> None:
    to_trust(pki)
    (pki / "etcd-ca-rotation.json").write_text(text)
    with pytest.raises(StoreError, match=r"rotation\.json is damaged"):
        rotation.state(SPEC, pki, "etcd")


def test_no_certificate_takes_the_place_of_a_ca_to_come() -> None:
    data = copy.deepcopy(DATA)
    data["certificates"][0]["name"] = "etcd-ca-next"
    with pytest.raises(SpecError, match=r"etcd-ca-next\.pem is that of ca 'etcd' as well"):
        spec.parse(data)


def test_there_is_nothing_to_rotate_where_nothing_was_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such directory"):
        rotation.trust(SPEC, tmp_path / "pki", "etcd", NOW)
    (tmp_path / "pki").mkdir()
    with pytest.raises(StoreError, match=r"etcd-ca\.pem is missing"):
        rotation.trust(SPEC, tmp_path / "pki", "etcd", NOW)


# --- Killed at any moment.

STEPS: dict[str, tuple[Callable[[Path], Any], Callable[..., State], str]] = {
    "trust": (lambda _: None, rotation.trust, TRUST_BOTH),
    "issue": (lambda d: (to_trust(d), trusted_by_all(d)), rotation.issue, ISSUE_FROM_NEW),
    "drop": (to_drop, rotation.drop, SETTLED),
    "abort": (to_trust, rotation.abort, SETTLED),
}
CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.chmod")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disturbed(action: Callable[[], object], number: int, what: Callable[[], None]) -> bool:
    """Run it in a process where `what` happens before its change `number` of the file system; whether it did."""
    child = os.fork()
    if child == 0:
        left = number

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writing = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writing or event in CHANGING:
                left -= 1
                if left == -1:
                    what()

        code = 1
        with contextlib.suppress(BaseException):
            sys.addaudithook(hook)
            try:
                action()
                # Some changes are not missed: a directory that is there need not be made.
                code = 0 if left >= 0 else 3
            except StoreError as error:
                code = 3 if "No space left" in error.message else 4
        os._exit(code)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) in (0, 3)
    return killed or os.WEXITSTATUS(status) == 3


@pytest.mark.parametrize("what", [die, fill])
@pytest.mark.parametrize("name", list(STEPS))
def test_a_step_that_ended_anywhere_is_finished_by_taking_it_again(
    name: str, what: Callable[[], None], made: Path, tmp_path: Path
) -> None:
    prepare, step, phase = STEPS[name]
    start = Path(shutil.copytree(made, tmp_path / "start"))
    prepare(start)
    before = rotation.state(SPEC, start, "etcd")
    number = between = 0
    while True:
        pki = Path(shutil.copytree(start, tmp_path / str(number)))
        known = every_key(pki)
        if not disturbed(lambda pki=pki: step(SPEC, pki, "etcd", NOW), number, what):
            break
        found = rotation.state(SPEC, pki, "etcd")
        assert found.phase == phase or found.unfinished == name or found == before, number
        # Nobody who fetches the bundle now loses what it needs, and no key is lost or open.
        if name != "abort":
            assert found.old in anchors(pki) or (name == "drop" and found.unfinished)
        assert known <= every_key(pki)
        if not issue.matches(keys.load((pki / "etcd-ca-key.pem").read_bytes(), "key"), certificate(pki, "etcd-ca")):
            between += 1
            with pytest.raises(StoreError, match="is not the key") as caught:
                reconcile.apply(SPEC, pki, NOW)
            assert "rotate issue SPEC etcd was interrupted" in caught.value.hint
        for other, (_, another, _) in STEPS.items():
            if found.unfinished and other != name and (other, name) != ("abort", "trust"):
                with pytest.raises(RotationError, match=f"a run of '{name}' was interrupted"):
                    another(SPEC, pki, "etcd", NOW)
        assert step(SPEC, pki, "etcd", NOW).phase == phase
        assert known <= every_key(pki)
        assert ends_well(pki)
        number += 1
    assert number > 8
    assert (between > 0) == (name == "issue" and what is die)


def every_key(directory: Path) -> set[bytes]:
    found = set()
    for path in directory.rglob("*-key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
        found.add(path.read_bytes())
    return found


def ends_well(directory: Path) -> bool:
    """From wherever it is, the rotation comes to its end, and all is in order."""
    phase = rotation.state(SPEC, directory, "etcd").phase
    if phase == TRUST_BOTH:
        trusted_by_all(directory)
        rotation.issue(SPEC, directory, "etcd", NOW)
    reconcile.apply(SPEC, directory, NOW)
    if phase != SETTLED:
        trusted_by_all(directory)
        presented_by_all(directory)
        rotation.drop(SPEC, directory, "etcd", NOW)
    return rules.judge(SPEC, verify.read(SPEC, directory), NOW) == []


def test_an_interrupted_beginning_can_be_taken_back_as_well(pki: Path, made: Path, tmp_path: Path) -> None:
    for number in range(9):
        pki = Path(shutil.copytree(made, tmp_path / f"back{number}"))
        assert disturbed(lambda pki=pki: rotation.trust(SPEC, pki, "etcd", NOW), number, die)
        assert rotation.abort(SPEC, pki, "etcd", NOW).phase == SETTLED
        assert not list(pki.glob("*-next*"))
        assert ends_well(pki)


def test_two_runs_at_once(pki: Path) -> None:
    with store.locked(pki), pytest.raises(StoreError, match="another run"):
        rotation.trust(SPEC, pki, "etcd", NOW)


# --- Real verifiers: OpenSSL, and TLS between consumers.


def test_openssl_takes_every_chain_with_both_cas_of_the_same_name(pki: Path, tmp_path: Path) -> None:
    former = Path(shutil.copy(pki / "peer-a.pem", tmp_path / "former.pem"))
    alone = Path(shutil.copy(pki / "etcd-ca.pem", tmp_path / "old.pem"))
    to_drop(pki)
    assert certificate(pki, "etcd-ca").subject == certificate(pki, "etcd-ca-previous").subject

    def verifies(bundle: Path, leaf: Path) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(bundle), str(leaf)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    both = pki / "etcd-ca-bundle.pem"
    turned = tmp_path / "turned.pem"
    turned.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in reversed(anchors(pki))))
    for bundle in (both, turned):
        assert verifies(bundle, former)
        assert verifies(bundle, pki / "peer-a.pem")
    assert verifies(alone, former)
    assert not verifies(alone, pki / "peer-a.pem")
    assert verifies(pki / "etcd-ca.pem", pki / "peer-a.pem")
    assert not verifies(pki / "etcd-ca.pem", former)


class Kit:
    """What a consumer has: trust anchors, and a pair."""

    def __init__(self, bundle: Path, pair: Path) -> None:
        self.server = self._context(ssl.PROTOCOL_TLS_SERVER, bundle, pair)
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT, bundle, pair)

    @staticmethod
    def _context(protocol: int, bundle: Path, pair: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.load_verify_locations(bundle)
        context.load_cert_chain(f"{pair}.pem", f"{pair}-key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context


def refused(client: Kit, server: Kit) -> str:
    """Why one of two, each with a certificate, does not take the other's; empty when both do."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.client.wrap_bio(down, up, server_hostname="localhost"),
        server.server.wrap_bio(up, down, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake() if not done[number] else end.read(1)
                done[number] = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                return str(error)
    assert all(done)
    return ""


def test_whoever_has_changed_over_gets_on_with_whoever_has_not(pki: Path, tmp_path: Path) -> None:
    """Two consumers meet in every combination of the states that a phase allows: so any order of changing is good."""
    before = Path(shutil.copytree(pki, tmp_path / "before"))
    to_drop(pki)
    both, old, new = pki / "etcd-ca-bundle.pem", before / "etcd-ca.pem", pki / "etcd-ca.pem"
    phases = {
        TRUST_BOTH: [Kit(old, before / "peer-a"), Kit(both, before / "peer-a")],
        ISSUE_FROM_NEW: [Kit(both, before / "peer-b"), Kit(both, pki / "peer-b")],
        SETTLED: [Kit(both, pki / "peer-c"), Kit(new, pki / "peer-c")],
    }
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for kits in phases.values():
            for kit in kits:
                kit.client.maximum_version = version
                kit.client.minimum_version = version
            assert [refused(one, other) for one in kits for other in kits] == ["", "", "", ""]
    # What the phases are for: without the first, and with the last too early, it would go wrong.
    assert refused(phases[TRUST_BOTH][0], phases[ISSUE_FROM_NEW][1])
    assert refused(phases[ISSUE_FROM_NEW][0], phases[SETTLED][1])


class Member:
    """A consumer that serves and calls, both with a certificate; `reload` is what a restart does to a real one."""

    def __init__(self, name: str, directory: Path, home: Path) -> None:
        self.name = name
        self.source = directory
        self.home = home
        home.mkdir()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.fetch_bundle()
        self.fetch_pair()
        self.kit = self.load()
        threading.Thread(target=self.serve, daemon=True).start()

    def fetch_bundle(self) -> None:
        shutil.copy(self.source / "etcd-ca-bundle.pem", self.home / "ca.pem")

    def fetch_pair(self) -> None:
        for end in (".pem", "-key.pem"):
            shutil.copy(self.source / f"peer-{self.name}{end}", self.home / f"pair{end}")

    def load(self) -> Kit:
        self.kit = Kit(self.home / "ca.pem", self.home / "pair")
        return self.kit

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self.kit.server.wrap_socket(connection, server_side=True) as stream:
            stream.sendall(stream.recv(4))

    def call(self, other: Member) -> None:
        """OSError when one of the two is refused."""
        with (
            socket.create_connection(("127.0.0.1", other.port), timeout=5) as connection,
            self.kit.client.wrap_socket(connection, server_hostname="localhost") as stream,
        ):
            stream.sendall(b"ping")
            if stream.recv(4) != b"ping":
                raise ConnectionError("no answer")


@contextlib.contextmanager
def calling(members: list[Member], failures: list[str], count: list[int]) -> Iterator[None]:
    """Everybody calls everybody all the time."""
    over = threading.Event()

    def calls() -> None:
        for one, other in itertools.cycle(itertools.product(members, members)):
            if over.is_set():
                return
            try:
                one.call(other)
                count[0] += 1
            except OSError as error:
                failures.append(f"{one.name} to {other.name}: {error}")

    thread = threading.Thread(target=calls)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def rotate(path: Path, *arguments: str) -> int:
    return cli.main(["rotate", arguments[0], str(path), *arguments[1:]])


def test_a_whole_rotation_with_servers_that_are_called_all_the_time(
    pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pki.yml"
    path.write_text(yaml.safe_dump(DATA))
    members = [Member(name, pki, tmp_path / name) for name in MEMBERS]
    failures: list[str] = []
    count = [0]

    def one_by_one(change: Callable[[Member], object]) -> None:
        for member in random.sample(members, len(members)):
            change(member)
            before = count[0]
            deadline = time.monotonic() + 10
            while count[0] < before + 20 and not failures and time.monotonic() < deadline:
                time.sleep(0.005)

    def trusts(member: Member) -> None:
        member.fetch_bundle()
        member.load()
        assert rotate(path, "confirm", "etcd", member.name, "--trust", str(member.home / "ca.pem")) == 0

    def presents(member: Member) -> None:
        member.fetch_pair()
        member.load()
        assert rotate(path, "confirm", "etcd", member.name, "--connect", f"localhost:{member.port}") == 0

    with calling(members, failures, count):
        assert rotate(path, "trust", "etcd") == 0
        assert rotate(path, "confirm", "etcd", "a", "--trust", str(members[0].home / "ca.pem")) == 1
        assert rotate(path, "issue", "etcd") == 1
        one_by_one(trusts)
        assert rotate(path, "issue", "etcd") == 1
        assert rotate(path, "confirm", "etcd", "backup", "--trust", str(pki / "etcd-ca-bundle.pem")) == 0
        assert rotate(path, "issue", "etcd") == 0
        reconcile.apply(SPEC, pki, datetime.now(UTC))
        assert rotate(path, "confirm", "etcd", "b", "--connect", f"localhost:{members[1].port}") == 1
        one_by_one(presents)
        assert rotate(path, "drop", "etcd") == 0
        one_by_one(lambda member: (member.fetch_bundle(), member.load()))
    for member in members:
        member.listener.close()
    assert failures == []
    assert count[0] >= 9 * 20
    said = capsys.readouterr()
    assert "backup has not shown that it trusts both CAs" in said.err
    assert "b shows CN=b from the old CA" in said.err
    assert (members[0].home / "ca.pem").read_bytes() == (pki / "etcd-ca.pem").read_bytes()


# --- The command.


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["rotate", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_status_says_what_comes_next(pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pki.yml"
    path.write_text(yaml.safe_dump(DATA))
    code, out, _ = run(capsys, "status", str(path))
    assert code == 0
    assert "etcd: settled\n  CA: CN=etcd-ca, serial " in out
    assert f"  to rotate: kubepki rotate trust {path} other\n" in out

    code, out, _ = run(capsys, "trust", str(path), "etcd", "-C", str(pki))
    assert code == 0
    confirm = f"kubepki rotate confirm {path} -C {pki} etcd backup --trust FILE"
    assert f"waits for backup, which has not shown that it trusts both CAs\n    {confirm}\n" in out
    assert f"then: kubepki rotate issue {path} -C {pki} etcd\n" in out
    assert f"Hand {pki}/etcd-ca-bundle.pem to every consumer" in out

    code, out, _ = run(capsys, "status", str(path), "etcd", "--json")
    (found,) = json.loads(out)
    assert (found["phase"], found["next"], len(found["missing"]), len(found["trusted"])) == (
        "trust-both",
        "issue",
        4,
        2,
    )
    assert found["new"]["subject"] == "CN=etcd-ca"


def test_evidence_comes_from_standard_input_as_well(
    pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pki.yml"
    path.write_text(yaml.safe_dump(DATA))
    to_trust(pki)
    with (pki / "etcd-ca-bundle.pem").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        code, out, _ = run(capsys, "confirm", str(path), "etcd", "a", "--trust", "-")
    assert (code, out.splitlines()[0]) == (0, "a is confirmed.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: STEP"),
        (["turn"], "invalid choice: 'turn'"),
        (["trust", "pki.yml"], "required: CA"),
        (["trust", "pki.yml", "etdc"], "did you mean etcd?"),
        (["confirm", "pki.yml", "etcd", "a", "--trust", "nowhere.pem"], "nowhere.pem: No such file"),
        (["confirm", "pki.yml", "etcd", "a", "--trust", "pki.yml"], "holds no certificate"),
        (["confirm", "pki.yml", "etcd", "a", "--connect", "localhost"], "it must be HOST:PORT"),
        (["confirm", "pki.yml", "etcd", "a", "--connect", "127.0.0.1:1"], "Connection refused"),
        (["status", "nothing.yml"], "nothing.yml: No such file"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    message: str,
    pki: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pki.yml").write_text(yaml.safe_dump(DATA))
    to_issue(pki)
    before = content(pki)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert content(pki) == before
