"""CAs below CAs, CAs that others have made, and what a certificate may say beside names and usages."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import making
import pytest
import verifiers
from cryptography import x509
from making import Made

from kubepki import issue, reconcile, spec
from kubepki.keys import Key


@pytest.fixture(scope="module")
def root() -> Made:
    return making.authority("root", key=Key("rsa", 4096), path_length=1)


@pytest.fixture(scope="module")
def intermediate(root: Made) -> Made:
    return making.authority("intermediate", root, Key("ecdsa", 384), path_length=0)


@pytest.mark.parametrize("key", [Key(), Key("ed25519", 256), Key("rsa", 2048)], ids=str)
def test_a_chain_of_three(root: Made, intermediate: Made, key: Key) -> None:
    made = making.leaf(intermediate, key, hosts=("leaf", "10.0.0.1"))
    for cas in ([root.pem, intermediate.pem], [intermediate.pem + root.pem]):
        verifiers.verify_everywhere(made.pem, cas, "peer", ["leaf", "10.0.0.1"], made.key_pem)
    verifiers.verify_everywhere(intermediate.pem, [root.pem], "ca")


def test_a_path_that_is_too_long_is_refused_by_all(root: Made, intermediate: Made) -> None:
    below = making.authority("below", intermediate)
    made = making.leaf(below)
    cas = [root.pem, intermediate.pem, below.pem]
    assert "path length constraint exceeded" in verifiers.openssl(made.pem, cas, "server")[0]
    assert "too many intermediates" in verifiers.go(made.pem, cas, "server")[0]
    assert "path length constraint exceeded" in verifiers.tls(made.pem, made.key_pem, cas, "server", ["leaf"])[0]
    assert issue.unfit(intermediate.certificate, datetime.now(UTC), for_a_ca=True)


def test_a_subject_of_nothing_makes_the_names_critical(root: Made) -> None:
    made = making.leaf(root, subject=x509.Name([]), hosts=("leaf", "::1"))
    assert made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    verifiers.verify_everywhere(made.pem, [root.pem], "peer", ["leaf", "::1"], made.key_pem)


def test_where_to_ask_about_revocation(root: Made) -> None:
    made = making.leaf(
        root,
        crl_url="http://crl.example.org/root.crl",
        ocsp_url="http://ocsp.example.org",
        issuer_urls=("http://ca.example.org/root.cer", "http://ca2.example.org/root.cer"),
    )
    verifiers.verify_everywhere(made.pem, [root.pem], "peer", ["leaf"], made.key_pem)


def test_a_life_without_an_end() -> None:
    now = datetime.now(UTC)
    forever = making.authority("forever", not_after=issue.end_of(now, timedelta(days=10**7)))
    assert forever.certificate.not_valid_after_utc.year == 9999
    verifiers.verify_everywhere(forever.pem, [forever.pem], "ca")
    made = making.leaf(forever)
    verifiers.verify_everywhere(made.pem, [forever.pem], "peer", ["leaf"], made.key_pem)


@pytest.mark.parametrize("mask", ["nombstr", "utf8only", "pkix"])
@pytest.mark.parametrize("algorithm", ["rsa:2048", "ec", "ed25519"])
def test_below_a_ca_that_openssl_has_made(tmp_path: Path, algorithm: str, mask: str) -> None:
    """The name of the issuer has the encoding that the CA has: Go compares the bytes."""
    directory = tmp_path / "pki"
    directory.mkdir()
    certificate, key = directory / "own-ca.pem", directory / "own-ca-key.pem"
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        f"[req]\nstring_mask = {mask}\ndistinguished_name = name\nx509_extensions = ca\nprompt = no\n"
        "[name]\nC = DE\nO = Example Ltd.\nCN = An old CA\n"
        "[ca]\nbasicConstraints = critical,CA:true\nkeyUsage = critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier = hash\n"
    )
    curve = ["-pkeyopt", "ec_paramgen_curve:P-384"] if algorithm == "ec" else []
    command = ["openssl", "req", "-x509", "-newkey", algorithm, *curve, "-noenc", "-config", configuration]
    made = subprocess.run(
        [*command, "-days", "30", "-keyout", key, "-out", certificate],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    wanted = spec.parse(
        {
            "cas": {"own": {"cn": "whatever"}},
            "certificates": [{"name": "leaf", "ca": "own", "cn": "leaf", "profile": "peer", "hosts": ["leaf"]}],
        }
    )
    plan = reconcile.apply(wanted, directory, datetime.now(UTC))
    assert plan.issued == ("leaf",)
    leaf, leaf_key = (directory / "leaf.pem").read_bytes(), (directory / "leaf-key.pem").read_bytes()
    verifiers.verify_everywhere(leaf, [certificate.read_bytes()], "peer", ["leaf"], leaf_key)
