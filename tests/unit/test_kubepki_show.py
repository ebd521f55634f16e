from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kubepki import cli, contents, describe, issue, keys, names, usages
from kubepki.errors import PrivateKeyError
from kubepki.keys import PrivateKey

NOW = datetime.now(UTC).replace(microsecond=0)
SERVER = issue.Template(
    subject=issue.subject("m1", ("o",)),
    key_usages=frozenset({"digital_signature"}),
    extended_usages=(usages.SERVER_AUTH, usages.CLIENT_AUTH),
    not_before=NOW - timedelta(days=10),
    not_after=NOW + timedelta(days=100),
    names=(names.parse("m1"), names.parse("10.0.0.1")),
)


def key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_one_bit_has_one_name() -> None:
    found = signed(key_usages=frozenset({"content_commitment", "digital_signature"}))
    lines = [line for line in describe.certificate(found) if line.startswith("key usage ")]
    assert lines == ["key usage digital signature", "key usage content commitment"]
    assert usages.key(["content committment"]) == usages.key(["content commitment"]) == {"content_commitment"}
    assert usages.unknown(["content committment"]) == []


def signed(by: PrivateKey | None = None, for_: PrivateKey | None = None, **fields: Any) -> x509.Certificate:
    by = by or key()
    template = SERVER._replace(**fields)
    return issue.sign(template, (for_ or by).public_key(), by)


def put(path: Path, *found: x509.Certificate) -> str:
    path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in found))
    return str(path)


def test_a_certificate_in_words() -> None:
    found = signed(is_ca=True, path_length=0)
    lines = describe.certificate(found, NOW)
    identifier = x509.SubjectKeyIdentifier.from_public_key(found.public_key()).digest.hex(":")
    assert lines == [
        "subject CN=m1,O=o",
        "issuer CN=m1,O=o",
        "SAN m1",
        "SAN 10.0.0.1",
        "key usage digital signature",
        "usage server auth",
        "usage client auth",
        "is a CA, path length 0",
        "key ecdsa 256",
        "signature ECDSA with SHA256",
        f"valid {NOW - timedelta(days=10):%Y-%m-%d %H:%M} to {NOW + timedelta(days=100):%Y-%m-%d %H:%M}, 100 days left",
        f"serial {found.serial_number:x}",
        f"subject key identifier {identifier}",
        next(line for line in lines if line.startswith("fingerprint SHA-256 ")),
    ]
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256"],
        input=found.public_bytes(Encoding.PEM),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert lines[-1].split()[-1].upper() == text.strip().partition("=")[2]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (NOW + timedelta(days=103), ", expired 3 days ago"),
        (NOW - timedelta(days=15), ", begins in 5 days"),
        (NOW + timedelta(days=100) - timedelta(hours=3), ", 3 hours left"),
        (None, f"{NOW + timedelta(days=100):%Y-%m-%d %H:%M}"),
    ],
)
def test_the_days_that_are_left(now: datetime | None, said: str) -> None:
    assert any(line.startswith("valid ") and line.endswith(said) for line in describe.certificate(signed(), now))


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"names": (names.parse("m1"), names.parse("10.0.0.2"))}, ["SAN 10.0.0.1 removed", "SAN 10.0.0.2 added"]),
        ({"names": SERVER.names * 2}, ["SAN: in another order, or given twice"]),
        ({"extended_usages": (usages.CLIENT_AUTH,)}, ["usage server auth removed"]),
        ({"key_usages": frozenset({"digital_signature", "key_encipherment"})}, ["key usage key encipherment added"]),
        ({"is_ca": True, "path_length": 1}, ["is no CA -> is a CA of path length 1"]),
        (
            {"not_after": NOW + timedelta(days=101)},
            [f"ends {NOW + timedelta(days=100):%Y-%m-%d %H:%M} -> {NOW + timedelta(days=101):%Y-%m-%d %H:%M}"],
        ),
        ({"subject": issue.subject("m2", ("o",))}, ["subject CN=m1,O=o -> CN=m2,O=o", "issuer CN=m1,O=o -> CN=m2,O=o"]),
    ],
)
def test_what_differs(fields: dict[str, Any], lines: list[str]) -> None:
    by = key()
    old, new = signed(by), signed(by, **fields)
    found = describe.difference(old, new)
    assert [line for line in found if not line.startswith("serial ")] == lines
    assert f"serial {old.serial_number:x} -> {new.serial_number:x}" in found
    assert describe.difference(old, old) == []


def test_another_key_and_other_algorithms() -> None:
    by = key()
    assert "key another one, ecdsa 256 as well" in describe.difference(signed(by, key()), signed(by, key()))
    large = ec.generate_private_key(ec.SECP384R1())
    found = describe.difference(signed(by), signed(large))
    assert "key ecdsa 256 -> ecdsa 384" in found
    assert "signature ECDSA with SHA256 -> ECDSA with SHA384" in found


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = key()
    path = tmp_path / "all.pem"
    csr = x509.CertificateSigningRequestBuilder().subject_name(issue.subject("asking", ()))
    csr = csr.add_extension(x509.SubjectAlternativeName([x509.DNSName("m9")]), critical=False)
    revoked = x509.RevokedCertificateBuilder().serial_number(0x1234).revocation_date(NOW).build()
    crl = x509.CertificateRevocationListBuilder().issuer_name(issue.subject("ca", ())).add_revoked_certificate(revoked)
    crl = crl.last_update(NOW - timedelta(days=3)).next_update(NOW - timedelta(days=2))
    path.write_bytes(
        signed(mine).public_bytes(Encoding.PEM)
        + csr.sign(mine, keys.digest(mine)).public_bytes(Encoding.PEM)
        + crl.sign(mine, keys.digest(mine)).public_bytes(Encoding.PEM)
        + keys.pem(mine)
        + keys.pem(mine, b"secret")
    )
    assert cli.main(["show", str(path)]) == 0
    sections = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]
    assert [part[0].removeprefix(f"# {path}: ") for part in sections] == [
        "certificate 1",
        "request 1",
        "revocation list 1",
        "private key 1",
        "private key 2",
    ]
    assert sections[1][1:] == ["subject CN=asking", "SAN m9", "key ecdsa 256", "signed with its key"]
    assert sections[2][1] == "issuer CN=ca"
    assert sections[2][3].endswith(", 2 days late")
    assert sections[2][4:] == ["revokes 1", f"revoked serial 1234 on {NOW:%Y-%m-%d %H:%M}"]
    assert [part[1:] for part in sections[3:]] == [["key ecdsa 256"], ["encrypted"]]


def test_a_request_that_somebody_changed() -> None:
    mine = key()
    csr = (
        x509.CertificateSigningRequestBuilder().subject_name(issue.subject("asking", ())).sign(mine, keys.digest(mine))
    )
    der = csr.public_bytes(Encoding.DER).replace(b"asking", b"taking")
    assert "damaged: its signature is not that of its key" in describe.request(x509.load_der_x509_csr(der))


def test_show_reads_standard_input_and_pipes(tmp_path: Path) -> None:
    content = signed().public_bytes(Encoding.PEM)
    command = [sys.executable, "-m", "kubepki", "show"]
    by_input = subprocess.run([*command, "-"], input=content, capture_output=True, check=True).stdout
    assert b"subject CN=m1,O=o" in by_input
    path = put(tmp_path / "a.pem", *x509.load_pem_x509_certificates(content))
    script = f"{sys.executable} -m kubepki show <(cat {path})"
    assert b"subject CN=m1,O=o" in subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout


def test_show_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "a.pem", signed())
    Path(path).write_bytes(Path(path).read_bytes()[:200])
    assert cli.main(["show", path]) == 1
    assert "damaged: certificate 1 is cut" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "diff"])
@pytest.mark.parametrize("content", [b"", b"words", b"\0" * 100, b"x" * (11 * 2**20), None])
def test_what_is_no_certificate(
    tmp_path: Path, command: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert cli.main([command, *[str(path)] * (2 if command == "diff" else 1)]) == (2 if command == "diff" else 1)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"kubepki: {path}")


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by = key()
    old, new = signed(by), signed(by, names=(names.parse("m1"),))
    one, two = put(tmp_path / "a.pem", old), put(tmp_path / "b.pem", new)
    assert cli.main(["diff", one, one]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["diff", one, two]) == 1
    assert "SAN 10.0.0.1 removed\n" in capsys.readouterr().out
    assert cli.main(["diff", one]) == 2
    assert cli.main(["diff", "-h"]) == 0


def test_show_and_diff_on_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    one = put(tmp_path / "a.pem", signed(subject=issue.subject("zürich", ())))
    two = put(tmp_path / "b.pem", signed(subject=issue.subject("genève", ())))
    for code, command in ((0, ["show", one]), (1, ["diff", one, two])):
        reply = subprocess.run(
            [sys.executable, "-m", "kubepki", *command],
            env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        assert (reply.returncode, reply.stderr) == (code, b"")
        assert b"subject CN=z\\xfcrich" in reply.stdout


def test_diff_of_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, replaced, gone, added = (
        signed(subject=issue.subject(name, ())) for name in ("kept", "replaced", "gone", "added")
    )
    other = signed(subject=issue.subject("replaced", ()))
    one = put(tmp_path / "a.pem", kept, replaced, gone)
    two = put(tmp_path / "b.pem", other, kept, added)
    assert cli.main(["diff", one, two]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "CN=replaced: key another one, ecdsa 256 as well" in lines
    assert f"CN=gone: removed, serial {gone.serial_number:x}" in lines
    assert f"CN=added: added, serial {added.serial_number:x}" in lines
    assert not any(line.startswith("CN=kept") for line in lines)
    assert cli.main(["diff", put(tmp_path / "c.pem", kept, gone), put(tmp_path / "d.pem", gone, kept)]) == 1
    assert "in another order" in capsys.readouterr().out


def test_an_rsa_key_whose_numbers_do_not_belong_together(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "genrsa", "-traditional", "-out", "a.key", "2048"], cwd=tmp_path, check=True, capture_output=True
    )
    good = (tmp_path / "a.key").read_bytes()
    (piece,) = contents.read(good, "a.key").keys
    assert piece.public
    assert piece.public.kind == "rsa 2048"
    command = ["openssl", "rsa", "-outform", "DER", "-traditional"]
    der = bytearray(subprocess.run(command, input=good, capture_output=True, check=True).stdout)
    # In the middle of the modulus.
    der[100] ^= 1
    damaged = subprocess.run(["base64"], input=bytes(der), capture_output=True, check=True).stdout
    text = b"-----BEGIN RSA PRIVATE KEY-----\n" + damaged + b"-----END RSA PRIVATE KEY-----\n"
    (piece,) = contents.read(text, "a.key").keys
    assert piece.problem == "private key 1 is damaged"


def test_an_rsa_key_with_a_wrong_coefficient() -> None:
    """Go 1.24 and later refuse it, and so does what issues with it."""
    good = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_numbers()
    wrong = rsa.RSAPrivateNumbers(
        good.p, good.q, good.d, good.dmp1, good.dmq1, good.iqmp + 1, good.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    text = wrong.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (piece,) = contents.read(text, "a.key").keys
    assert piece.problem == "private key 1 is damaged"
    with pytest.raises(PrivateKeyError, match=r"a\.key is damaged"):
        keys.load(text, "a.key")
