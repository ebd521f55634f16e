from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from test_topology import build

from kubepki import cli, issue, keys, reconcile, rules, spec, verify
from kubepki.issue import Template
from kubepki.keys import PrivateKey
from kubepki.rules import RULES, Finding
from kubewright import certificates

NOW = datetime.now(UTC)
Data = dict[str, Any]


def good() -> Data:
    """What kubewright asks for, its administrator apart: that one is a warning by design."""
    data = certificates.spec(build())
    node = {"name": "kubelet", "ca": "kubernetes", "cn": "system:node:node01", "o": ["system:nodes"]}
    data["certificates"] += [
        {**node, "name": "kubelet-client", "profile": "client", "role": "kubelet-client"},
        {**node, "name": "kubelet-server", "profile": "server", "role": "kubelet-server", "hosts": ["node01"]},
    ]
    by_name(data)["admin"]["o"] = ["example:admins"]
    return data


def by_name(data: Data) -> dict[str, Data]:
    return {one["name"]: one for one in data["certificates"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rules") / "pki"
    reconcile.apply(spec.parse(good()), directory, NOW)
    return directory


@pytest.fixture
def pki(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pki"))


def judged(data: Data, directory: Path) -> list[Finding]:
    wanted = spec.parse(data)
    # Some are issued by openssl, which has no other now than its own.
    return rules.judge(wanted, verify.read(wanted, directory), NOW + timedelta(minutes=30))


def found(data: Data, directory: Path) -> list[tuple[str, str]]:
    return [(finding.rule, finding.subject) for finding in judged(data, directory)]


def test_the_set_of_a_cluster_breaks_no_rule(made: Path) -> None:
    assert judged(good(), made) == []


def test_the_administrator_of_kubewright_is_the_one_warning(pki: Path) -> None:
    data = good()
    by_name(data)["admin"]["o"] = ["system:masters"]
    reconcile.apply(spec.parse(data), pki, NOW)
    assert found(data, pki) == [("system-masters", "admin")]


# --- What a specification asks for, issued by kubepki as it was asked.

ASKED: list[tuple[str, str, Data, str]] = [
    # rule, certificate, changes to it, words of the message
    ("etcd-server-client-auth", "etcd-server-node01", {"profile": "server"}, "gateway"),
    ("usage-missing", "etcd-peer-node01", {"profile": "server"}, "client auth"),
    ("usage-missing", "etcd-server-node01", {"profile": "client"}, "server auth"),
    ("usage-missing", "apiserver", {"profile": "client"}, "as apiserver it needs server auth"),
    ("usage-missing", "apiserver-kubelet-client", {"profile": "server", "hosts": ["x"]}, "client auth"),
    ("etcd-peer-address", "etcd-peer-node01", {"hosts": ["node01"]}, "DNS"),
    (
        "apiserver-names",
        "apiserver",
        {
            "hosts": [
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.svc.cluster.local",
                "localhost",
                "127.0.0.1",
                "10.0.0.1",
            ]
        },
        "kubernetes.svc.cluster.local is no name of the API",
    ),
    (
        "apiserver-service-address",
        "apiserver",
        {
            "hosts": [
                "kubernetes",
                "*.default",
                "*.default.svc",
                "*.default.svc.cluster.local",
                "localhost",
                "127.0.0.1",
            ]
        },
        "10.0.0.1, the first address of 10.0.0.0/24",
    ),
    (
        "apiserver-localhost",
        "apiserver",
        {"hosts": ["kubernetes", "*.default", "*.default.svc", "*.default.svc.cluster.local", "10.0.0.1"]},
        "localhost, 127.0.0.1",
    ),
    ("user-name", "kube-scheduler", {"cn": "system:system:kube-scheduler"}, "stands there twice"),
    ("user-name", "kube-controller-manager", {"cn": "kube-controller-manager"}, "system:kube-controller-manager"),
    ("user-name", "kube-proxy", {"cn": "kube-proxy"}, "system:kube-proxy"),
    ("doubled-prefix", "kube-scheduler", {"o": ["system:system:kube-scheduler"]}, "twice"),
    ("kubelet-user", "kubelet-client", {"cn": "system:node:Node01"}, "lower case: system:node:node01"),
    ("kubelet-user", "kubelet-client", {"cn": "node01"}, "system:node:NAME"),
    ("kubelet-user", "kubelet-client", {"o": ["system:node"]}, "group system:nodes"),
    ("kubelet-client-names", "kubelet-client", {"hosts": ["node01"]}, "client"),
    ("kubelet-server-user", "kubelet-server", {"cn": "node01"}, "system:node:NAME"),
    ("front-proxy-name", "front-proxy-client", {"cn": "aggregator"}, "aggregator"),
    ("system-masters", "apiserver-kubelet-client", {"o": ["system:masters"]}, "rules the cluster"),
    ("front-proxy-ca", "front-proxy-client", {"ca": "kubernetes"}, "ordinary clients"),
    ("front-proxy-ca", "kube-proxy", {"ca": "front-proxy"}, "whom it comes from"),
    ("role-ca", "etcd-client", {"ca": "kubernetes"}, "all rights"),
    ("role-ca", "apiserver", {"ca": "kubelet-signer"}, "kubelet-signer"),
]


@pytest.mark.parametrize(("rule", "name", "changes", "words"), ASKED)
def test_a_wrong_wish_is_found_as_what_it_is(rule: str, name: str, changes: Data, words: str, pki: Path) -> None:
    data = good()
    by_name(data)[name].update(changes)
    reconcile.apply(spec.parse(data), pki, NOW)
    findings = judged(data, pki)
    assert [(one.rule, one.subject) for one in findings] == [(rule, name)]
    assert words in findings[0].message
    assert "kubepki apply" in findings[0].remedy


def test_both_families_of_services_need_their_first_address(pki: Path) -> None:
    data = good()
    data["cluster"]["service_cidrs"] = ["10.0.0.0/24", "fd00:1::/112"]
    (finding,) = judged(data, pki)
    assert finding.rule == "apiserver-service-address"
    assert "fd00:1::1" in finding.message
    by_name(data)["apiserver"]["hosts"] += ["fd00:1:0:0::1"]
    reconcile.apply(spec.parse(data), pki, NOW)
    assert judged(data, pki) == []


def test_without_networks_of_services_it_says_what_it_did_not_look_at(pki: Path) -> None:
    data = good()
    del data["cluster"]["service_cidrs"]
    assert found(data, pki) == [("service-networks-unknown", "apiserver")]


def test_another_domain_needs_another_name(pki: Path) -> None:
    data = good()
    data["cluster"]["dns_domain"] = "k8s.example.org"
    (finding,) = judged(data, pki)
    assert finding.message == "lacks kubernetes.default.svc.k8s.example.org"


# --- What kubepki does not issue: certificates from elsewhere, files that somebody changed.

Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def authority(directory: Path, name: str) -> tuple[x509.Certificate, PrivateKey]:
    certificate = issue.load((directory / f"{name}-ca.pem").read_bytes(), name)
    return certificate, keys.load((directory / f"{name}-ca-key.pem").read_bytes(), name)


def write(directory: Path, stem: str, certificate: x509.Certificate, key: Any = None) -> None:
    (directory / f"{stem}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    if key is not None:
        path = directory / f"{stem}-key.pem"
        path.write_bytes(keys.pem(key))
        path.chmod(0o600)


def built(
    directory: Path,
    name: str,
    *,
    key: Any = None,
    subject: x509.Name | None = None,
    issuer: x509.Name | None = None,
    by: tuple[x509.Certificate, PrivateKey] | None = None,
    without: Iterable[type[x509.ExtensionType]] = (),
    extra: Iterable[tuple[x509.ExtensionType, bool]] = (),
    begin: datetime = NOW - timedelta(minutes=5),
    end: datetime | None = None,
    digest: Any = None,
    serial: int | None = None,
) -> None:
    """Sign a certificate of the set anew, with something changed."""
    wanted = {one.name: one for one in spec.parse(good()).certificates}[name]
    ca, ca_key = by or authority(directory, wanted.ca)
    key = key or ec.generate_private_key(ec.SECP256R1())
    like = issue.load((directory / f"{name}.pem").read_bytes(), name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.subject if subject is None else subject)
        .issuer_name(issuer or ca.subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end or begin + timedelta(days=365))
    )
    new = list(extra)
    for extension in like.extensions:
        value = extension.value
        replaced = [one for one in new if type(one[0]) is type(value)]
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        if isinstance(value, x509.AuthorityKeyIdentifier):
            value = issue.key_identifier(ca)
        if not replaced and type(value) not in tuple(without):
            builder = builder.add_extension(value, extension.critical)
    for value, critical in new:
        builder = builder.add_extension(value, critical)
    write(directory, name, builder.sign(ca_key, digest or keys.digest(ca_key)), key)


def ca_again(
    directory: Path, name: str, *, without: Any = (), extra: Any = (), bits: Any = None, **changes: Any
) -> None:
    """The same CA, of the same key and name, with something changed; what it issued stays valid."""
    ca, key = authority(directory, name)
    template = Template(
        subject=ca.subject,
        key_usages=frozenset({"digital_signature", "key_cert_sign", "crl_sign"} if bits is None else bits),
        extended_usages=changes.pop("extended_usages", ()),
        not_before=NOW - timedelta(minutes=5),
        not_after=ca.not_valid_after_utc,
        is_ca=True,
    )
    template = template._replace(**changes)
    made = issue.sign(template, key.public_key(), key)
    if without or extra:
        builder = (
            x509.CertificateBuilder()
            .subject_name(ca.subject)
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(made.not_valid_before_utc)
            .not_valid_after(made.not_valid_after_utc)
        )
        for extension in made.extensions:
            if type(extension.value) not in without:
                builder = builder.add_extension(extension.value, extension.critical)
        for value, critical in extra:
            builder = builder.add_extension(value, critical)
        made = builder.sign(key, keys.digest(key))
    write(directory, f"{name}-ca", made)
    write(directory, f"{name}-ca-bundle", made)


def ca_anew(directory: Path, name: str, *, key: PrivateKey | None = None, cn: str = "", **changes: Any) -> None:
    """Another CA under the name, and its certificates from it."""
    ca, _ = authority(directory, name)
    wanted = spec.parse(good()).authorities[name]
    template = issue.for_authority(wanted, NOW)
    subject = issue.subject(cn, ()) if cn else ca.subject
    key = key or keys.generate(wanted.key)
    made = issue.sign(template._replace(subject=subject, **changes), key.public_key(), key)
    write(directory, f"{name}-ca", made, key)
    write(directory, f"{name}-ca-bundle", made)
    reconcile.apply(spec.parse(good()), directory, NOW)


def names_of(*values: x509.GeneralName) -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.SubjectAlternativeName(values), False)]


def intermediate(directory: Path, *, length: int | None, bundled: bool) -> None:
    """The CA of the front proxy below a root of its own."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    wanted = spec.parse(good()).authorities["front-proxy"]
    template = issue.for_authority(wanted, NOW - timedelta(hours=1))._replace(
        path_length=length,
        subject=issue.subject("root", ()),
        not_after=NOW + timedelta(days=3660 - 20),
    )
    root = issue.sign(template, root_key.public_key(), root_key)
    _, key = authority(directory, "front-proxy")
    below = issue.sign(
        issue.for_authority(spec.parse(good()).authorities["front-proxy"], NOW), key.public_key(), root_key, root
    )
    write(directory, "front-proxy-ca", below)
    pem = below.public_bytes(Encoding.PEM) + (root.public_bytes(Encoding.PEM) if bundled else b"")
    (directory / "front-proxy-ca-bundle.pem").write_bytes(pem)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def encrypt(path: Path) -> None:
    key = keys.load(path.read_bytes(), str(path))
    path.write_bytes(keys.pem(key, b"secret"))


def swap_keys(directory: Path, one: str, other: str) -> None:
    a, b = directory / f"{one}-key.pem", directory / f"{other}-key.pem"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def printable(name: x509.Name) -> x509.Name:
    return x509.Name([x509.NameAttribute(one.oid, one.value, _ASN1Type.PrintableString) for one in name])


def not_of_its_issuer(directory: Path) -> None:
    """Signed by a CA of the same name: what a CA that was made again leaves behind."""
    ca, _ = authority(directory, "kubernetes")
    other = ec.generate_private_key(ec.SECP256R1())
    template = issue.for_authority(spec.parse(good()).authorities["kubernetes"], NOW)
    built(directory, "kube-proxy", by=(issue.sign(template, other.public_key(), other), other))
    assert issue.load((directory / "kube-proxy.pem").read_bytes(), "x").issuer == ca.subject


def copied_key(directory: Path, source: str, name: str) -> None:
    built(directory, name, key=keys.load((directory / source).read_bytes(), source))


def token_key(directory: Path, source: str) -> None:
    key = keys.load((directory / source).read_bytes(), source)
    (directory / "service-account.key").write_bytes(keys.pem(key))
    (directory / "service-account.pub").write_bytes(keys.public_pem(key))


def replaced(directory: Path, name: str) -> None:
    """In the middle of a rotation: the CA is new, what it issued is old."""
    for file in (f"{name}-ca.pem", f"{name}-ca-key.pem"):
        shutil.copy(directory / file, directory / file.replace("-ca", "-ca-previous"))
    old = (directory / f"{name}-ca.pem").read_bytes()
    ca_anew_only(directory, name)
    (directory / f"{name}-ca-bundle.pem").write_bytes((directory / f"{name}-ca.pem").read_bytes() + old)
    (directory / f"{name}-ca-rotation.json").write_text("{}")


def ca_anew_only(directory: Path, name: str) -> None:
    wanted = spec.parse(good()).authorities[name]
    key = keys.generate(wanted.key)
    write(directory, f"{name}-ca", issue.sign(issue.for_authority(wanted, NOW), key.public_key(), key), key)


def append(directory: Path, name: str, source: str) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes() + (directory / source).read_bytes())


def same_serial(directory: Path) -> None:
    serial = issue.load((directory / "kube-scheduler.pem").read_bytes(), "x").serial_number
    built(directory, "kube-proxy", serial=serial)


def without_bundle_of_the_old(directory: Path) -> None:
    replaced(directory, "front-proxy")
    shutil.copy(directory / "front-proxy-ca.pem", directory / "front-proxy-ca-bundle.pem")
    reconcile.apply(spec.parse(good()), directory, NOW)


def swap_ca_key(directory: Path) -> None:
    shutil.copy(directory / "kube-proxy-key.pem", directory / "etcd-ca-key.pem")


def next_key(directory: Path) -> Path:
    return Path(shutil.copy(directory / "etcd-ca-key.pem", directory / "etcd-ca-next-key.pem"))


def pipe(path: Path) -> None:
    """Nobody writes into it: who opens it as if it were a file waits for ever."""
    path.unlink()
    os.mkfifo(path, 0o600)


def foreign_pub(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (directory / "service-account.pub").write_bytes(keys.public_pem(key))


def expired_ca(directory: Path) -> None:
    ca_anew_only(directory, "front-proxy")
    _, key = authority(directory, "front-proxy")
    begin = NOW - timedelta(days=400)
    wanted = spec.parse(good()).authorities["front-proxy"]
    template = issue.for_authority(wanted, begin)._replace(not_after=NOW - timedelta(days=1))
    write(directory, "front-proxy-ca", issue.sign(template, key.public_key(), key))
    shutil.copy(directory / "front-proxy-ca.pem", directory / "front-proxy-ca-bundle.pem")
    built(directory, "front-proxy-client", begin=begin, end=NOW - timedelta(days=2))


def sha1(directory: Path) -> None:
    """By openssl: cryptography signs with SHA-1 no more."""
    proxy, ca = directory / "kube-proxy", directory / "kubernetes-ca"
    request, extensions = directory / "x.csr", directory / "x.cnf"
    extensions.write_text("keyUsage=digitalSignature\nextendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n")
    openssl("req", "-new", "-key", f"{proxy}-key.pem", "-subj", "/CN=system:kube-proxy", "-out", str(request))
    signing = ["x509", "-req", "-sha1", "-in", str(request), "-extfile", str(extensions), "-out", f"{proxy}.pem"]
    openssl(*signing, "-CA", f"{ca}.pem", "-CAkey", f"{ca}-key.pem", "-set_serial", "77", "-days", "365")


EKU = x509.ExtendedKeyUsage
OID = x509.ObjectIdentifier
CLIENT, SERVER, ANY = OID("1.3.6.1.5.5.7.3.2"), OID("1.3.6.1.5.5.7.3.1"), OID("2.5.29.37.0")
SAN, AKI, KU, BC = (
    x509.SubjectAlternativeName,
    x509.AuthorityKeyIdentifier,
    x509.KeyUsage,
    x509.BasicConstraints,
)
FOREIGN = AKI(b"0" * 20, None, None)
DNS = x509.DNSName

BROKEN: list[tuple[str, str, Callable[[Path], object], str]] = [
    # rule, subject, what is done to the directory, words of the message
    ("missing", "kube-proxy", lambda d: (d / "kube-proxy.pem").unlink(), "missing"),
    (
        "damaged",
        "kube-proxy",
        lambda d: (d / "kube-proxy.pem").write_text("-----BEGIN CERTIFICATE-----\nxx"),
        "damaged",
    ),
    ("damaged", "front-proxy-ca", lambda d: (d / "front-proxy-ca.pem").write_text(""), "empty"),
    ("key-missing", "kube-proxy", lambda d: (d / "kube-proxy-key.pem").unlink(), "missing"),
    ("key-damaged", "kube-proxy", lambda d: (d / "kube-proxy-key.pem").write_text("x"), "no private key"),
    ("key-mode", "kube-proxy", lambda d: (d / "kube-proxy-key.pem").chmod(0o640), "0640"),
    ("key-mode", "etcd-ca", lambda d: (d / "etcd-ca-key.pem").chmod(0o644), "0644"),
    ("key-encrypted", "etcd-server-node01", lambda d: encrypt(d / "etcd-server-node01-key.pem"), "encrypted"),
    ("key-mode", "etcd-ca", lambda d: next_key(d).chmod(0o644), "next-key.pem has mode 0644"),
    ("key-mismatch", "etcd-ca", swap_ca_key, "not the key"),
    ("key-missing", "service-account", lambda d: (d / "service-account.key").unlink(), "missing"),
    ("key-damaged", "service-account", lambda d: (d / "service-account.key").write_text("x"), "no private key"),
    ("key-damaged", "service-account", lambda d: pipe(d / "service-account.key"), "no ordinary file"),
    ("damaged", "kube-proxy", lambda d: pipe(d / "kube-proxy.pem"), "no ordinary file"),
    ("key-encrypted", "service-account", lambda d: encrypt(d / "service-account.key"), "encrypted"),
    ("key-mode", "service-account", lambda d: (d / "service-account.key").chmod(0o644), "0644"),
    ("key-mismatch", "service-account", lambda d: (d / "service-account.pub").unlink(), "missing"),
    ("key-mismatch", "service-account", lambda d: (d / "service-account.pub").write_text("x"), "damaged"),
    ("key-mismatch", "service-account", foreign_pub, "not the public half"),
    ("ca-key-missing", "etcd-ca", lambda d: (d / "etcd-ca-key.pem").unlink(), "missing"),
    ("ca-key-password", "etcd-ca", lambda d: encrypt(d / "etcd-ca-key.pem"), "encrypted"),
    ("ca-one-certificate", "etcd-ca", lambda d: append(d, "etcd-ca.pem", "front-proxy-ca.pem"), "holds 2"),
    ("bundle-missing", "etcd-ca", lambda d: (d / "etcd-ca-bundle.pem").unlink(), "missing"),
    ("bundle", "etcd-ca", lambda d: (d / "etcd-ca-bundle.pem").write_text(""), "empty"),
    ("bundle", "front-proxy-ca", without_bundle_of_the_old, "being replaced"),
    ("bundle-extra", "etcd-ca", lambda d: append(d, "etcd-ca-bundle.pem", "front-proxy-ca.pem"), "front-proxy"),
    ("previous-issuer", "front-proxy-client", lambda d: replaced(d, "front-proxy"), "still issued"),
    ("chain", "kube-proxy", not_of_its_issuer, "did not sign it"),
    ("chain", "kube-proxy", lambda d: built(d, "kube-proxy", by=authority(d, "etcd")), "is issued by CN=etcd-ca"),
    (
        "issuer-encoding",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", issuer=printable(authority(d, "kubernetes")[0].subject)),
        "byte for byte",
    ),
    ("authority-key-identifier", "kube-proxy", lambda d: built(d, "kube-proxy", without=(AKI,)), "does not name"),
    (
        "authority-key-identifier",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", extra=[(FOREIGN, False)]),
        "which is not its CA's",
    ),
    ("expired", "kube-proxy", lambda d: built(d, "kube-proxy", begin=NOW - timedelta(days=366)), "expired on"),
    ("not-yet-valid", "kube-proxy", lambda d: built(d, "kube-proxy", begin=NOW + timedelta(hours=2)), "the clock here"),
    (
        "outlives-ca",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", end=NOW + timedelta(days=3651)),
        "its CA on",
    ),
    (
        "long-life",
        "etcd-ca",
        lambda d: ca_again(d, "etcd", not_after=NOW + timedelta(days=36500)),
        "100 years",
    ),
    ("expired", "front-proxy-ca", expired_ca, "expired on"),
    (
        "weak-key",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", key=rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be found
        "1024 bits",
    ),
    ("weak-hash", "kube-proxy", sha1, "sha1"),
    ("no-usages", "kube-proxy", lambda d: built(d, "kube-proxy", without=(EKU,)), "no extended usages"),
    ("usage-any", "kube-proxy", lambda d: built(d, "kube-proxy", extra=[(EKU([ANY]), False)]), "'any'"),
    (
        "key-usage",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", extra=[(issue.key_usage(["key_agreement"]), True)]),
        "lacks signing",
    ),
    ("leaf-is-ca", "kube-proxy", lambda d: built(d, "kube-proxy", extra=[(BC(True, None), True)]), "constraints"),
    (
        "leaf-is-ca",
        "kube-proxy",
        lambda d: built(d, "kube-proxy", extra=[(issue.key_usage(["digital_signature", "key_cert_sign"]), True)]),
        "cert sign",
    ),
    ("malformed-name", "kube-proxy", lambda d: built(d, "kube-proxy", extra=names_of(DNS(""))), "is empty"),
    ("malformed-name", "kube-proxy", lambda d: built(d, "kube-proxy", extra=names_of(DNS("a b"))), "blanks"),
    ("malformed-name", "kube-proxy", lambda d: built(d, "kube-proxy", extra=names_of(DNS("a."))), "ends in a dot"),
    ("malformed-name", "kube-proxy", lambda d: built(d, "kube-proxy", extra=names_of(DNS("10.0.0.1:6443"))), "port"),
    ("malformed-name", "kube-proxy", lambda d: built(d, "kube-proxy", extra=names_of(DNS("10.0.0.1"))), "of kind ip"),
    ("server-without-names", "kubelet-server", lambda d: built(d, "kubelet-server", without=(SAN,)), "does not count"),
    (
        "server-without-names",
        "etcd-server-node01",
        lambda d: built(d, "etcd-server-node01", without=(SAN,)),
        "does not count",
    ),
    ("etcd-peer-names", "etcd-peer-node01", lambda d: built(d, "etcd-peer-node01", without=(SAN,)), "refuse"),
    ("empty-common-name", "etcd-client", lambda d: built(d, "etcd-client", subject=x509.Name([])), "no common name"),
    ("key-reused", "kube-scheduler", lambda d: copied_key(d, "kube-scheduler-key.pem", "kube-proxy"), "kube-proxy"),
    ("key-reused", "kube-proxy", lambda d: token_key(d, "kube-proxy-key.pem"), "service-account"),
    ("serial-reused", "kube-scheduler", same_serial, "kube-proxy"),
    ("leaf-has-ca-key", "kube-proxy", lambda d: copied_key(d, "etcd-ca-key.pem", "kube-proxy"), "CA etcd"),
    ("service-account-ca-key", "service-account", lambda d: token_key(d, "kubernetes-ca-key.pem"), "CA kubernetes"),
    ("not-a-ca", "etcd-ca", lambda d: ca_again(d, "etcd", is_ca=False), "basic constraints"),
    ("not-a-ca", "etcd-ca", lambda d: ca_again(d, "etcd", bits=["digital_signature"]), "cert sign"),
    ("ca-form", "etcd-ca", lambda d: ca_again(d, "etcd", without=(KU,)), "no key usage"),
    ("ca-form", "etcd-ca", lambda d: ca_again(d, "etcd", without=(BC,), extra=[(BC(True, None), False)]), "critical"),
    ("ca-names", "etcd-ca", lambda d: ca_again(d, "etcd", names=(spec.names.parse("10.0.0.5"),)), "10.0.0.5"),
    (
        "ca-usages",
        "front-proxy-ca",
        lambda d: ca_again(d, "front-proxy", extended_usages=(CLIENT.dotted_string,)),
        "limited to client auth",
    ),
    (
        "ca-usages-exclude",
        "front-proxy-ca",
        lambda d: ca_again(d, "front-proxy", extended_usages=(SERVER.dotted_string,)),
        "client auth as well",
    ),
    ("ca-chain", "front-proxy-ca", lambda d: intermediate(d, length=None, bundled=False), "CN=root"),
    ("ca-path-length", "front-proxy-ca", lambda d: intermediate(d, length=0, bundled=True), "allows 0"),
    ("ca-key-reused", "etcd-ca", lambda d: ca_anew(d, "etcd", key=authority(d, "kubernetes")[1]), "kubernetes-ca"),
    ("ca-subject-reused", "etcd-ca", lambda d: ca_anew(d, "etcd", cn="kubernetes-ca"), "kubernetes-ca"),
    (
        "front-proxy-ca",
        "front-proxy-ca",
        lambda d: ca_anew(d, "front-proxy", key=authority(d, "kubernetes")[1]),
        "has the key of kubernetes-ca",
    ),
    ("front-proxy-ca", "front-proxy-ca", lambda d: ca_anew(d, "front-proxy", cn="kubernetes-ca"), "subject"),
]


@pytest.mark.parametrize(
    ("rule", "subject", "breach", "words"), BROKEN, ids=[f"{number}-{one[0]}" for number, one in enumerate(BROKEN)]
)
def test_a_broken_rule_is_found_as_what_it_is(
    rule: str, subject: str, breach: Callable[[Path], object], words: str, pki: Path
) -> None:
    breach(pki)
    findings = judged(good(), pki)
    expected = [(rule, subject)]
    if rule == "expired" and subject.endswith("-ca"):
        expected.append((rule, "front-proxy-client"))
    assert [(one.rule, one.subject) for one in findings] == expected
    assert words in findings[0].message
    assert findings[0].remedy


def test_every_rule_is_broken_here_and_explained_in_the_documents() -> None:
    alone = {"service-networks-unknown"}
    assert {one[0] for one in ASKED + BROKEN} | alone == set(RULES)  # type: ignore[operator]
    page = (Path(__file__).parents[2] / "docs/pki-rotation-and-rules.md").read_text(encoding="utf-8")
    for name, rule in RULES.items():
        assert f"| `{name}` | {rule.level} | {rule.source} |" in page


def test_all_findings_come_at_once_and_errors_first(pki: Path) -> None:
    data = good()
    by_name(data)["admin"]["o"] = ["system:masters"]
    by_name(data)["etcd-server-node01"]["profile"] = "server"
    by_name(data)["kube-scheduler"]["cn"] = "scheduler"
    reconcile.apply(spec.parse(data), pki, NOW)
    assert found(data, pki) == [
        ("user-name", "kube-scheduler"),
        ("etcd-server-client-auth", "etcd-server-node01"),
        ("system-masters", "admin"),
    ]


def test_without_roles_only_the_general_rules_are_asked(pki: Path) -> None:
    data = good()
    by_name(data)["etcd-server-node01"]["profile"] = "server"
    for one in data["certificates"]:
        del one["role"]
    reconcile.apply(spec.parse(data), pki, NOW)
    assert found(data, pki) == []
    built(pki, "etcd-server-node01", without=(SAN,))
    assert found(data, pki) == [("server-without-names", "etcd-server-node01")]


def test_the_ca_of_the_front_proxy_is_told_by_what_it_issues(pki: Path) -> None:
    data = good()
    for one in data["cas"].values():
        del one["role"]
    assert found(data, pki) == []
    by_name(data)["front-proxy-client"]["ca"] = "kubelet-signer"
    reconcile.apply(spec.parse(data), pki, NOW)
    assert found(data, pki) == []
    by_name(data)["kube-proxy"]["ca"] = "kubelet-signer"
    reconcile.apply(spec.parse(data), pki, NOW)
    [finding] = judged(data, pki)
    assert (finding.rule, finding.subject) == ("front-proxy-ca", "front-proxy-client")
    assert "and so are kube-proxy:" in finding.message
    # A client without a role is a client nevertheless; a server is none.
    del by_name(data)["kube-proxy"]["role"]
    assert found(data, pki) == [("front-proxy-ca", "front-proxy-client")]
    data["cas"]["kubelet-signer"]["role"] = "front-proxy"
    assert found(data, pki) == [("front-proxy-ca", "front-proxy-client")]
    by_name(data)["kube-proxy"].update(profile="server", hosts=["node01"])
    reconcile.apply(spec.parse(data), pki, NOW)
    assert found(data, pki) == []


def test_an_encrypted_ca_key_with_its_password_breaks_nothing(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = good()
    data["cas"]["etcd"]["password"] = "env:ETCD_CA"
    encrypt(pki / "etcd-ca-key.pem")
    monkeypatch.setenv("ETCD_CA", "secret")
    assert judged(data, pki) == []
    monkeypatch.setenv("ETCD_CA", "wrong")
    (finding,) = judged(data, pki)
    assert (finding.rule, "wrong" in finding.message) == ("ca-key-password", False)
    monkeypatch.delenv("ETCD_CA")
    (finding,) = judged(data, pki)
    assert "ETCD_CA" in finding.message


def test_openssl_and_the_rules_agree_on_what_is_good(made: Path) -> None:
    for one in spec.parse(good()).certificates:
        certificate, anchors = made / f"{one.path}.pem", made / f"{one.ca}-ca-bundle.pem"
        openssl("verify", "-x509_strict", "-CAfile", str(anchors), str(certificate))


def verified(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["verify", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = good()
    path = tmp_path / "pki.yml"
    path.write_text(yaml.safe_dump(data))
    code, out, err = verified(capsys, str(path))
    assert (code, out, err) == (0, f"{pki}: 18 certificates of 4 CAs, 1 key pair, 0 errors, 0 warnings\n", "")

    by_name(data)["admin"]["o"] = ["system:masters"]
    reconcile.apply(spec.parse(data), pki, NOW)
    path.write_text(yaml.safe_dump(data))
    code, out, _ = verified(capsys, str(path), "-C", str(pki))
    assert code == 0
    assert out.startswith("warning system-masters: admin: O is system:masters")
    assert out.endswith(" 0 errors, 1 warning\n")

    (pki / "apiserver.pem").unlink()
    code, out, _ = verified(capsys, str(path), "--json")
    parsed = json.loads(out)
    assert (code, parsed["errors"], parsed["warnings"]) == (1, 1, 1)
    assert parsed["findings"][0]["rule"] == "missing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: SPEC"),
        (["nothing.yml"], "nothing.yml: No such file"),
        (["pki.yml", "--jsn"], "--jsn"),
        (["pki.yml", "-C", "nowhere"], "nowhere: there is no such directory"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pki.yml").write_text(yaml.safe_dump(good()))
    code, out, err = verified(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("kubepki: ")


def test_a_thousand_certificates_are_judged_in_seconds(tmp_path: Path) -> None:
    data = {
        "cas": {"k": {"cn": "k"}},
        "certificates": [
            {
                "name": f"n{number}",
                "ca": "k",
                "cn": f"system:node:n{number}",
                "o": ["system:nodes"],
                "profile": "client",
            }
            for number in range(1000)
        ],
    }
    wanted = spec.parse(copy.deepcopy(data))
    reconcile.apply(wanted, tmp_path / "pki", NOW)
    begin = time.monotonic()
    assert rules.judge(wanted, verify.read(wanted, tmp_path / "pki"), NOW) == []
    assert time.monotonic() - begin < 5
