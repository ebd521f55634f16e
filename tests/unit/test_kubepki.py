from __future__ import annotations

import base64
import os
import re
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from kubepki import describe, durations, issue, keys, names, reconcile, spec, store
from kubepki.errors import PrivateKeyError, SpecError, StoreError
from kubepki.keys import Key

NOW = datetime.now(UTC)
DATA: dict[str, Any] = {
    "cas": {"etcd": {"cn": "etcd-ca"}, "kube": {"cn": "kube-ca"}},
    "keypairs": {"service-account": {"algo": "rsa", "size": 2048}},
    "certificates": [
        {"name": "server", "ca": "etcd", "cn": "m1", "profile": "peer", "hosts": ["m1", "127.0.0.1", "::1"]},
        {"name": "client", "ca": "etcd", "cn": "admin", "o": ["system:masters"], "profile": "client"},
        {"name": "stranger", "ca": "kube", "cn": "admin", "profile": "client"},
        {"name": "rsa", "ca": "etcd", "cn": "rsa", "profile": "client", "key": {"algo": "rsa"}},
    ],
}


def changed(index: int, **fields: Any) -> dict[str, Any]:
    certificates = [dict(c) for c in DATA["certificates"]]
    certificates[index] |= fields
    return {**DATA, "certificates": certificates}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki") / "pki"
    before = os.umask(0)
    try:
        reconcile.apply(spec.parse(DATA), directory, NOW)
    finally:
        os.umask(before)
    return directory


def reasons(directory: Path, data: dict[str, Any], now: datetime = NOW) -> dict[str, str]:
    plan = reconcile.plan(spec.parse(data), directory, now)
    return {item.name: "; ".join(item.reasons) for item in plan.items if item.action == "issue"}


def test_a_second_pass_keeps_everything(issued: Path) -> None:
    assert reasons(issued, DATA) == {}
    assert reconcile.apply(spec.parse(DATA), issued, NOW).issued == ()


def test_modes_whatever_the_umask(issued: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in issued.iterdir() if path.name != ".lock"}
    assert issued.stat().st_mode & 0o777 == 0o700
    for name, mode in modes.items():
        assert mode == (0o600 if name.endswith(("-key.pem", ".key")) else 0o644), name


@pytest.mark.parametrize(
    ("name", "ca", "purpose"),
    [
        ("server", "etcd", "sslserver"),
        ("server", "etcd", "sslclient"),
        ("client", "etcd", "sslclient"),
        ("rsa", "etcd", "sslclient"),
    ],
)
def test_openssl_agrees_strictly(issued: Path, name: str, ca: str, purpose: str) -> None:
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        f"{issued}/{ca}-ca.pem",
        f"{issued}/{name}.pem",
    ]
    reply = subprocess.run(command, capture_output=True, text=True, check=False)
    assert reply.returncode == 0, reply.stderr


def _handshake(directory: Path, client: str) -> str:
    """What the server sees of the client: its CN, or the error."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "server.pem", directory / "server-key.pem")
    server.load_verify_locations(directory / "etcd-ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as tls:
                    peer: Any = tls.getpeercert()
                    seen.append(str(peer["subject"]))
                    tls.sendall(b"x")
            except OSError as error:
                seen.append(f"refused: {error}")

        thread = threading.Thread(target=serve)
        thread.start()
        context = ssl.create_default_context(cafile=str(directory / "etcd-ca.pem"))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if client:
            context.load_cert_chain(directory / f"{client}.pem", directory / f"{client}-key.pem")
        try:
            with (
                socket.create_connection(listener.getsockname(), 5) as raw,
                context.wrap_socket(raw, server_hostname="m1") as tls,
            ):
                tls.recv(1)
        except OSError:
            pass
        thread.join(10)
    return seen[0]


def test_mutual_tls(issued: Path) -> None:
    assert "admin" in _handshake(issued, "client")
    assert "refused" in _handshake(issued, "stranger")
    assert "refused" in _handshake(issued, "")


def test_what_a_leaf_says(issued: Path) -> None:
    certificate = store.read_certificate(issued / "server.pem")
    ca = store.read_certificate(issued / "etcd-ca.pem")
    assert certificate
    assert ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment) == (True, False)
    assert certificate.issuer.public_bytes() == ca.subject.public_bytes()
    assert certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["m1"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (changed(0, hosts=["m1", "127.0.0.1", "::1", "10.0.0.1"]), {"server": "SAN 10.0.0.1 added"}),
        (changed(0, hosts=["m1", "127.0.0.1"]), {"server": "SAN ::1 removed"}),
        (changed(0, profile="server"), {"server": "usage client auth removed"}),
        (changed(1, cn="other"), {"client": "subject was"}),
        (changed(1, ca="kube"), {"client": "issuer changed"}),
        (changed(1, key={"size": 384}), {"client": "key is ecdsa 256, wanted ecdsa 384"}),
    ],
)
def test_exactly_what_changed_is_reissued_and_says_why(
    issued: Path, data: dict[str, Any], expected: dict[str, str]
) -> None:
    found = reasons(issued, data)
    assert list(found) == list(expected)
    for name, reason in expected.items():
        assert reason in found[name]


def test_expiry_is_a_reason_in_the_last_third(issued: Path) -> None:
    assert reasons(issued, DATA, NOW + timedelta(hours=8760 * 0.66)) == {}
    late = reasons(issued, DATA, NOW + timedelta(hours=8760 * 0.67))
    assert set(late) == {"server", "client", "stranger", "rsa"}
    assert "last third" in late["server"]
    assert "expired on" in reasons(issued, DATA, NOW + timedelta(hours=8761))["server"]


def fresh(tmp_path: Path) -> Path:
    reconcile.apply(spec.parse(DATA), tmp_path / "pki", NOW)
    return tmp_path / "pki"


def test_a_crash_between_key_and_certificate_is_cured(tmp_path: Path) -> None:
    directory = fresh(tmp_path)
    (directory / "client-key.pem").write_bytes((directory / "server-key.pem").read_bytes())
    assert reasons(directory, DATA) == {"client": "key does not match"}
    reconcile.apply(spec.parse(DATA), directory, NOW)
    assert reasons(directory, DATA) == {}


def test_a_key_that_was_readable_by_all_is_not_any_more(tmp_path: Path) -> None:
    directory = fresh(tmp_path)
    (directory / "client-key.pem").chmod(0o644)
    (directory / "client.pem").unlink()
    reconcile.apply(spec.parse(DATA), directory, NOW)
    assert (directory / "client-key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["etcd-ca-key.pem", "etcd-ca.pem"])
def test_a_ca_is_never_replaced(tmp_path: Path, name: str) -> None:
    directory = fresh(tmp_path)
    (directory / name).write_bytes(b"damaged")
    with pytest.raises(StoreError, match=f"{name} holds no .*\n.*from a backup"):
        reconcile.apply(spec.parse(DATA), directory, NOW)
    (directory / "etcd-ca-key.pem").unlink()
    with pytest.raises(StoreError):
        reconcile.apply(spec.parse(DATA), directory, NOW)


def test_a_lost_ca_key_says_what_to_do(tmp_path: Path) -> None:
    directory = fresh(tmp_path)
    (directory / "etcd-ca-key.pem").unlink()
    with pytest.raises(StoreError, match="restore the key from a backup"):
        reconcile.plan(spec.parse(DATA), directory, NOW)


def test_two_runs_do_not_interleave(tmp_path: Path) -> None:
    with store.locked(tmp_path / "pki"), pytest.raises(StoreError, match="another run"):
        reconcile.apply(spec.parse(DATA), tmp_path / "pki", NOW)


def test_a_leaf_never_outlives_its_ca(tmp_path: Path) -> None:
    data = {**DATA, "cas": {"etcd": {"cn": "e", "expiry": "100h"}, "kube": {"cn": "k"}}}
    reconcile.apply(spec.parse(data), tmp_path / "pki", NOW)
    leaf, ca = (store.read_certificate(tmp_path / "pki" / n) for n in ("server.pem", "etcd-ca.pem"))
    assert leaf
    assert ca
    assert leaf.not_valid_after_utc == ca.not_valid_after_utc


def test_all_mistakes_of_a_specification_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse(
            {
                "cas": {"etcd": {"cn": "e", "expirey": "1h"}},
                "certificates": [
                    {
                        "name": "a",
                        "ca": "etdc",
                        "cn": "",
                        "profile": "sever",
                        "hosts": ["", "10.0.0.1:6443", "10.0.0.0/24"],
                    },
                    {"name": "b", "ca": "etcd", "cn": "x" * 65, "profile": "client", "expiry": "365d"},
                ],
            }
        )
    text = str(caught.value)
    for expected in (
        "did you mean expiry",
        "unknown ca 'etdc'",
        "cn is empty",
        "'sever'",
        "has a port",
        "network",
        "65",
        "'365d'",
    ):
        assert expected in text


@given(st.ip_addresses().filter(lambda address: not getattr(address, "scope_id", None)))
def test_addresses_are_addresses(address: Any) -> None:
    assert names.parse(str(address)) == names.Name("ip", str(getattr(address, "ipv4_mapped", None) or address))


@given(st.text(max_size=40))
def test_a_host_is_classified_or_refused_in_words(text: str) -> None:
    refused = ""
    found = None
    try:
        found = names.parse(text)
    except ValueError as error:
        refused = str(error)
    assert repr(text) in refused if found is None else not refused
    assert found is None or found.kind == "ip" or found.value == text


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z][a-z0-9-]{0,20}[a-z0-9]){0,3}", fullmatch=True))
def test_names_of_machines_are_dns_names(text: str) -> None:
    if not text.replace(".", "").isdigit():
        assert names.parse(text) == names.Name("dns", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        (" 10.0.0.5", "has blanks"),
        ("a b", "has blanks"),
        ("10.0.0.1:6443", "has a port; write 10.0.0.1"),
        ("host:80", "has a port; write host"),
        ("[::1]", "has brackets; write ::1"),
        ("10.0.0.0/24", "looks like a network"),
        ("010.0.0.1", "neither an address nor a name"),
        ("fe80::1%eth0", "has a zone"),
        ("x.", "write x:"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a..b", "is no DNS name"),
        ("x" * 64, "is no DNS name"),
    ],
)
def test_what_is_no_name_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        names.parse(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("spiffe://cluster/ns/x", "uri"),
        ("a@b.example", "email"),
        ("*.example.com", "dns"),
        ("etcd_1", "dns"),
        ("2001:DB8::1", "ip"),
    ],
)
def test_kinds_of_names(text: str, kind: str) -> None:
    assert names.parse(text).kind == kind


@given(st.text(alphabet="0123456789.hmsnu-+dwy ", max_size=14))
def test_durations_are_read_or_refused_in_words(text: str) -> None:
    refused = ""
    found = timedelta(0)
    try:
        found = durations.parse(text)
    except ValueError as error:
        refused = str(error)
    assert not refused or repr(text) in refused
    assert abs(found) < timedelta(hours=2562048)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8760h", 8760 * 3600), ("1h30m10s", 5410), ("1.5h", 5400), ("-5m", -300), ("0", 0), (".5s", 0.5), ("1.s", 1)],
)
def test_durations(text: str, seconds: float) -> None:
    assert durations.parse(text).total_seconds() == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [("365d", "write 8760h"), ("8760", "lacks a unit"), ("", "is no duration"), ("3000000h", "longer")],
)
def test_a_duration_that_is_none_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        durations.parse(text)


def test_a_plan_names_the_files_that_it_would_write(issued: Path) -> None:
    plan = reconcile.plan(spec.parse(changed(0, hosts=["m1"])), issued, NOW)
    assert plan.files == ("server.pem", "server-key.pem")
    fresh = reconcile.plan(spec.parse(DATA), issued / "none", NOW)
    assert {"etcd-ca.pem", "service-account.key", "service-account.pub"} <= set(fresh.files)


def test_a_certificate_in_words(issued: Path) -> None:
    text = describe.pem((issued / "server.pem").read_bytes()) or ""
    for line in ("subject CN=m1", "issuer CN=etcd-ca", "SAN ::1", "usage server auth", "usage client auth"):
        assert line in text.splitlines()
    bundle = (issued / "etcd-ca.pem").read_bytes() + (issued / "kube-ca.pem").read_bytes()
    assert (describe.pem(bundle) or "").count("is a CA") == 2
    assert describe.pem((issued / "server-key.pem").read_bytes()) is None
    assert describe.pem(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n") is None


def _own_ca(directory: Path, *extensions: x509.ExtensionType, days: int = 900) -> None:
    """Somebody else's CA in the place of etcd's."""
    directory.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = issue.subject("corporate CA", ("example",))
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1000))
        .not_valid_after(NOW - timedelta(days=1000) + timedelta(days=1000 + days))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    store.write(directory / "etcd-ca-key.pem", keys.pem(key), 0o600)
    store.write(directory / "etcd-ca.pem", builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644)


CA = x509.BasicConstraints(ca=True, path_length=0)


def test_a_ca_without_key_identifier_issues(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    _own_ca(directory, CA)
    reconcile.apply(spec.parse(DATA), directory, NOW)
    command = ["openssl", "verify", "-CAfile", str(directory / "etcd-ca.pem"), str(directory / "server.pem")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert reasons(directory, DATA) == {}


@pytest.mark.parametrize(
    ("extensions", "days", "message"),
    [
        ([], 900, "is no CA: it has no basic constraints"),
        ([x509.BasicConstraints(ca=False, path_length=None)], 900, "is no CA: its basic constraints say so"),
        ([CA, issue.key_usage(["digital_signature"])], 900, "lacks the signing of certificates"),
        ([CA], -1, r"expired on \d{4}-"),
    ],
)
def test_what_cannot_issue_is_refused(
    tmp_path: Path, extensions: list[x509.ExtensionType], days: int, message: str
) -> None:
    directory = tmp_path / "pki"
    _own_ca(directory, *extensions, days=days)
    with pytest.raises(StoreError, match=message):
        reconcile.apply(spec.parse(DATA), directory, NOW)
    assert sorted(p.name for p in directory.iterdir()) == [".lock", "etcd-ca-key.pem", "etcd-ca.pem"]


def test_a_certificate_without_usage_is_made_anew(tmp_path: Path) -> None:
    directory = fresh(tmp_path)
    key = store.read_key(directory / "client-key.pem")
    assert key
    name = issue.subject("admin", ("system:masters",))
    bare = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW, NOW + timedelta(days=9))
    store.write(directory / "client.pem", bare.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), 0o644)
    assert reasons(directory, DATA) == {
        "client": "issuer changed; usage client auth added; key usage digital signature added"
    }


@pytest.mark.parametrize("text", ["[" * 100000, "cas: " + "- " * 100000, "cas: 2026-99-99", "cas: " + "1" * 5000])
def test_yaml_that_parsers_stumble_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yml"
    path.write_text(text)
    with pytest.raises(SpecError, match="no YAML"):
        spec.load(path)


def test_a_damaged_rsa_key_is_seen_without_a_long_look() -> None:
    key = keys.generate(Key("rsa", 2048))
    pem = keys.traditional_pem(key)
    assert isinstance(keys.load(pem, "key"), rsa.RSAPrivateKey)
    der = bytearray(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
    damaged = 0
    for position in range(40, len(der), 60):
        changed = der.copy()
        changed[position] ^= 1
        body = base64.encodebytes(changed)
        with pytest.raises(PrivateKeyError, match="key is damaged"):
            keys.load(b"-----BEGIN RSA PRIVATE KEY-----\n" + body + b"-----END RSA PRIVATE KEY-----\n", "key")
        damaged += 1
    assert damaged > 15
