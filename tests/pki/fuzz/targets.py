"""What reads things that people or machines have damaged: bytes in, and no other exception than those it documents.

A new reader is one entry in TARGETS. Its function may go on with what was read: what is accepted must also work.
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import (
    bundle,
    certinfo,
    cfssljson,
    contents,
    crl,
    describe,
    durations,
    goflags,
    issue,
    keys,
    names,
    policy,
    request,
    signing,
    spec,
)
from kubepki.errors import KubepkiError
from kubepki.goflags import Flag
from kubepki.issue import Issuer
from kubepki.keys import Key, PrivateKey

_WHERE = "the input"
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Target:
    """`run` takes the bytes; it may raise `errors`. `seeds` are where mutation begins."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...] = (KubepkiError,)


def _ignore(_: str) -> None:
    """Warnings are for people."""


@cache
def _key() -> PrivateKey:
    return keys.generate(Key())


@cache
def _ca() -> Issuer:
    template = issue.Template(
        subject=issue.subject("ca", ["kubewright"]),
        key_usages=frozenset({"key_cert_sign", "crl_sign"}),
        extended_usages=(),
        not_before=_NOW - timedelta(days=1),
        not_after=_NOW + timedelta(days=3650),
        is_ca=True,
    )
    return Issuer(issue.sign(template, _key().public_key(), _key()), _key())


def _leaf() -> x509.Certificate:
    hosts = ("leaf", "*.example.org", "10.0.0.1", "::1", "a@example.org", "spiffe://cluster.local/x")
    template = issue.Template(
        subject=issue.subject("leaf", ["system:masters"]),
        key_usages=frozenset({"digital_signature"}),
        extended_usages=("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"),
        not_before=_NOW,
        not_after=_NOW + timedelta(days=1),
        names=tuple(names.parse(host) for host in hosts),
        ocsp_url="http://example.org",
        crl_url="http://example.org/crl",
        issuer_urls=("http://example.org/ca",),
    )
    return issue.sign(template, _key().public_key(), _key(), _ca().certificate)


def _csr() -> x509.CertificateSigningRequest:
    return request.sign(issue.subject("leaf", []), (names.parse("leaf"), names.parse("10.0.0.1")), _key())


def _pem(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def _certificates(content: bytes) -> None:
    for one in issue.load_all(content, _WHERE):
        json.dumps(certinfo.certificate(one))
        describe.certificate(one)
        issue.unfit(one, _NOW, for_a_ca=True)
        issue.key_identifier(one)
        issue.issued_by(one, one)
        json.dumps(bundle.as_json(bundle.Chain((one,), one), None))


def _requests(content: bytes) -> None:
    found = request.load(content, _WHERE)
    json.dumps(certinfo.csr(found))
    signing.sign(found, policy.Policy(copy_extensions=True), _ca(), _NOW, _ignore)


def _request_json(content: bytes) -> None:
    """As gencert does it, to the end."""
    for compat in (False, True):
        found = request.parse(content, _WHERE, _ignore, compat=compat)
        made = request.sign(found.subject, found.hosts, _key(), found.ca, found.extensions)
        request.load(made.public_bytes(Encoding.PEM), _WHERE)
        with contextlib.suppress(KubepkiError):
            signing.sign(made, policy.Policy(copy_extensions=True), _ca(), _NOW, _ignore, compat=compat)
        if found.ca:
            signing.authority(found.subject, _key(), found.ca, _NOW, found.crl_url)


def _policy_json(content: bytes) -> None:
    for compat in (False, True):
        found = policy.parse(content, _WHERE, _ignore, compat=compat)
        for name in ("", *found.profiles):
            chosen = policy.choose(found, name, _WHERE, _ignore, compat=compat)
            signing.sign(_csr(), chosen, _ca(), _NOW, _ignore, compat=compat)


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="kubepki-fuzz-"))


def _specification(content: bytes) -> None:
    path = _scratch() / "spec.yml"
    path.write_bytes(content)
    found = spec.load(path)
    for authority in found.authorities.values():
        issue.sign(issue.for_authority(authority, _NOW), _key().public_key(), _key())
    for certificate in found.certificates:
        template = issue.for_certificate(certificate, _key(), _ca().certificate, _NOW)
        issue.sign(template, _key().public_key(), _key(), _ca().certificate)


def _name(content: bytes) -> None:
    # As arguments of a command arrive.
    found = names.parse(content.decode(errors="surrogateescape"))
    x509.SubjectAlternativeName([issue.general_name(found)]).public_bytes()
    # What is in a certificate is read back by the same rules.
    assert names.parse(str(issue.general_name(found).value)) == found


def _duration(content: bytes) -> None:
    found = durations.parse(content.decode(errors="surrogateescape"))
    durations.words(found.total_seconds())


def _flags(content: bytes) -> None:
    words = content.decode(errors="surrogateescape").split("\n")
    goflags.parse(words, {"ca": Flag("", ""), "initca": Flag(False, ""), "loglevel": Flag(1, "")})


def _answer(content: bytes) -> None:
    found = cfssljson._parse(content)
    cfssljson._files(found if "cert" in found else cfssljson._unwrapped(found))


def _file(content: bytes) -> None:
    for name in ("x.pem", "x.kubeconfig", "x"):
        contents.read(content, name)


def _files() -> list[bytes]:
    certificate, key = (base64.b64encode(one).decode() for one in (_certificate_pems()[0], keys.pem(_key())))
    user = f"{{name: u, user: {{client-certificate-data: {certificate}, client-key-data: {key}}}}}"
    cluster = f"{{name: c, cluster: {{certificate-authority-data: {certificate}, server: 'https://x'}}}}"
    kubeconfig = f"apiVersion: v1\nkind: Config\nclusters: [{cluster}]\nusers: [{user}]\n".encode()
    return [kubeconfig, *_certificate_pems(), *_keys(), *map(_der, _certificate_pems()[:2]), *_key_ders()]


def _revoked(content: bytes) -> None:
    crl.make(crl.serials(content, _WHERE), _ca(), _NOW, crl.LIFE)


def _keys() -> list[bytes]:
    made = [_key(), *(keys.generate(Key(*kind)) for kind in (("ed25519", 256), ("rsa", 2048), ("ecdsa", 521)))]
    plain = [keys.pem(one) for one in made] + [keys.traditional_pem(one) for one in made]
    return [*plain, keys.pem(_key(), b"secret"), plain[1].replace(b"PRIVATE", b"Ed25519 PRIVATE")]


def _key_ders() -> list[bytes]:
    return [_der(pem) for pem in _keys()[:4]]


def _der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


def _certificate_pems() -> list[bytes]:
    one, ca = _leaf().public_bytes(Encoding.PEM), _ca().certificate.public_bytes(Encoding.PEM)
    return [one, ca, one + ca]


def _request_jsons() -> list[bytes]:
    subject = {"C": "DE", "ST": "x", "L": "y", "O": "o", "OU": "u", "E": "a@b.c", "OID": {"1.2.3": "v"}}
    full = {
        "CN": "leaf",
        "hosts": ["leaf", "10.0.0.1"],
        "names": [subject],
        "key": {"algo": "rsa", "size": 2048},
        "serialnumber": "1",
        "delegation_enabled": True,
        "extensions": [{"Id": [1, 2, 3], "Critical": False, "Value": "BQA="}],
    }
    ca = {"CN": "ca", "ca": {"expiry": "8760h", "backdate": "1h", "pathlen": 1}, "crl_url": "http://example.org"}
    return [json.dumps(one).encode() for one in (full, ca, {"CN": "x"}, {})]


def _policy_jsons() -> list[bytes]:
    profile = {
        "usages": ["signing", "server auth"],
        "expiry": "8760h",
        "backdate": "5m",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2027-01-01T00:00:00+01:00",
        "ocsp_url": "http://example.org",
        "crl_url": "http://example.org/crl",
        "issuer_urls": ["http://example.org/ca"],
        "name_whitelist": "^(leaf|10[.].{1,7})$",
        "copy_extensions": True,
        "CSRWhitelist": {"Subject": True, "PublicKey": True, "DNSNames": True},
        "Policies": [{"ID": [1, 2, 3], "Qualifiers": [{"Type": "id-qt-cps", "Value": "http://example.org"}]}],
    }
    ca = {
        "usages": ["cert sign", "crl sign"],
        "expiry": "24h",
        "ca_constraint": {"is_ca": True, "max_path_len": 0, "max_path_len_zero": True},
    }
    default = {"default": {"expiry": "1h", "usages": ["client auth"]}}
    signing_ = [{**default, "profiles": {"leaf": profile}}, {"profiles": {"ca": ca}}, {}]
    return [json.dumps({"signing": one}).encode() for one in signing_]


def _specifications() -> list[bytes]:
    return [
        b"cas:\n  kube: {cn: ca, o: [o], key: {algo: rsa, size: 2048}, expiry: 24h, role: kubernetes, "
        b"consumers: [a], password: env:X}\nprofiles:\n  own: {usages: [signing, client auth], expiry: 8760h}\n"
        b"keypairs:\n  sa: {algo: rsa}\ncluster: {service_cidrs: [10.0.0.0/16], dns_domain: cluster.local}\n"
        b"certificates:\n- {name: leaf, path: a/leaf, ca: kube, cn: leaf, o: [x], hosts: [leaf, 10.0.0.1], "
        b"profile: peer, expiry: 1h30m, owner: 'root:root', mode: 0640, role: admin, consumers: [b]}\n"
        b"- {name: own, ca: kube, cn: x, profile: own}\n",
        b"cas: {a: {cn: a}}\n",
    ]


def _answers() -> list[bytes]:
    pair = {"cert": _leaf().public_bytes(Encoding.PEM).decode(), "key": keys.pem(_key()).decode()}
    encoded = {**pair, "bundle": "x", "ocspResponse": "BQA=", "encrypted_key": "BQA="}
    wrapped = {"success": True, "result": encoded, "errors": [], "messages": []}
    return [
        json.dumps(one).encode() for one in (pair, encoded, wrapped, {"success": False, "errors": [{"message": ""}]})
    ]


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


TARGETS: dict[str, Target] = {
    "key": Target(lambda data: keys.load(data, _WHERE, lambda: b"secret"), _keys),
    "key-der": Target(lambda data: keys.load(_pem("PRIVATE KEY", data), _WHERE), _key_ders),
    "certificate": Target(_certificates, _certificate_pems),
    "certificate-der": Target(
        lambda data: _certificates(_pem("CERTIFICATE", data)),
        lambda: [one.public_bytes(Encoding.DER) for one in (_leaf(), _ca().certificate)],
    ),
    "csr": Target(_requests, lambda: [_csr().public_bytes(Encoding.PEM)]),
    "csr-der": Target(
        lambda data: _requests(_pem("CERTIFICATE REQUEST", data)), lambda: [_csr().public_bytes(Encoding.DER)]
    ),
    "request": Target(_request_json, _request_jsons),
    "policy": Target(_policy_json, _policy_jsons),
    "specification": Target(_specification, _specifications),
    "answer": Target(_answer, _answers),
    "file": Target(_file, _files, ()),
    "serials": Target(_revoked, _texts("1\n2\n", "4711")),
    "flags": Target(_flags, _texts("-ca\nx", "-initca=true\n--loglevel=1\nfile", "--\n-", "-ca=env:X")),
    "name": Target(
        _name,
        _texts("a.example.org", "*.x", "10.0.0.1", "fe80::1%eth0", "[::1]", "a@b.c", "spiffe://a/b", "x:80", "büch"),
        (ValueError,),
    ),
    "duration": Target(
        _duration, _texts("8760h", "-1h30m10s", "1.5h", ".5s", "1d", "2562047h47m16.854775807s"), (ValueError,)
    ),
}
