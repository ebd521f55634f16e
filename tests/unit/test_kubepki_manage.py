"""`kubepki plan` and `apply`: for which reasons what happens, and what files are like afterwards."""

from __future__ import annotations

import argparse
import base64
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import arguments, cli, issue, keys, reconcile, spec, store
from kubepki.errors import StoreError

NOW = datetime.now(UTC)
Data = dict[str, Any]
DATA: Data = {
    "profiles": {"both": {"usages": ["signing", "server auth", "client auth"], "expiry": "1000h"}},
    "cas": {
        "etcd": {"cn": "etcd-ca", "consumers": ["etcd", "flanneld"]},
        "kube": {"cn": "kube-ca", "consumers": ["kube-apiserver"]},
    },
    "keypairs": {"sa": {"algo": "ecdsa"}},
    "certificates": [
        {"name": "s", "ca": "etcd", "cn": "m1", "profile": "both", "hosts": ["m1", "10.0.0.1"], "consumers": ["etcd"]},
        {"name": "c", "path": "nodes/n1/c", "ca": "kube", "cn": "c", "profile": "client", "consumers": ["kubelet"]},
    ],
}


def changed(change: Callable[[Data], Any]) -> Data:
    data = copy.deepcopy(DATA)
    change(data)
    return data


def leaf(index: int, **fields: Any) -> Data:
    return changed(lambda data: data["certificates"][index].update(fields))


def apply(directory: Path, data: Data = DATA, now: datetime = NOW, **words: str) -> reconcile.Plan:
    return reconcile.apply(spec.parse(data), directory, now, **words)


def plan(directory: Path, data: Data = DATA, now: datetime = NOW, **words: str) -> reconcile.Plan:
    return reconcile.plan(spec.parse(data), directory, now, **words)


def said(found: reconcile.Plan) -> dict[str, str]:
    return {i.name: f"{i.action}: {'; '.join(i.reasons)}" for i in found.items if i.action != "keep"}


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    apply(tmp_path / "pki")
    return tmp_path / "pki"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def whole(directory: Path, data: Data = DATA) -> None:
    """OpenSSL's word that each key is its certificate's, and each certificate its CA's."""
    for one in data["certificates"]:
        path = directory / one.get("path", one["name"])
        public = [
            subprocess.run(["openssl", *command], capture_output=True, check=True).stdout
            for command in (
                ["x509", "-noout", "-pubkey", "-in", f"{path}.pem"],
                ["pkey", "-pubout", "-in", f"{path}-key.pem"],
            )
        ]
        assert public[0] == public[1]
        bundle = f"{directory}/{one['ca']}-ca-bundle.pem"
        subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", bundle, f"{path}.pem"], check=True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (leaf(0, hosts=["m1", "10.0.0.1", "b", "a"]), {"s": "issue: SAN b, a added"}),
        (leaf(0, hosts=["m1"]), {"s": "issue: SAN 10.0.0.1 removed"}),
        (leaf(0, hosts=["m2", "10.0.0.1"]), {"s": "issue: SAN m2 added; SAN m1 removed"}),
        (leaf(0, cn="m2"), {"s": "issue: subject was CN=m1"}),
        (leaf(0, o=["x"]), {"s": "issue: subject was CN=m1"}),
        (leaf(0, ca="kube"), {"s": "issue: issuer changed"}),
        (leaf(0, key={"algo": "ed25519"}), {"s": "issue: key is ecdsa 256, wanted ed25519"}),
        (leaf(0, profile="server"), {"s": "issue: usage client auth removed"}),
        (leaf(1, profile="both", hosts=["c"]), {"c": "issue: SAN c added; usage server auth added"}),
        (
            changed(lambda data: data["profiles"]["both"]["usages"].append("key agreement")),
            {"s": "issue: key usage key agreement added"},
        ),
        (
            changed(
                lambda data: data["profiles"]["both"].update(usages=["server auth", "client auth", "code signing"])
            ),
            {"s": "issue: usage code signing added; key usage digital signature removed"},
        ),
        # Lengths of life and consumers are no reason: they count from the next issue on.
        (leaf(0, expiry="99h", consumers=[]), {}),
        (leaf(0, mode="0640"), {"s": "repair: s-key.pem has mode 0600, wanted 0640"}),
    ],
)
def test_what_the_specification_changes(pki: Path, data: Data, expected: dict[str, str]) -> None:
    before = contents(pki)
    assert said(plan(pki, data)) == expected
    assert contents(pki) == before
    assert said(apply(pki, data)) == expected
    assert said(plan(pki, data)) == {}


def test_only_the_third_at_the_end_is_late(pki: Path) -> None:
    at = {hours: said(plan(pki, now=NOW + timedelta(hours=hours))) for hours in (0, 666, 667, 1001)}
    assert at[0] == at[666] == {}
    assert re.fullmatch(r"issue: expires on [\d-]{10}, within the last third of its life", at[667]["s"])
    assert re.fullmatch(r"issue: expired on [\d-]{10}", at[1001]["s"])
    assert said(plan(pki, now=NOW - timedelta(minutes=3))) == {}


def test_what_would_not_live_longer_is_not_made_anew(tmp_path: Path) -> None:
    data = changed(lambda data: data["cas"]["etcd"].update(expiry="900h"))
    apply(tmp_path, data)
    late = plan(tmp_path, data, NOW + timedelta(hours=800))
    assert "s" not in said(late)
    assert any("plan a rotation of this CA" in warning for warning in late.warnings)


def test_a_clock_before_the_ca(pki: Path) -> None:
    before = contents(pki)
    with pytest.raises(StoreError, match=r"is valid from .* UTC, and the clock here says") as caught:
        apply(pki, now=NOW - timedelta(hours=1))
    assert caught.value.hint == "set the clock of this machine"
    assert contents(pki) == before


def damage(pki: Path, name: str, content: bytes | None) -> None:
    (pki / name).unlink()
    if content is not None:
        (pki / name).write_bytes(content)
        (pki / name).chmod(0o600 if "key" in name else 0o644)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("s.pem", None, "missing"),
        ("s-key.pem", None, "key missing"),
        ("s.pem", b"", "damaged: "),
        ("s.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "damaged: "),
        ("s-key.pem", b"garbage", "s-key.pem holds no private key in PEM"),
        ("s-key.pem", keys.pem(keys.generate(spec.Key())), "key does not match"),
        ("s-key.pem", keys.pem(keys.generate(spec.Key()), b"x"), "s-key.pem is encrypted"),
    ],
)
def test_what_is_damaged_is_made_anew(pki: Path, name: str, content: bytes | None, reason: str) -> None:
    damage(pki, name, content)
    assert said(plan(pki))["s"].startswith(f"issue: {reason}")
    apply(pki)
    assert said(plan(pki)) == {}
    whole(pki)


def foreign(pki: Path, *, names: list[x509.GeneralName], is_ca: bool = False, begin: datetime = NOW) -> None:
    """In the place of `s` one that our CA has signed, and we would never have."""
    ca, key = store.read_certificate(pki / "etcd-ca.pem"), store.read_key(pki / "etcd-ca-key.pem")
    own = store.read_key(pki / "s-key.pem")
    assert ca
    assert key
    assert own
    wanted = issue.for_certificate(spec.parse(DATA).certificates[0], own, ca, NOW)
    builder = x509.CertificateBuilder(ca.subject, wanted.subject, own.public_key(), 7, begin, NOW + timedelta(days=99))
    for value in (
        x509.SubjectAlternativeName(names),
        x509.ExtendedKeyUsage([x509.ObjectIdentifier(one) for one in wanted.extended_usages]),
        issue.key_usage(wanted.key_usages),
        x509.BasicConstraints(is_ca, None),
    ):
        builder = builder.add_extension(value, critical=False)
    store.write(pki / "s.pem", builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644)


def test_what_others_have_made_with_the_ca(pki: Path) -> None:
    m1, address = x509.DNSName("m1"), x509.IPAddress(spec.names.parse("10.0.0.1").address)
    foreign(pki, names=[address, m1])
    assert said(plan(pki)) == {}
    foreign(pki, names=[m1, x509.DNSName("10.0.0.1")])
    assert said(plan(pki)) == {"s": "issue: SAN 10.0.0.1 is a DNS name, not an address"}
    foreign(pki, names=[m1, address], is_ca=True)
    assert said(plan(pki)) == {"s": "issue: it is a CA"}
    foreign(pki, names=[m1, address], begin=NOW + timedelta(hours=1))
    assert said(plan(pki))["s"].startswith("issue: is not valid before")


def odd(which: str, key: keys.PrivateKey) -> bytes:
    """A certificate that cryptography reads only when asked for what is odd, and then refuses."""
    name = issue.subject("m1", ())
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW, NOW + timedelta(days=9))
    for number in (1, 2):
        odd_one = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{number}"), b"\x05\x00")
        made = made.add_extension(odd_one, critical=False)
    if which == "x400":
        made = made.add_extension(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"0\x02\xa3\x00"), False)
    der = made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    swaps = {
        "repeated extension": (b"\x06\x03\x2a\x03\x02", b"\x06\x03\x2a\x03\x01"),
        "version 8": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"),
        # prime256v1, ecPublicKey: to numbers beside them.
        "curve": (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f")),
        "kind of key": (bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d027f")),
        "x400": (b"", b""),
    }
    old, new = swaps[which]
    assert old in der
    text = base64.encodebytes(der.replace(old, new))
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("which", ["repeated extension", "version 8", "curve", "kind of key", "x400"])
def test_what_is_read_late_is_damage_too(pki: Path, which: str) -> None:
    key = store.read_key(pki / "s-key.pem")
    assert key
    damage(pki, "s.pem", odd(which, key))
    assert said(plan(pki))["s"].startswith("issue: damaged: ")
    with pytest.raises(ValueError, match="is damaged"):
        store.read_certificate(pki / "s.pem")
    damage(pki, "etcd-ca-bundle.pem", odd(which, key))
    assert said(apply(pki))["etcd-ca"] == "repair: etcd-ca-bundle.pem damaged"
    whole(pki)


def test_a_lost_certificate_of_a_ca_is_made_anew_for_its_key(pki: Path) -> None:
    key = (pki / "etcd-ca-key.pem").read_bytes()
    damage(pki, "etcd-ca.pem", None)
    damage(pki, "etcd-ca-bundle.pem", None)
    assert said(apply(pki)) == {
        "etcd-ca": "issue: certificate missing, its key is there",
        "s": "issue: issuer changed",
    }
    assert (pki / "etcd-ca-key.pem").read_bytes() == key
    assert said(plan(pki)) == {}
    whole(pki)


def test_a_lost_certificate_of_a_ca_is_in_its_bundle(pki: Path) -> None:
    before = contents(pki)
    damage(pki, "etcd-ca.pem", None)
    bundle = (pki / "etcd-ca-bundle.pem").read_bytes()
    store.write(pki / "etcd-ca-bundle.pem", (pki / "kube-ca.pem").read_bytes() + bundle, 0o644)
    found = apply(pki)
    assert said(found) == {"etcd-ca": "repair: etcd-ca.pem missing, but in the bundle"}
    assert found.files == ("etcd-ca.pem",)
    assert (pki / "etcd-ca.pem").read_bytes() == before["etcd-ca.pem"]
    assert said(plan(pki)) == {}
    whole(pki)


@pytest.mark.parametrize("trace", ["etcd-ca-rotation.json", "etcd-ca-next.pem", "etcd-ca-previous.pem"])
@pytest.mark.parametrize("lost", [["etcd-ca.pem", "etcd-ca-key.pem"], ["etcd-ca.pem", "etcd-ca-bundle.pem"]])
def test_a_ca_that_is_lost_while_it_is_rotated_is_not_made(pki: Path, trace: str, lost: list[str]) -> None:
    store.write(pki / trace, (pki / "kube-ca.pem").read_bytes(), 0o600)
    for name in lost:
        damage(pki, name, None)
    before = contents(pki)
    with pytest.raises(StoreError, match=f"etcd-ca.pem is missing, and its rotation is under way: {trace}") as caught:
        apply(pki)
    assert "backup" in caught.value.hint
    assert contents(pki) == before


def test_an_intermediate_ca_is_no_trust_anchor(pki: Path) -> None:
    root, key = store.read_certificate(pki / "kube-ca.pem"), keys.generate(spec.Key())
    signer = store.read_key(pki / "kube-ca-key.pem")
    assert root
    assert signer
    template = issue.for_authority(spec.parse(DATA).authorities["etcd"], NOW)
    made = issue.sign(template, key.public_key(), signer, root)
    store.write(pki / "etcd-ca.pem", made.public_bytes(Encoding.PEM), 0o644)
    store.write(pki / "etcd-ca-key.pem", keys.pem(key), 0o600)
    with pytest.raises(StoreError, match=r"\(CN=etcd-ca\) is an intermediate CA, issued by CN=kube-ca") as caught:
        plan(pki)
    assert "Put a self-signed CA and its key there" in caught.value.hint


def test_a_lost_key_of_a_pair_is_not_made_anew(pki: Path) -> None:
    damage(pki, "sa.key", None)
    before = contents(pki)
    for step in (plan, apply):
        with pytest.raises(StoreError, match=r"sa\.key is missing, but sa\.pub exists") as caught:
            step(pki)
        assert "restore it from a backup, or move sa.pub away" in caught.value.hint
    assert contents(pki) == before
    damage(pki, "sa.pub", None)
    assert said(apply(pki)) == {"sa": "issue: missing"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("etcd-ca-key.pem", None, "etcd-ca-key.pem is missing, but"),
        ("etcd-ca-key.pem", keys.pem(keys.generate(spec.Key())), "etcd-ca-key.pem is not the key of"),
        ("etcd-ca-key.pem", b"x", "etcd-ca-key.pem holds no private key in PEM"),
        ("etcd-ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "etcd-ca.pem is damaged"),
        ("sa.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "sa.key is damaged"),
    ],
)
def test_what_must_not_be_replaced_is_an_error(pki: Path, name: str, content: bytes | None, message: str) -> None:
    damage(pki, name, content)
    before = contents(pki)
    for step in (plan, apply):
        with pytest.raises(StoreError, match=message) as caught:
            step(pki)
        assert "backup" in caught.value.hint
    assert contents(pki) == before


def test_a_file_of_a_ca_holds_one_certificate(pki: Path) -> None:
    store.write(pki / "etcd-ca.pem", (pki / "etcd-ca.pem").read_bytes() + (pki / "kube-ca.pem").read_bytes(), 0o644)
    with pytest.raises(StoreError, match="holds 2 certificates"):
        plan(pki)


def test_what_cannot_change_is_a_warning(pki: Path) -> None:
    def change(data: Data) -> None:
        data["cas"]["etcd"] |= {"cn": "other", "key": {"size": 384}}
        data["keypairs"]["sa"] = {"algo": "rsa"}

    pki.chmod(0o777)
    found = plan(pki, changed(change))
    assert said(found) == {}
    text = "\n".join(found.warnings)
    assert "etcd-ca.pem: its subject is CN=etcd-ca, the specification says CN=other" in text
    assert "etcd-ca.pem: its key is ecdsa 256, the specification says ecdsa 384" in text
    assert "sa.key: it is ecdsa 256, the specification says rsa 2048" in text
    assert f"{pki}: others may write there (mode 0777)" in text


def test_modes_are_repaired_and_nothing_is_issued(pki: Path) -> None:
    before = contents(pki)
    for path in pki.rglob("*"):
        if path.is_file():
            path.chmod(0o666)
    found = apply(pki)
    assert (found.issued, found.files, found.consumers) == ((), (), {})
    assert said(found)["s"] == "repair: s-key.pem has mode 0666, wanted 0600; s.pem has mode 0666, wanted 0644"
    assert set(found.repaired) == {"etcd-ca", "kube-ca", "sa", "s", "c"}
    assert (said(plan(pki)), contents(pki)) == ({}, before)


def test_everything_under_umask_000(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        apply(tmp_path / "pki", leaf(0, mode="0440"))
    finally:
        os.umask(before)
    for path in [tmp_path / "pki", *(tmp_path / "pki").rglob("*")]:
        secret = path.name.endswith("key.pem") or path.name in ("sa.key", ".lock")
        expected = 0o700 if path.is_dir() else 0o440 if path.name == "s-key.pem" else 0o600 if secret else 0o644
        assert path.stat().st_mode & 0o777 == expected, path


def test_a_lost_public_key_is_written_again(pki: Path) -> None:
    for content, reason in ((None, "public key missing"), (b"x", "public key is that of another key")):
        damage(pki, "sa.pub", content)
        found = apply(pki)
        assert (said(found), found.files) == ({"sa": f"repair: {reason}"}, ("sa.pub",))
    assert said(plan(pki)) == {}


# --- owners


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_owners(pki: Path) -> None:
    data = leaf(1, owner="nobody:daemon")
    found = apply(pki, data)
    assert said(found)["c"].startswith("repair: nodes/n1/c-key.pem belongs to 0:0, wanted nobody:daemon;")
    key = store.read(pki / "nodes/n1/c-key.pem")
    assert key
    assert (key.owner, key.mode) == (store.owner("nobody:daemon", ""), 0o600)
    # The directories were made when nobody else was to get through.
    warnings = plan(pki, data).warnings
    assert [w.partition(":")[0] for w in warnings] == [str(pki), f"{pki}/nodes", f"{pki}/nodes/n1"]
    assert warnings[0].endswith(f"cannot get through to the files that are its own: chmod a+x {pki}")
    damage(pki, "nodes/n1/c.pem", None)
    apply(pki, data)
    assert (pki / "nodes/n1/c.pem").owner() == "nobody"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_files_stay_whose_they_are(pki: Path) -> None:
    ours = [pki / name for name in ("s.pem", "s-key.pem", "sa.key", "sa.pub", "etcd-ca-bundle.pem")]
    for path in ours:
        os.chown(path, 1000, 1001)
    damage(pki, "etcd-ca-bundle.pem", (pki / "kube-ca.pem").read_bytes())
    os.chown(pki / "etcd-ca-bundle.pem", 1000, 1001)
    store.write(pki / "sa.pub", b"x", 0o644)
    os.chown(pki / "sa.pub", 1000, 1001)
    assert apply(pki, leaf(0, cn="m2")).issued == ("s",)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in ours} == {(1000, 1001)}
    (pki / "s.pem").unlink()
    apply(pki)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in ours} == {(1000, 1001)}
    apply(pki, leaf(0, cn="m2", owner="root:0"))
    assert (pki / "s-key.pem").stat().st_uid == 0


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_owners_get_through_to_their_files_and_no_further(open_directory: Path) -> None:
    pki = open_directory / "pki"
    apply(pki, leaf(1, owner="nobody"))
    assert plan(pki, leaf(1, owner="nobody")).warnings == ()

    def as_nobody(*command: str) -> int:
        return subprocess.run(command, user="nobody", group="nogroup", capture_output=True, check=False).returncode

    assert as_nobody("cat", f"{pki}/nodes/n1/c-key.pem") == 0
    assert as_nobody("ls", str(pki)) != 0
    assert as_nobody("cat", f"{pki}/etcd-ca-key.pem") != 0


def test_an_owner_that_is_not_there(pki: Path) -> None:
    before = contents(pki)
    for owner, what in (("no-such-user", "no user 'no-such-user'"), ("root:no-such-group", "no group 'no-such-group'")):
        for step in (plan, apply):
            with pytest.raises(StoreError, match=f"certificate 's': there is {what} here"):
                step(pki, leaf(0, owner=owner, cn="changed"))
    assert contents(pki) == before


_AS_NOBODY = """
import datetime, os, sys
from pathlib import Path
# Before: others may not be able to read this Python.
from kubepki import reconcile, spec
from kubepki.errors import StoreError
wanted = spec.load(Path(sys.argv[1]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    reconcile.apply(wanted, Path(sys.argv[2]), datetime.datetime.now(datetime.UTC))
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_give_files_away_is_told_before_anything_is_written(open_directory: Path) -> None:
    (open_directory / "s.yml").write_text(yaml.safe_dump(leaf(0, owner="daemon")))
    command = [sys.executable, "-c", _AS_NOBODY, str(open_directory / "s.yml"), str(open_directory / "pki")]
    reply = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be given to user 1, group 1: Operation not permitted\n  run as root, or leave" in reply.stdout
    assert [path.name for path in (open_directory / "pki").iterdir()] == [".lock"]


# --- encrypted keys of CAs


def encrypted(source: str) -> Data:
    return changed(lambda data: data["cas"]["etcd"].update(password=source))


def test_a_ca_key_is_encrypted_and_back_and_stays_the_same(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "first")
    monkeypatch.setenv("PW2", "second")
    first, second = encrypted("env:PW"), encrypted("env:PW2")
    before = contents(pki)
    found = apply(pki, first)
    assert said(found) == {"etcd-ca": "repair: its key is to be encrypted"}
    assert (found.files, found.consumers) == (("etcd-ca-key.pem",), {})
    path = pki / "etcd-ca-key.pem"
    assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert path.stat().st_mode & 0o777 == 0o600
    command = ["openssl", "pkey", "-in", str(path), "-passin", "env:PW"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == before["etcd-ca-key.pem"]
    assert said(plan(pki, first)) == {}
    # What is issued with it is as good as before.
    apply(pki, encrypted("env:PW") | {"certificates": leaf(0, cn="new")["certificates"]})
    whole(pki)
    assert said(apply(pki, first))["s"] == "issue: subject was CN=new"

    assert said(apply(pki, second, old_password="env:PW")) == {
        "etcd-ca": "repair: its key is to be encrypted with another password"
    }
    assert said(plan(pki, second)) == said(plan(pki, second, old_password="env:PW")) == {}
    assert said(apply(pki, old_password="env:PW2")) == {"etcd-ca": "repair: its key is to be no longer encrypted"}
    assert said(plan(pki)) == {}
    assert {n: c for n, c in contents(pki).items() if "-ca" in n} == {n: c for n, c in before.items() if "-ca" in n}


def test_a_new_ca_is_encrypted_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "first")
    apply(tmp_path / "pki", encrypted("env:PW"))
    assert b"ENCRYPTED" in (tmp_path / "pki/etcd-ca-key.pem").read_bytes()
    whole(tmp_path / "pki")


@pytest.mark.parametrize(
    ("password", "old", "message"),
    [
        ("", "", "etcd-ca-key.pem is encrypted, and ca 'etcd' has no password"),
        ("env:WRONG", "", "etcd-ca-key.pem cannot be decrypted with env:WRONG\n"),
        ("env:WRONG", "env:WRONG", "cannot be decrypted with env:WRONG or env:WRONG\n"),
        ("env:NOTHING", "", "env:NOTHING: there is no such variable"),
        ("file:/nowhere", "env:PW", "/nowhere: No such file"),
        ("env:EMPTY", "", "env:EMPTY: the password is empty"),
    ],
)
def test_passwords_that_do_not_fit(
    pki: Path, monkeypatch: pytest.MonkeyPatch, password: str, old: str, message: str
) -> None:
    for name, value in (("PW", "s3cret-one"), ("WRONG", "s3cret-two"), ("EMPTY", "\n")):
        monkeypatch.setenv(name, value)
    apply(pki, encrypted("env:PW"))
    before = contents(pki)
    data = encrypted(password) if password else DATA
    for step in (plan, apply):
        with pytest.raises(StoreError, match=re.escape(message)) as caught:
            step(pki, data, old_password=old)
        assert "s3cret" not in str(caught.value)
    assert contents(pki) == before


def test_a_password_that_cannot_be_read_makes_no_ca(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="env:NOTHING"):
        apply(tmp_path / "pki", encrypted("env:NOTHING"))
    assert contents(tmp_path / "pki").keys() == {".lock"}


# --- trust bundles


def certificates(path: Path) -> list[bytes]:
    return [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(path.read_bytes())]


def test_a_bundle_is_a_copy_of_the_ca(pki: Path) -> None:
    assert (pki / "etcd-ca-bundle.pem").read_bytes() == (pki / "etcd-ca.pem").read_bytes()
    # Byte by byte, also of what others have made: consumers compare files.
    own = b"# our CA\r\n" + (pki / "etcd-ca.pem").read_bytes().replace(b"\n", b"\r\n")
    store.write(pki / "etcd-ca.pem", own, 0o644)
    damage(pki, "etcd-ca-bundle.pem", None)
    foreseen, found = plan(pki), apply(pki)
    assert foreseen.same_as == found.same_as == {"etcd-ca-bundle.pem": "etcd-ca.pem"}
    assert (said(found), found.consumers) == ({"etcd-ca": "repair: etcd-ca-bundle.pem missing"}, {})
    assert (found.files, (pki / "etcd-ca-bundle.pem").read_bytes()) == (("etcd-ca-bundle.pem",), own)


def test_more_in_a_bundle_is_left_alone_and_the_ca_goes_in_front(pki: Path) -> None:
    bundle, own, other = (pki / f"{n}.pem" for n in ("etcd-ca-bundle", "etcd-ca", "kube-ca"))
    store.write(bundle, other.read_bytes() + own.read_bytes(), 0o644)
    before = bundle.read_bytes()
    assert said(apply(pki)) == {}
    assert bundle.read_bytes() == before
    store.write(bundle, other.read_bytes(), 0o600)
    found = apply(pki)
    assert said(found) == {"etcd-ca": "repair: etcd-ca-bundle.pem lacks the CA's certificate"}
    assert set(found.consumers) == {"etcd", "flanneld"}
    assert (found.same_as, certificates(bundle)) == ({}, certificates(own) + certificates(other))
    assert bundle.stat().st_mode & 0o777 == 0o644


def test_a_bundle_that_was_cut_is_damaged(pki: Path) -> None:
    whole_one = (pki / "etcd-ca.pem").read_bytes()
    store.write(pki / "etcd-ca-bundle.pem", whole_one + (pki / "kube-ca.pem").read_bytes()[:-100], 0o644)
    assert said(apply(pki)) == {"etcd-ca": "repair: etcd-ca-bundle.pem damaged"}
    assert (pki / "etcd-ca-bundle.pem").read_bytes() == whole_one


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that stay")
def test_who_was_not_told_is_told_by_the_next_apply(pki: Path) -> None:
    data = changed(lambda data: [one.update(cn="m2") for one in data["certificates"]])
    before = contents(pki)
    if subprocess.run(["chattr", "+i", pki / "nodes/n1/c.pem"], check=False, capture_output=True).returncode:
        pytest.skip("no file here can be made to stay")
    try:
        with pytest.raises(StoreError, match=r"c\.pem: cannot be replaced: Operation not permitted") as caught:
            apply(pki, data)
    finally:
        subprocess.run(["chattr", "-i", pki / "nodes/n1/c.pem"], check=True)
    assert "the files that are there are as they were" in caught.value.hint
    assert contents(pki) == before
    assert set(apply(pki, data).consumers) == {"etcd", "kubelet"}


@pytest.mark.parametrize("other", ["next", "previous"])
def test_a_lost_bundle_of_a_rotation_has_both_again(pki: Path, other: str) -> None:
    store.write(pki / f"etcd-ca-{other}.pem", (pki / "kube-ca.pem").read_bytes(), 0o644)
    for content, reason in ((None, "missing"), (b"x", "damaged")):
        damage(pki, "etcd-ca-bundle.pem", content)
        assert said(apply(pki)) == {"etcd-ca": f"repair: etcd-ca-bundle.pem {reason}"}
        both = certificates(pki / "etcd-ca.pem") + certificates(pki / "kube-ca.pem")
        assert certificates(pki / "etcd-ca-bundle.pem") == both


def test_a_ca_that_was_rotated_issues_anew(pki: Path) -> None:
    for end in (".pem", "-key.pem"):
        (pki / f"kube-ca{end}").rename(pki / f"kube-ca-previous{end}")
    key = keys.generate(spec.Key())
    template = issue.for_authority(spec.parse(DATA).authorities["kube"], NOW)
    new = issue.sign(template, key.public_key(), key).public_bytes(Encoding.PEM)
    store.write(pki / "kube-ca-key.pem", keys.pem(key), 0o600)
    store.write(pki / "kube-ca.pem", new, 0o644)
    store.write(pki / "kube-ca-bundle.pem", (pki / "kube-ca-previous.pem").read_bytes() + new, 0o644)
    found = apply(pki)
    assert (said(found), found.consumers) == ({"c": "issue: issuer changed"}, {"kubelet": ("c",)})
    assert len(certificates(pki / "kube-ca-bundle.pem")) == 2
    whole(pki)


# --- the commands


def kubepki(*arguments: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "kubepki", *map(str, arguments)]
    reply = subprocess.run(command, capture_output=True, text=True, check=False)
    return reply.returncode, reply.stdout, reply.stderr


@pytest.fixture
def specification(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yml"
    path.write_text(yaml.safe_dump(DATA, sort_keys=False))
    return path


def test_plan_and_apply_as_commands(specification: Path) -> None:
    directory = specification.parent / "pki"
    assert kubepki("plan", specification) == (
        2,
        f"{directory}\n"
        "  issue   etcd-ca  missing\n"
        "  issue   kube-ca  missing\n"
        "  issue   sa       missing\n"
        "  issue   s        missing\n"
        "  issue   c        missing\n"
        "5 to issue, 0 kept\n"
        "restart or reload afterwards: etcd, flanneld, kube-apiserver, kubelet\n",
        "",
    )
    assert not directory.exists()
    status, out, err = kubepki("apply", specification)
    assert (status, err) == (0, "")
    assert re.search(r"^  issued    s        until \d{4}-\d\d-\d\d  missing$", out, re.MULTILINE)
    assert out.endswith("5 issued, 0 kept\nrestart or reload: etcd, flanneld, kube-apiserver, kubelet\n")
    for command in ("plan", "apply"):
        assert kubepki(command, specification) == (0, f"{directory}\nnothing to do, 5 kept\n", "")
    directory.chmod(0o770)
    (directory / "s-key.pem").chmod(0o644)
    status, out, err = kubepki("plan", specification)
    assert (status, out.splitlines()[1:]) == (
        2,
        ["  repair  s  s-key.pem has mode 0644, wanted 0600", "1 to repair, 4 kept"],
    )
    assert err == (
        f"warning: {directory}: others may write there (mode 0770) and so replace keys: chmod go-w {directory}\n"
    )


def test_for_programs(specification: Path, tmp_path: Path) -> None:
    status, out, _ = kubepki("apply", "--json", specification, "-C", tmp_path / "other")
    made = json.loads(out)
    assert (status, made["directory"]) == (0, str(tmp_path / "other"))
    assert made["counts"] == {"issue": 5, "repair": 0, "keep": 0}
    assert made["consumers"]["etcd"] == ["etcd-ca", "s"]
    assert "PRIVATE KEY" not in out
    kept = json.loads(kubepki("plan", "--json", specification, "-C", tmp_path / "other")[1])
    serial = f"{x509.load_pem_x509_certificate((tmp_path / 'other/s.pem').read_bytes()).serial_number:x}"
    for found in (made, kept):
        [item] = [item for item in found["items"] if item["name"] == "s"]
        assert (item["serial"], len(item["not_after"])) == (serial, 25)
    assert (kept["changed"], kept["counts"]["keep"], kept["warnings"]) == (False, 5, [])


@pytest.mark.parametrize(
    ("arguments", "said_"),
    [
        (["plan"], "kubepki: the following arguments are required: SPEC\n  kubepki plan -h says more\n"),
        (["apply", "x", "--directry", "y"], "kubepki: unrecognized arguments: --directry y\n  kubepki apply -h"),
        (["plan", "/nowhere/x.yml"], "kubepki: /nowhere/x.yml: No such file or directory\n"),
    ],
)
def test_wrong_arguments(arguments: list[str], said_: str) -> None:
    status, out, err = kubepki(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith(said_)


def test_a_relative_password_is_beside_the_specification(specification: Path) -> None:
    (specification.parent / "pw").write_text("secret\n")
    specification.write_text(yaml.safe_dump(encrypted("file:pw")))
    assert kubepki("apply", specification)[0] == 0
    key = (specification.parent / "pki/etcd-ca-key.pem").read_bytes()
    assert keys.load(key, "", lambda: b"secret")


def test_which_directory_is_meant(tmp_path: Path) -> None:
    given = argparse.Namespace(spec=tmp_path / "spec.yml", directory=None)
    (tmp_path / ".lock").touch()
    assert arguments.directory(given) == tmp_path / "pki"
    (tmp_path / "etcd-ca.pem").touch()
    assert arguments.directory(given) == tmp_path
    (tmp_path / "pki").mkdir()
    assert arguments.directory(given) == tmp_path / "pki"
    given.directory = tmp_path / "other"
    assert arguments.directory(given) == tmp_path / "other"


def test_two_certificates_on_one_path(specification: Path) -> None:
    specification.write_text(yaml.safe_dump(leaf(1, path="s")))
    status, _, err = kubepki("apply", specification)
    assert status == 1
    assert "certificate 'c': its file s.pem is that of certificate 's' as well; give one another path" in err
    assert not (specification.parent / "pki").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100000, "nested more than 50 levels deep"),
        ("- " * 100000, "nested more than 50 levels deep"),
        (
            "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 20))
            + "cas: *a19",
            "aliases stand for more than 1000000 values",
        ),
        ("cas: 2024-13-45", "no YAML: month must be in 1..12"),
        ("cas: {k: &k {cn: k}, l: *k, m: *nothing}", "found undefined alias"),
        ("cas: {k: {cn: \xff}}", "no YAML: 'utf-8' codec"),
        ("[1", "no YAML: while parsing a flow sequence"),
    ],
)
def test_what_is_no_yaml_is_said_at_once(specification: Path, text: str, message: str) -> None:
    specification.write_bytes(text.encode("latin-1"))
    status, out, err = kubepki("plan", specification)
    assert (status, out) == (1, "")
    assert err.startswith(f"kubepki: the PKI specification is wrong:\n  - {specification}: ")
    assert message in err
    assert len(err) < 500


def test_a_file_is_no_directory(specification: Path) -> None:
    specification.write_text(yaml.safe_dump(leaf(1, path="s.pem/c")))
    assert "certificate 'c': its directory s.pem is a file of certificate 's'" in kubepki("plan", specification)[2]


def test_a_specification_of_more_than_ten_megabytes(specification: Path) -> None:
    specification.write_text("#" * (11 << 20))
    assert kubepki("plan", specification) == (
        1,
        "",
        f"kubepki: {specification}: larger than 10 MB; this is no specification\n",
    )


def test_a_directory_that_cannot_be_one(specification: Path) -> None:
    (specification.parent / "pki").write_text("")
    for command in ("plan", "apply"):
        status, _, err = kubepki(command, specification)
        assert status == 1
        assert err.startswith(f"kubepki: {specification.parent}/pki")
        assert "Traceback" not in err


def test_concurrent_runs_end_in_one_whole_set(specification: Path) -> None:
    command = [sys.executable, "-m", "kubepki", "apply", str(specification)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    replies = [process.communicate(timeout=60)[1] for process in running]
    assert 0 in [process.returncode for process in running]
    for process, err in zip(running, replies, strict=True):
        assert process.returncode == 0 or "another run is issuing certificates there\n  wait for it to end" in err
    assert kubepki("plan", specification)[0] == 0
    whole(specification.parent / "pki")


def test_runs_that_are_killed(specification: Path) -> None:
    # Again and again everything is new, and the run dies at any moment; the files that are there stay whole pairs.
    names = [{**DATA["certificates"][0], "name": f"s{number}"} for number in range(150)]
    directory = specification.parent / "pki"
    dice = random.Random(7)  # noqa: S311 - not for keys
    command = [sys.executable, "-m", "kubepki", "apply", str(specification)]
    specification.write_text(yaml.safe_dump(DATA | {"certificates": names}))
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - begin
    interrupted = 0
    for turn in range(6):
        for name in names:
            name["cn"] = f"m{turn}"
        specification.write_text(yaml.safe_dump(DATA | {"certificates": names}))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(length * dice.uniform(0.5, 1))
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() != 0
        found = plan(directory, DATA | {"certificates": names}, datetime.now(UTC))
        assert found.repaired == ()
        # At most one pair was just being replaced.
        assert sum("key does not match" in item.reasons for item in found.items) <= 1
    assert interrupted
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert said(plan(directory, DATA | {"certificates": names}, now=datetime.now(UTC))) == {}
    assert [path.name for path in directory.rglob(".*")] == [".lock"]


def test_rsa_keys(tmp_path: Path) -> None:
    data = changed(lambda data: [one.update(key={"algo": "rsa"}) for one in data["certificates"]])
    apply(tmp_path, data)
    assert said(plan(tmp_path, data)) == {}
    whole(tmp_path, data)


def test_the_command_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert re.search(r"^  plan .*\n(.*\n)*?  apply ", capsys.readouterr().out, re.MULTILINE)


def test_the_example_of_the_library_runs(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parent.parent.parent / "docs" / "pki.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for action in ("issue", "keep"):
        ran = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert [line.split()[:2] for line in ran.stdout.splitlines()] == [["etcd-ca", action], ["server", action]]
