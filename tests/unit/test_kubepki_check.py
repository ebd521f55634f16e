from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubepki import check, cli, contents, issue, keys, monitor, names, reconcile, report, spec, survey, usages
from kubepki.check import Finding, Judgement, Limits
from kubepki.keys import PrivateKey
from kubepki.names import Name

NOW = datetime.now(UTC).replace(microsecond=0)
LIMITS = Limits(30, 7)
DATA: dict[str, Any] = {
    "cas": {"etcd": {"cn": "etcd-ca"}, "kube": {"cn": "kube-ca"}},
    "keypairs": {"service-account": {"algo": "rsa", "size": 2048}},
    "certificates": [
        {"name": "server", "ca": "etcd", "cn": "m1", "profile": "peer", "hosts": ["m1", "127.0.0.1", "::1"]},
        {"name": "admin", "ca": "kube", "cn": "admin", "o": ["system:masters"], "profile": "client"},
        {"name": "rsa", "ca": "etcd", "cn": "rsa", "profile": "client", "key": {"algo": "rsa"}},
        {"name": "edwards", "ca": "kube", "cn": "ed", "profile": "client", "key": {"algo": "ed25519"}},
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("check") / "pki"
    reconcile.apply(spec.parse(DATA), directory, NOW)
    return directory


@pytest.fixture
def pki(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pki"))


def judged(*paths: Path, now: datetime = NOW, ignore: tuple[str, ...] = (), limits: Limits = LIMITS) -> Judgement:
    return check.judge(survey.find(map(str, paths), ignore), now, limits)


def kinds(judgement: Judgement, *, notes: bool = False) -> list[str]:
    return sorted({one.kind for one in judgement.findings if notes or one.severity != "info"})


def finding(judgement: Judgement, kind: str) -> Finding:
    found = [one for one in judgement.findings if one.kind == kind]
    assert len(found) == 1, judgement.findings
    return found[0]


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make(
    cn: str = "leaf",
    key: PrivateKey | None = None,
    ca: issue.Issuer | None = None,
    *,
    hosts: tuple[str, ...] = (),
    life: tuple[float, float] = (-1, 365),
    is_ca: bool = False,
    path_length: int | None = None,
    usages_: tuple[str, ...] = ("digital_signature",),
) -> issue.Issuer:
    """A certificate and its key; signed by itself without a CA. `life`: days from now; `hosts`: taken for DNS names."""
    key = key or new_key()
    template = issue.Template(
        subject=issue.subject(cn, ()),
        key_usages=frozenset({"digital_signature", "key_cert_sign"} if is_ca else usages_),
        extended_usages=() if is_ca else (usages.CLIENT_AUTH,),
        not_before=NOW + timedelta(days=life[0]),
        not_after=NOW + timedelta(days=life[1]),
        names=tuple(Name("dns", host) for host in hosts),
        is_ca=is_ca,
        path_length=path_length,
    )
    found = issue.sign(template, key.public_key(), ca.key if ca else key, ca.certificate if ca else None)
    return issue.Issuer(found, key)


def pem(*found: issue.Issuer) -> bytes:
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in found)


def openssl(directory: Path, line: str) -> None:
    subprocess.run(["openssl", *line.split()], cwd=directory, check=True, capture_output=True)


def later() -> datetime:
    """When that which openssl has just made is valid."""
    return datetime.now(UTC) + timedelta(minutes=1)


def put(path: Path, *found: issue.Issuer, key: PrivateKey | None = None, mode: int = 0o600) -> Path:
    path.write_bytes(pem(*found) + (keys.pem(key) if key else b""))
    path.chmod(mode)
    return path


# What is well


def test_a_healthy_directory(pki: Path) -> None:
    judgement = judged(pki)
    assert judgement.findings == ()
    assert (judgement.state, judgement.exit_code) == ("ok", 0)
    by_cn = {one.facts.subject: one for one in judgement.certificates}
    server = by_cn["CN=m1"]
    assert server.chain == check.Chain("complete", ("CN=etcd-ca",))
    assert [(spot.place.path, spot.key, spot.key_state) for spot in server.spots] == [
        (str(pki / "server.pem"), str(pki / "server-key.pem"), "matches")
    ]
    assert {str(name) for name in server.facts.names} == {"m1", "127.0.0.1", "::1"}
    assert {spot.key_state for one in judgement.certificates for spot in one.spots} <= {"matches", ""}
    assert by_cn["CN=etcd-ca"].chain.status == "root"
    lefts = [one.left for one in judgement.certificates]
    assert lefts == sorted(lefts)


def test_openssl_agrees_about_every_chain(pki: Path, tmp_path: Path) -> None:
    root = make("root", is_ca=True)
    middle = make("middle", ca=root, is_ca=True, path_length=0)
    leaf = make("leaf", ca=middle)
    stranger = make("stranger", ca=make("middle", is_ca=True))
    for name, one in (("root", root), ("middle", middle), ("leaf", leaf), ("stranger", stranger)):
        put(pki / f"{name}.pem", one)
    roots, middles = tmp_path / "roots", put(tmp_path / "middles", middle)
    roots.write_bytes(b"".join((pki / name).read_bytes() for name in ("etcd-ca.pem", "kube-ca.pem")) + pem(root))
    judgement = judged(pki)
    for one in judgement.certificates:
        command = ["openssl", "verify", "-CAfile", str(roots), "-untrusted", str(middles), one.spots[0].place.path]
        good = subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert good == (one.chain.status in ("root", "complete")), one
    assert next(one.chain.issuers for one in judgement.certificates if one.facts.subject == "CN=leaf") == (
        "CN=middle",
        "CN=root",
    )


def test_a_certificate_in_several_places_is_one_with_several_places(pki: Path) -> None:
    (pki / "fetched").mkdir()
    shutil.copy(pki / "server.pem", pki / "fetched" / "copy.pem")
    chain = pki / "fetched" / "chain.pem"
    chain.write_bytes((pki / "server.pem").read_bytes() + (pki / "etcd-ca.pem").read_bytes())
    judgement = judged(pki)
    server = next(one for one in judgement.certificates if one.facts.subject == "CN=m1")
    assert [(Path(spot.place.path).name, spot.place.index) for spot in server.spots] == [
        ("chain.pem", 1),
        ("copy.pem", 1),
        ("server.pem", 1),
    ]
    rows = json.loads(report.as_json(judgement))["certificates"]
    assert len(rows) == judgement.places
    assert report.table(judgement).count("CN=m1 ") == 1


# Time


@pytest.mark.parametrize(
    ("left", "kind", "severity"),
    [
        (timedelta(days=30), "", ""),
        (timedelta(days=30, seconds=-1), "ends-soon", "warning"),
        (timedelta(days=7), "ends-soon", "warning"),
        (timedelta(days=7, seconds=-1), "ends-soon", "critical"),
        (timedelta(0), "ends-soon", "critical"),
        (timedelta(seconds=-1), "expired", "critical"),
        (timedelta(days=400), "not-yet-valid", "critical"),
    ],
)
def test_days_that_are_left(tmp_path: Path, left: timedelta, kind: str, severity: str) -> None:
    one = make(life=(0, 365))
    judgement = judged(put(tmp_path / "a.pem", one), now=one.certificate.not_valid_after_utc - left)
    assert [(found.kind, found.severity) for found in judgement.findings] == ([(kind, severity)] if kind else [])


def test_limits_are_those_that_were_given(tmp_path: Path) -> None:
    put(tmp_path / "a.pem", make(life=(-1, 50)))
    assert judged(tmp_path, limits=Limits(60, 40)).state == "warning"
    assert judged(tmp_path, limits=Limits(60, 51)).state == "critical"
    assert judged(tmp_path, limits=Limits(0, 0)).state == "ok"


# Keys


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("server.pem", "server-key.pem"),
        ("server.crt", "server.key"),
        ("server.pem", "server.key"),
        ("server.cer", "server.key"),
        ("cert.pem", "key.pem"),
        ("tls.crt", "tls.key"),
        ("node-cert.pem", "node-key.pem"),
    ],
)
def test_the_key_beside_a_certificate(tmp_path: Path, certificate: str, key: str) -> None:
    one = make()
    put(tmp_path / certificate, one)
    (tmp_path / key).write_bytes(keys.pem(one.key))
    (tmp_path / key).chmod(0o600)
    # Asked for the certificate only, the key is looked for.
    for asked in (tmp_path, tmp_path / certificate):
        judgement = judged(asked)
        spot = judgement.certificates[0].spots[0]
        assert (spot.key, spot.key_state) == (str(tmp_path / key), "matches")
        assert judgement.findings == ()
    (tmp_path / key).write_bytes(keys.pem(new_key()))
    assert kinds(judged(tmp_path)) == ["key-differs"]
    assert judged(tmp_path).exit_code == 2


def test_a_key_in_the_same_file_is_for_the_first_certificate(tmp_path: Path) -> None:
    ca = make("ca", is_ca=True)
    leaf = make(ca=ca)
    path = put(tmp_path / "kubelet-client-current.pem", leaf, ca, key=leaf.key)
    assert judged(path).findings == ()
    put(path, leaf, ca, key=ca.key)
    assert kinds(judged(path)) == ["key-differs"]


def test_an_encrypted_key_is_left_alone(tmp_path: Path) -> None:
    one = make()
    put(tmp_path / "ca.pem", one)
    (tmp_path / "ca-key.pem").write_bytes(keys.pem(one.key, b"secret"))
    judgement = judged(tmp_path)
    assert judgement.certificates[0].spots[0].key_state == "encrypted"
    assert judgement.findings == ()


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o600, ""), (0o640, ""), (0o644, "read (mode 0644)"), (0o604, "read"), (0o660, "changed"), (0o622, "changed")],
)
def test_who_may_read_a_key(tmp_path: Path, mode: int, said: str) -> None:
    path = tmp_path / "service-account.key"
    path.write_bytes(keys.pem(new_key()))
    path.chmod(mode)
    found = [one for one in judged(tmp_path).others if one.kind == "exposed-key"]
    assert bool(found) == bool(said)
    assert not found or (said in found[0].text and found[0].path == str(path))


def test_keys_for_other_purposes_are_not_damaged(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True)
    for kind in ("x25519", "ed448"):
        subprocess.run(["openssl", "genpkey", "-algorithm", kind, "-out", str(tmp_path / f"{kind}.key")], check=True)
    assert kinds(judged(tmp_path)) == ["nothing-found"]


# Damage


def _cut_in_the_middle(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _without_last_line(content: bytes) -> bytes:
    return content[: content.index(b"-----END")]


def _flipped(content: bytes) -> bytes:
    return content.replace(b"\nMII", b"\nMIJ", 1)


def _no_base64(content: bytes) -> bytes:
    return content.replace(b"\nMII", b"\nM!I", 1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut_in_the_middle, "certificate 1 is cut: its END line is missing"),
        (_without_last_line, "certificate 1 is cut"),
        (_flipped, "certificate 1 is damaged"),
        (_no_base64, "certificate 1 is damaged: no base64"),
        (lambda _: b"", "is empty"),
        (lambda _: b"\n \n", "is empty"),
        (lambda _: b"404 page not found\n", "holds neither PEM nor DER"),
        (lambda content: content.rstrip() + content, "two blocks are joined in one line"),
        (lambda content: b"\xef\xbb\xbf" + content, "byte order mark"),
        (lambda content: content.decode().encode("utf-16"), "holds neither PEM nor DER"),
    ],
)
def test_damaged_pem(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = tmp_path / "server.pem"
    path.write_bytes(damage(pem(make())))
    judgement = judged(tmp_path)
    assert said in finding(judgement, "damaged").text
    assert judgement.exit_code == 2


def test_what_surrounds_damage_is_read(tmp_path: Path) -> None:
    good = make()
    text = pem(make("bad"))
    (tmp_path / "bundle.pem").write_bytes(b"Words in front\n" + _without_last_line(text) + pem(good))
    judgement = judged(tmp_path)
    assert [one.facts.subject for one in judgement.certificates] == ["CN=leaf"]
    assert "certificate 1 is cut" in finding(judgement, "damaged").text


def test_der(tmp_path: Path) -> None:
    der = make("der").certificate.public_bytes(Encoding.DER)
    for name in ("a.crt", "b.cer", "c.der", "d"):
        (tmp_path / name).write_bytes(der)
    judgement = judged(tmp_path)
    assert (judgement.places, judgement.findings) == (4, ())
    (tmp_path / "a.crt").write_bytes(der[:-20])
    assert "is damaged" in finding(judged(tmp_path), "damaged").text
    # Without such a name it is just some file.
    (tmp_path / "a.crt").rename(tmp_path / "a")
    assert kinds(judged(tmp_path)) == []


def test_der_that_is_no_certificate_is_not_damaged(tmp_path: Path) -> None:
    one = make(is_ca=True)
    (tmp_path / "request.der").write_bytes(_csr(one.key).public_bytes(Encoding.DER))
    (tmp_path / "list.der").write_bytes(_crl(one).public_bytes(Encoding.DER))
    subprocess.run(
        ["openssl", "pkey", "-outform", "DER", "-out", tmp_path / "key.der"], input=keys.pem(one.key), check=True
    )
    subprocess.run(
        ["openssl", "pkey", "-pubout", "-outform", "DER", "-out", tmp_path / "pub.der"],
        input=keys.pem(one.key),
        check=True,
    )
    (tmp_path / "key.der").chmod(0o600)
    assert kinds(judged(tmp_path)) == ["nothing-found"]


def test_a_damaged_key(tmp_path: Path) -> None:
    one = make()
    put(tmp_path / "a.pem", one)
    for content in (keys.pem(one.key)[:80], keys.pem(one.key).replace(b"\nM", b"\nN", 1)):
        (tmp_path / "a-key.pem").write_bytes(content)
        for asked in (tmp_path, tmp_path / "a.pem"):
            found = [one for one in judged(asked).others if one.kind == "damaged"]
            assert [one.path for one in found] == [str(tmp_path / "a-key.pem")]
    (tmp_path / "a-key.pem").unlink()
    (tmp_path / "a.key").write_text("")
    assert "no private key" in finding(judged(tmp_path), "damaged").text


# Weaknesses


def test_weak_keys_and_signatures(tmp_path: Path) -> None:
    openssl(tmp_path, "req -x509 -newkey rsa:1024 -nodes -sha1 -days 90 -subj /CN=old -keyout ca.key -out ca.crt")
    openssl(tmp_path, "req -newkey rsa:2048 -nodes -subj /CN=leaf -keyout leaf.key -out leaf.csr")
    openssl(tmp_path, "x509 -req -sha1 -days 90 -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out leaf.crt")
    by_cn = {one.facts.subject: one for one in judged(tmp_path, now=later()).certificates}
    assert [one.text for one in by_cn["CN=old"].findings] == ["its key has 1024 bits, rsa needs 2048"]
    assert [(one.kind, one.severity) for one in by_cn["CN=leaf"].findings] == [("weak-signature", "warning")]
    assert by_cn["CN=leaf"].chain.status == "complete"


@pytest.mark.parametrize(
    ("host", "said", "refused"),
    [
        ("", "is empty", True),
        ("m1.", "ends in a dot", True),
        ("a..b", "no DNS name", True),
        ("m1 m2", "blanks", True),
        (f"{'a' * 64}.b", "no DNS name", True),
        ("10.0.0.1", "written as a DNS name, so that no client takes it for an address", False),
        ("m1:6443", "has a port", False),
    ],
)
def test_names_that_verifiers_stumble_over(tmp_path: Path, host: str, said: str, *, refused: bool) -> None:
    judgement = judged(put(tmp_path / "a.pem", make(hosts=("m1", host))))
    found = finding(judgement, "bad-name")
    assert said in found.text
    assert ("Go 1.24.8" in found.text) == refused
    assert found.severity == "warning"


def test_extensions_that_cannot_be_read(tmp_path: Path) -> None:
    der = make(hosts=("abcdefgh",)).certificate.public_bytes(Encoding.DER)
    # A name of type dNSName with a byte that is no ASCII: nobody takes it.
    (tmp_path / "a.crt").write_bytes(der.replace(b"abcdefgh", b"abc\xffefgh"))
    assert "extensions cannot be read" in finding(judged(tmp_path), "damaged").text


# Chains


def test_the_issuer_is_not_there(tmp_path: Path) -> None:
    judgement = judged(put(tmp_path / "a.pem", make(ca=make("somewhere", is_ca=True))))
    assert (finding(judgement, "no-issuer").severity, judgement.exit_code) == ("info", 0)
    assert judgement.certificates[0].chain.status == "unknown"


def test_a_ca_that_was_made_anew(tmp_path: Path) -> None:
    put(tmp_path / "ca.pem", make("ca", is_ca=True))
    put(tmp_path / "a.pem", make(ca=make("ca", is_ca=True)))
    judgement = judged(tmp_path)
    assert "another key" in finding(judgement, "wrong-issuer").text
    assert judgement.exit_code == 1


def test_of_two_cas_with_one_name_the_right_one_is_found(tmp_path: Path) -> None:
    authorities = [make("ca", is_ca=True) for _ in range(40)]
    put(tmp_path / "bundle.pem", *authorities)
    put(tmp_path / "a.pem", make(ca=authorities[-1]))
    assert judged(tmp_path).findings == ()


def test_an_issuer_that_is_no_ca(tmp_path: Path) -> None:
    root = make("root", is_ca=True)
    between = make("between", ca=root)
    put(tmp_path / "a.pem", make(ca=between), between, root)
    assert "CN=between is no CA" in finding(judged(tmp_path), "issuer-unfit").text


def test_a_chain_that_is_too_long(tmp_path: Path) -> None:
    root = make("root", is_ca=True, path_length=0)
    between = make("between", ca=root, is_ca=True)
    put(tmp_path / "a.pem", make(ca=between), between, root)
    assert "CN=root has path length 0" in finding(judged(tmp_path), "path-too-long").text


def test_authorities_that_signed_each_other(tmp_path: Path) -> None:
    one, two = make("one", is_ca=True), make("two", is_ca=True)
    crossed = [make("one", one.key, two, is_ca=True), make("two", two.key, one, is_ca=True)]
    put(tmp_path / "a.pem", make(ca=one), *crossed)
    judgement = judged(tmp_path)
    assert {chain.chain.status for chain in judgement.certificates} == {"unknown"}
    put(tmp_path / "root.pem", two)
    assert (
        next(one for one in judged(tmp_path).certificates if one.facts.subject == "CN=leaf").chain.status == "complete"
    )


def test_a_new_key_of_a_ca_that_the_old_one_signed(tmp_path: Path) -> None:
    old = make("ca", is_ca=True, path_length=0)
    rolled = make("ca", ca=old, is_ca=True, path_length=0)
    put(tmp_path / "a.pem", make(ca=rolled), rolled, old)
    judgement = judged(tmp_path)
    assert judgement.findings == ()
    assert next(one for one in judgement.certificates if one.facts.subject == "CN=leaf").chain.issuers == ("CN=ca",) * 2


def test_an_issuer_whose_name_is_encoded_otherwise(tmp_path: Path) -> None:
    openssl(tmp_path, f"ecparam -name prime256v1 -genkey -noout -out {tmp_path}/ca.key")
    openssl(tmp_path, "req -x509 -key ca.key -subj /CN=ca -days 900 -out ca.crt")
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    key = keys.load((tmp_path / "ca.key").read_bytes(), "ca.key")
    printable = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca", _type=x509.name._ASN1Type.PrintableString)])
    assert printable == ca.subject
    assert printable.public_bytes() != ca.subject.public_bytes()
    leaf = (
        x509.CertificateBuilder()
        .subject_name(issue.subject("leaf", ()))
        .issuer_name(printable)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=90))
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]
    )
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    assert "encoded otherwise" in finding(judged(tmp_path, now=later()), "issuer-encoding").text


def test_a_certificate_that_outlives_its_ca(tmp_path: Path) -> None:
    ca = make("ca", is_ca=True, life=(-1, 100))
    put(tmp_path / "a.pem", make(ca=ca, life=(-1, 200)), ca)
    assert finding(judged(tmp_path), "outlives-issuer").severity == "info"


# Kubeconfigs


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def config(users: dict[str, Any], clusters: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": "https://m1:6443", **body}} for name, body in clusters.items()
        ],
        "users": [{"name": name, "user": body} for name, body in users.items()],
        "contexts": [{"name": "c", "context": {"cluster": "kube", "user": "admin"}}],
        "current-context": "c",
    }


def embedded(directory: Path) -> dict[str, Any]:
    certificate, key = (directory / "admin.pem").read_bytes(), (directory / "admin-key.pem").read_bytes()
    ca = (directory / "kube-ca.pem").read_bytes()
    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    return config({"admin": user, "token": {"token": "x"}}, {"kube": {"certificate-authority-data": encoded(ca)}})


def write_config(path: Path, data: object, mode: int = 0o600) -> Path:
    # JSON is YAML, too.
    path.write_text(json.dumps(data, indent="\t" if path.suffix == ".json" else 2))
    path.chmod(mode)
    return path


def test_a_kubeconfig_that_holds_everything(pki: Path, tmp_path: Path) -> None:
    import yaml  # noqa: PLC0415

    for path in (tmp_path / "admin.conf", tmp_path / "config.json", tmp_path / "plain"):
        write_config(path, embedded(pki))
        if path.suffix == ".conf":
            path.write_text(yaml.safe_dump(embedded(pki)))
        judgement = judged(path)
        assert judgement.findings == ()
        places = [(spot.place.entry, spot.key_state) for one in judgement.certificates for spot in one.spots]
        assert places == [("user admin", "matches"), ("cluster kube", "")]
        assert judgement.certificates[0].spots[0].place.kubeconfig == str(path)
        assert judgement.kubeconfigs == 1


def test_a_series_is_there_once(pki: Path, tmp_path: Path) -> None:
    data = embedded(pki)
    data["users"] *= 2
    text = report.prometheus(judged(write_config(tmp_path / "config", data)))
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert sum('entry="user admin"' in line for line in lines) == 2


def test_a_kubeconfig_that_names_files(pki: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kube" / "cfg"
    elsewhere.mkdir(parents=True)
    admin = {"client-certificate": "../../pki/admin.pem", "client-key": str(pki / "admin-key.pem")}
    clusters = {"kube": {"certificate-authority": "../../pki/kube-ca.pem"}}
    path = write_config(elsewhere / "kubeconfig", config({"admin": admin}, clusters))
    judgement = judged(path)
    assert judgement.findings == ()
    assert [(one.facts.subject, one.spots[0].place.path) for one in judgement.certificates] == [
        ("CN=admin,O=system:masters", str(pki / "admin.pem")),
        ("CN=kube-ca", str(pki / "kube-ca.pem")),
    ]
    # Data comes before a file, as kubectl has it.
    admin["client-certificate-data"] = encoded((pki / "edwards.pem").read_bytes())
    write_config(path, config({"admin": admin}, clusters))
    assert kinds(judged(path)) == ["key-differs"]
    del admin["client-certificate-data"]
    (pki / "admin.pem").unlink()
    write_config(path, config({"admin": admin}, clusters))
    found = finding(judged(path), "reference")
    assert found.text == "user admin: names ../../pki/admin.pem, which does not exist"
    assert (found.path, found.severity) == (str(path), "critical")


def test_a_client_certificate_of_another_ca_is_fine(pki: Path, tmp_path: Path) -> None:
    data = embedded(pki)
    data["clusters"][0]["cluster"]["certificate-authority-data"] = encoded((pki / "etcd-ca.pem").read_bytes())
    judgement = judged(write_config(tmp_path / "config", data))
    assert kinds(judgement) == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("client-certificate-data", "no base64!", "user admin: client-certificate-data is no base64"),
        ("client-certificate-data", encoded(b"nothing"), "user admin: holds no certificate in PEM"),
        ("client-certificate-data", encoded(b"-----BEGIN CERTIFICATE-----\nMII"), "user admin: certificate 1 is cut"),
        ("client-key-data", encoded(b"-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n"), "is damaged"),
    ],
)
def test_damage_in_a_kubeconfig(pki: Path, tmp_path: Path, field: str, value: str, said: str) -> None:
    data = embedded(pki)
    data["users"][0]["user"][field] = value
    judgement = judged(write_config(tmp_path / "config", data))
    assert said in finding(judgement, "damaged").text
    assert judgement.exit_code == 2


def test_a_kubeconfig_that_others_may_read(pki: Path, tmp_path: Path) -> None:
    assert finding(judged(write_config(tmp_path / "config", embedded(pki), 0o644)), "exposed-key").severity == "warning"


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        ("kind: Config\nusers: [\ncertificate-authority: 1", True),
        ("kind: Config\nusers: [{{ x }}\ncertificate-authority: 1", False),
        ("kind: ConfigMap\nusers: [\ncertificate-authority: 1", False),
        ("kind: Config\nusers: certificate\nclusters: 5", False),
        (
            "kind: Config\nusers:\n- 5\n- name: x\n- user: []\n  name: [1]\n- user: {client-certificate: [1]}",
            True,
        ),
        (
            "kind: Config\nusers:\n- {user: {client-certificate: '\\0'}}\n- {user: {client-certificate: \"\\0\"}}\n",
            True,
        ),
        # The parser in C overflows its stack over this.
        ("kind: Config\ncertificate users:\n" + "[" * 100000, True),
        ("kind: Config\nclusters: certificate\nx: " + "- " * 100000, True),
        ('{"kind": "Config", "users": [{"user": {"client-certificate":' + '{"a":' * 100000, True),
    ],
)
def test_odd_kubeconfigs(tmp_path: Path, text: str, *, damaged: bool) -> None:
    (tmp_path / "config").write_text(text)
    judgement = judged(tmp_path)
    assert bool({"damaged", "reference"} & set(kinds(judgement))) == damaged
    report.table(judgement)


# What lies in directories


@contextlib.contextmanager
def bound_socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        yield


def test_what_is_no_file_does_not_hold_it_up(pki: Path) -> None:
    os.mkfifo(pki / "pipe.pem")
    (pki / "loop").symlink_to(pki)
    (pki / "self.pem").symlink_to("self.pem")
    (pki / "null.crt").symlink_to("/dev/null")
    with (pki / "program").open("wb") as stream:
        stream.write(b"\x7fELF\0\0")
        stream.truncate(50 * 2**20)
    with bound_socket(pki / "socket"):
        judgement = judged(pki)
    # The link to itself leads nowhere.
    assert kinds(judgement, notes=True) in (["unreadable"], ["dangling"])
    assert judged(pki / "pipe.pem").state == "unknown"
    assert finding(judged(pki / "pipe.pem"), "not-a-file").text == "is no file"


def test_large_files_are_named_and_not_read(pki: Path) -> None:
    with (pki / "log").open("wb") as stream:
        stream.write(b"not much\n" * 2**21 + b"-----BEGIN CERTIFICATE-----\n")
    judgement = judged(pki)
    assert (finding(judgement, "too-large").severity, judgement.exit_code) == ("info", 0)
    assert finding(judged(pki / "log"), "too-large").severity == "unknown"


def test_links_to_files_are_followed_and_those_to_directories_are_not(pki: Path, tmp_path: Path) -> None:
    place = tmp_path / "links"
    place.mkdir()
    (place / "server.pem").symlink_to(pki / "server.pem")
    (place / "all").symlink_to(pki)
    assert [spot.place.path for one in judged(place).certificates for spot in one.spots] == [str(place / "server.pem")]
    # ... unless it is what was asked for.
    assert len(judged(place / "all").certificates) == len(judged(pki).certificates)
    (pki / "server.pem").unlink()
    assert finding(judged(place), "dangling").severity == "warning"


def test_what_the_kubelet_left_behind_is_not_in_use(tmp_path: Path) -> None:
    old, new = make("old", life=(-300, -2)), make("new")
    put(tmp_path / "kubelet-client-2026-01-01-10-00-00.pem", old, key=old.key)
    put(tmp_path / "kubelet-client-2026-09-01-10-00-00.pem", new, key=new.key)
    link = tmp_path / "kubelet-client-current.pem"
    link.symlink_to(tmp_path / "kubelet-client-2026-09-01-10-00-00.pem")
    judgement = judged(tmp_path)
    assert judgement.exit_code == 0
    assert kinds(judgement, notes=True) == ["expired", "replaced"]
    assert "CN=new ends in" in report.table(judgement).splitlines()[0]
    assert re.search(r"^replaced +-2 ", report.table(judgement), re.MULTILINE)
    metrics = report.prometheus(judgement)
    assert re.search(r'2026-01-01-10-00-00\.pem".*replaced="true"', metrics)
    assert re.search(r'kubelet-client-current\.pem".*replaced="false"', metrics)
    # Should it still be the one in use, it matters.
    link.unlink()
    link.symlink_to("kubelet-client-2026-01-01-10-00-00.pem")
    assert judged(tmp_path).exit_code == 2


def test_ignoring(pki: Path) -> None:
    (pki / "old").mkdir()
    put(pki / "old" / "a.pem", make(life=(-5, -1)))
    put(pki / "b.pem.bak", make(life=(-5, -1)))
    assert judged(pki).exit_code == 2
    assert judged(pki, ignore=("old", "*.bak")).findings == ()
    assert judged(pki, ignore=(f"{pki}/old/*", "*.bak")).findings == ()


def test_other_file_systems_are_not_entered() -> None:
    judgement = judged(Path("/dev"))
    assert any(one.kind == "elsewhere" and one.path == "/dev/pts" for one in judgement.others)


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A directory that others than root may enter, and being one of them."""
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def test_what_may_not_be_read_is_said() -> None:
    with as_nobody() as place:
        one = make()
        put(place / "server.pem", one, mode=0o644)
        (place / "server-key.pem").write_bytes(keys.pem(one.key))
        (place / "server-key.pem").chmod(0o600)
        put(place / "kubelet-client-current.pem", one, mode=0o600)
        (place / "private").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            judgement = judged(place)
            named = judged(place / "server-key.pem")
        finally:
            os.seteuid(0)
    found = {Path(one.path).name: (one.kind, one.severity) for one in judgement.others}
    assert found == {
        "server-key.pem": ("unreadable-key", "info"),
        "kubelet-client-current.pem": ("unreadable", "unknown"),
        "private": ("unreadable", "unknown"),
    }
    assert judgement.exit_code == 3
    assert finding(named, "unreadable").severity == "unknown"


def test_a_path_is_looked_at_once(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pki.parent)
    assert judged(pki, Path("pki"), pki / "server.pem").places == judged(pki).places


# Reports

_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{{{_LABEL}(?:,{_LABEL})*\}})? (-?\d+)")


def samples(text: str) -> dict[str, dict[str, int]]:
    """Metrics by name and labels; strict about Prometheus' text format 0.0.4."""
    assert text.endswith("\n")
    text.encode()
    found: dict[str, dict[str, int]] = {}
    helped = current = ""
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(r"# HELP ([a-z_]+) ([^\\\n]+)", line):
            helped = match[1]
            assert helped not in found
        elif match := re.fullmatch(r"# TYPE ([a-z_]+) gauge", line):
            current = match[1]
            assert current == helped
            found[current] = {}
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == current
            labels = sample[2] or ""
            assert labels not in found[current]
            found[current][labels] = int(sample[3])
    return found


def test_metrics(pki: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "config", embedded(pki))
    judgement = judged(pki, tmp_path / "config")
    found = samples(report.prometheus(judgement))
    ends = found["kubepki_certificate_not_after_timestamp_seconds"]
    assert len(ends) == judgement.places == len(found["kubepki_certificate_not_before_timestamp_seconds"])
    certificate = x509.load_pem_x509_certificate((pki / "server.pem").read_bytes())
    (server,) = [value for labels, value in ends.items() if f'path="{pki}/server.pem"' in labels]
    assert server == certificate.not_valid_after_utc.timestamp()
    assert found["kubepki_check_findings"] == {f'{{severity="{one}"}}': 0 for one in check.SEVERITIES}
    assert found["kubepki_check_exit_code"] == {"": 0}
    assert found["kubepki_check_timestamp_seconds"] == {"": int(NOW.timestamp())}


def test_metrics_when_nothing_is_there(tmp_path: Path) -> None:
    found = samples(report.prometheus(judged(tmp_path)))
    assert found["kubepki_check_exit_code"] == {"": 3}
    assert "kubepki_certificate_not_after_timestamp_seconds" not in found


def test_odd_paths_and_subjects_do_no_harm(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b'a"b\\c\nd\xffe\x1b[31mf\xe2\x80\xaeg')
    directory.mkdir()
    one = make('q"\\\n\x1b[2J\u202e', hosts=("m1",))
    put(directory / "a.pem", one)
    judgement = judged(tmp_path)
    assert len(samples(report.prometheus(judgement))["kubepki_certificate_not_after_timestamp_seconds"]) == 1
    for text in (report.table(judgement), report.as_json(judgement), report.prometheus(judgement)):
        assert not set(text) & {"\x1b", "\u202e"}
        text.encode()
    assert json.loads(report.as_json(judgement))["certificates"][0]["path"].endswith("a.pem")


def test_the_table_is_narrow_and_aligned(pki: Path, tmp_path: Path) -> None:
    deep = pki / ("directory-with-a-long-name-" * 4) / ("another-" * 12)
    deep.mkdir(parents=True)
    long = make(
        "system:node:" + "a" * 52,
        life=(-5, -1),
        hosts=(
            "a-name-of-a-host-that-is-long." * 8 + " x",
            "",
        ),
    )
    put(deep / "a.pem", long)
    (deep / "b.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    write_config(tmp_path / "config", embedded(pki), 0o644)
    lines = report.table(judged(tmp_path)).splitlines()
    assert max(map(len, lines)) <= 100
    header = next(line for line in lines if line.startswith("STATE"))
    rows = [line for line in lines if re.match(r"(ok|critical) +-?\d", line)]
    assert len(rows) == 7
    for row in rows:
        assert row[header.index("ENDS") :][:10].count("-") == 2
        assert row[header.index("DAYS") + 4 :][:2] == "  "
        assert row[header.index("SUBJECT") - 1] == row[header.index("ISSUER") - 1] == " "
    assert lines[0].startswith("CRITICAL: 2 critical, 3 warning; CN=system:node:")
    assert re.fullmatch(
        r"7 certificates in 11 places, 8 files with private keys, 1 kubeconfig, \d+ files looked at", lines[-1]
    )


def test_json(pki: Path) -> None:
    (pki / "damaged.pem").write_text("x")
    document = json.loads(report.as_json(judged(pki)))
    assert (document["state"], document["exit_code"], document["counts"]["findings"]["critical"]) == ("critical", 2, 1)
    assert document["findings"][0]["path"] == str(pki / "damaged.pem")
    (server,) = [one for one in document["certificates"] if one["path"] == str(pki / "server.pem")]
    assert server["sans"] == [
        {"type": "dns", "value": "m1"},
        {"type": "ip", "value": "127.0.0.1"},
        {"type": "ip", "value": "::1"},
    ]
    assert server["extended_usages"] == ["server auth", "client auth"]
    assert server["key"] == {"path": str(pki / "server-key.pem"), "state": "matches"}
    assert server["chain"] == {"status": "complete", "issuers": ["CN=etcd-ca"]}
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-fingerprint", "-sha256", "-in", pki / "server.pem"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    serial, fingerprint = (line.partition("=")[2].replace(":", "").lower() for line in text.splitlines())
    assert (int(server["serial"], 16), server["fingerprint_sha256"]) == (int(serial, 16), fingerprint)
    assert [one["days_left"] for one in document["certificates"]] == sorted(
        one["days_left"] for one in document["certificates"]
    )


# The command


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kubepki", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


def test_exit_codes(pki: Path, tmp_path: Path) -> None:
    assert run(pki).returncode == 0
    assert run(pki, "--warn", "400").returncode == 1
    assert monitor.main([str(pki), "--warn", "400", "--critical", "400"]) == 2
    assert monitor.main([str(pki), "--warn", "0.5", "--critical", "0"]) == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    assert monitor.main([str(empty)]) == 3
    missing = run(pki, tmp_path / "missing")
    assert missing.returncode == 3
    assert "does not exist" in missing.stdout
    assert monitor.main([""]) == 3
    assert monitor.main(["-h"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--frobnicate", "x"),
        ("x", "--warn", "many"),
        ("x", "--warn", "nan"),
        ("x", "--warn", "-3"),
        ("x", "--warn", "7", "--critical", "30"),
        ("x", "--format", "xml"),
        ("x", "--output", "/dev/null"),
        ("x", "--output", "/nowhere/at/all"),
        ("x", "--output", "/"),
    ],
)
def test_wrong_use_is_unknown_and_one_message(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *arguments]) == 3
    said = capsys.readouterr().err
    assert said.startswith("kubepki: check: ")
    assert len(said.splitlines()) <= 2
    assert Path("/dev/null").is_char_device()


def test_output_is_replaced_as_a_whole_and_may_be_read(pki: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "kubepki.prom"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o600)
    before = os.umask(0o077)
    try:
        assert monitor.main([str(pki), "--format", "prometheus", "--output", str(target)]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert list(target.parent.iterdir()) == [target]
    samples(target.read_text())


def test_a_collector_never_reads_a_half(pki: Path, tmp_path: Path) -> None:
    target = tmp_path / "kubepki.prom"
    arguments = ["check", str(pki), "--format", "prometheus", "--output", str(target)]
    cli.main(arguments)
    with subprocess.Popen(
        [sys.executable, "-c", f"from kubepki import cli\nfor _ in range(15): cli.main({arguments})"]
    ) as writer:
        looks = 0
        while writer.poll() is None and looks < 100000:
            assert "kubepki_check_timestamp_seconds" in samples(target.read_text())
            looks += 1
    assert looks > 10


def test_no_colours_but_on_a_terminal(pki: Path) -> None:
    assert "\x1b" not in run(pki).stdout

    def on_terminal(**environment: str) -> bytes:
        leader, follower = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "kubepki", "check", str(pki)], stdout=follower, env=os.environ | environment
        ) as process:
            os.close(follower)
            fcntl.fcntl(leader, fcntl.F_SETFL, os.O_NONBLOCK)
            text = b""
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    try:
                        text += os.read(leader, 65536)
                        continue
                    except OSError as error:
                        if isinstance(error, BlockingIOError):
                            raise
                        break
                time.sleep(0.02)
            assert process.wait(10) == 0
        os.close(leader)
        return text

    coloured = on_terminal()
    assert b"\x1b[32mok      \x1b[0m" in coloured
    assert re.sub(rb"\x1b\[\d+m", b"", coloured).count(b"\nok      ") == 6
    assert b"\x1b" not in on_terminal(NO_COLOR="1")


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    put(tmp_path / "a.pem", make("zürich"))
    reply = run(tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (reply.returncode, reply.stderr) == (0, "")
    assert "z\\xfcrich" in reply.stdout


# Anything at all


def _csr(key: PrivateKey) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(issue.subject("asking", ()))
    return builder.sign(key, keys.digest(key))


def _crl(ca: issue.Issuer) -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
    revoked = x509.RevokedCertificateBuilder().serial_number(0x1234).revocation_date(NOW).build()
    builder = builder.last_update(NOW).next_update(NOW + timedelta(days=1)).add_revoked_certificate(revoked)
    return builder.sign(ca.key, keys.digest(ca.key))


def _seeds() -> list[bytes]:
    ca = make("ca", is_ca=True)
    leaf = make(ca=ca, hosts=("m1", ""))
    data = config(
        {"admin": {"client-certificate-data": encoded(pem(leaf)), "client-key-data": encoded(keys.pem(leaf.key))}},
        {"kube": {"certificate-authority-data": encoded(pem(ca)), "certificate-authority": "ca.pem"}},
    )
    return [
        pem(leaf, ca) + keys.pem(leaf.key),
        leaf.certificate.public_bytes(Encoding.DER),
        _csr(leaf.key).public_bytes(Encoding.PEM) + _crl(ca).public_bytes(Encoding.PEM),
        json.dumps(data).encode(),
        json.dumps(data, indent=1).replace('"', "").encode(),
    ]


SEEDS = _seeds()
FILE_NAMES = st.sampled_from(["a.pem", "a.crt", "a.der", "a.key", "config", "kubelet-client-current.pem"])


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 12))] = draw(st.binary(max_size=12))
    return bytes(content)


def _survives(directory: Path, content: bytes, name: str) -> None:
    path = directory / name
    path.write_bytes(content)
    try:
        judgement = judged(directory)
        report.table(judgement).encode()
        json.loads(report.as_json(judgement))
        samples(report.prometheus(judgement))
        assert cli.main(["show", str(path)]) in (0, 1)
        assert cli.main(["diff", str(path), str(path)]) in (0, 2)
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=damaged_files(), name=FILE_NAMES)
def test_damaged_files_are_findings_and_never_errors(scratch: Path, content: bytes, name: str) -> None:
    _survives(scratch, content, name)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300), name=FILE_NAMES)
def test_any_bytes_are_no_error(scratch: Path, content: bytes, name: str) -> None:
    _survives(scratch, content, name)


@settings(max_examples=100, deadline=None)
@given(
    body=st.binary(max_size=200),
    label=st.sampled_from(["CERTIFICATE", "PRIVATE KEY", "X509 CRL", "CERTIFICATE REQUEST"]),
)
def test_any_block_is_no_error(scratch: Path, body: bytes, label: str) -> None:
    text = f"-----BEGIN {label}-----\n{encoded(body)}\n-----END {label}-----\n".encode()
    _survives(scratch, text, "a.pem")
    assert contents.read(text, "a.pem").problems or contents.read(text, "a.pem").keys


@given(st.text(max_size=40))
def test_the_go_rule_refuses_whatever_is_no_name(text: str) -> None:
    try:
        named = names.parse(text).kind == "dns"
    except ValueError:
        named = False
    assert not (named and check._refused(text))


def test_every_finding_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "pki-check.md").read_text()
    listed = page.partition("### What it finds")[2].partition("\nChains")[0]
    documented = {
        word
        for line in listed.splitlines()
        for word in re.findall(r"`([a-z-]+)`", line.split("|")[1 if "|" in line else 0])
    }
    source = Path(str(check.__file__)).read_text()
    kinds_ = set(re.findall(r'Finding\(\s*"\w+",\s*"([a-z-]+)"', source)) | set(check._OF_TROUBLE) | {"ends-soon"}
    assert documented == kinds_
