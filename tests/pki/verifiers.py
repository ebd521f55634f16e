"""What others say of a certificate: OpenSSL, Go, pkilint, and TLS as Python does it.

`verify_everywhere` asks all of them; whoever expects a refusal calls `complaints` and looks at what it returns.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import tools
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pkilint import loader
from pkilint.pkix import certificate as pkix_certificate
from pkilint.pkix import extension as pkix_extension
from pkilint.pkix import name as pkix_name
from pkilint.validation import ValidationFindingSeverity

_OPENSSL_PURPOSES = {"server": "sslserver", "client": "sslclient", "ca": "any"}
_GO_USAGES = {"server": "server", "client": "client", "ca": "any"}
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True)
class _Accepted:
    """A finding of pkilint that is none of kubepki's: its code, what its message says, and why."""

    code: str
    message: str
    why: str


_ACCEPTED = (
    _Accepted(
        "pkix.invalid_domain_name_syntax",
        rf'Invalid domain name syntax: "{_LABEL}"',
        "a name of one label is a name (RFC 1034, 3.5), and Kubernetes is called by such ones; pkilint wants a dot",
    ),
    _Accepted(
        "pkix.invalid_domain_name_syntax",
        rf'Invalid domain name syntax: "\*(\.{_LABEL})+"',
        "RFC 5280, 4.2.1.6 leaves wildcards to others, and RFC 6125, 6.4.3 has them",
    ),
    _Accepted(
        "pkix.invalid_uri_syntax",
        r'Invalid URI syntax: "spiffe://[!-~]+"',
        "RFC 5280, 4.2.1.6 wants a scheme and a host; pkilint knows a few schemes only",
    ),
)


@dataclass(frozen=True)
class Pair:
    """A certificate, and whatever intermediates belong before it, with its key; PEM."""

    chain: bytes
    key: bytes


def verify_everywhere(
    certificate: bytes, cas: Sequence[bytes], purpose: str, names: Iterable[str] = (), key: bytes | None = None
) -> None:
    """Fail with everybody's words when anybody refuses a certificate.

    `certificate`: PEM of one; `cas`: PEMs of those above it, in any order, roots among them; `purpose`: `server`,
    `client`, `peer` (both) or `ca`; `names`: DNS names, addresses and e-mail addresses under which it must be good;
    `key`: PEM, and then the pair is used in a TLS handshake.
    """
    found = complaints(certificate, cas, purpose, names, key)
    evidence = _evidence(certificate)
    assert not found, "\n".join([*found, evidence])


def complaints(
    certificate: bytes, cas: Sequence[bytes], purpose: str, names: Iterable[str] = (), key: bytes | None = None
) -> list[str]:
    """What is wrong with a certificate as `verifier: words`; arguments as for `verify_everywhere`."""
    purposes = ("server", "client") if purpose == "peer" else (purpose,)
    wanted = list(names)
    found = [f"pkilint: {finding}" for finding in pkilint(certificate)]
    for one in purposes:
        found += [f"openssl ({one}): {words}" for words in openssl(certificate, cas, one, wanted)]
        found += [f"go ({one}): {words}" for words in go(certificate, cas, one, wanted)]
        if key is not None and one != "ca":
            found += [f"tls ({one}): {words}" for words in tls(certificate, key, cas, one, wanted)]
    return found


def split(cas: Sequence[bytes]) -> tuple[bytes, bytes]:
    """(roots, intermediates), as bundles."""
    roots, others = [], []
    for bundle in cas:
        for one in x509.load_pem_x509_certificates(bundle):
            (roots if one.subject == one.issuer else others).append(one.public_bytes(Encoding.PEM))
    return b"".join(roots), b"".join(others)


@contextmanager
def _files(**contents: bytes) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: Path(directory, f"{name}.pem") for name in contents}
        for name, content in contents.items():
            paths[name].write_bytes(content)
            paths[name].chmod(0o600)
        yield {name: str(path) for name, path in paths.items()}


def _evidence(certificate: bytes) -> str:
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-certopt", "no_pubkey,no_sigdump"],
        input=certificate,
        capture_output=True,
        check=False,
        timeout=30,
    )
    return (shown.stdout + shown.stderr).decode(errors="replace")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def openssl(certificate: bytes, cas: Sequence[bytes], purpose: str, names: Sequence[str] = ()) -> list[str]:
    """What `openssl verify -x509_strict` refuses."""
    roots, intermediates = split(cas)
    checks: list[list[str]] = []
    for name in names:
        kind = "ip" if _is_address(name) else "email" if "@" in name else "hostname"
        checks.append([f"-verify_{kind}", name])
    found = []
    with _files(roots=roots, intermediates=intermediates, leaf=certificate) as paths:
        for check in checks or [[]]:
            command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-no-CApath", "-CAfile", paths["roots"]]
            command += ["-untrusted", paths["intermediates"]] if intermediates else []
            command += ["-purpose", _OPENSSL_PURPOSES[purpose], *check, paths["leaf"]]
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            if asked.returncode or asked.stdout != f"{paths['leaf']}: OK\n":
                found.append(" ".join([*check, asked.stdout + asked.stderr]).strip())
    return found


def ask_go(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of goverify/main.go, in the order of the questions."""
    asked = subprocess.run(
        [tools.go_verify()], input=json.dumps(questions), capture_output=True, text=True, check=False, timeout=60
    )
    assert asked.returncode == 0, asked.stderr
    answers: list[dict[str, Any]] = json.loads(asked.stdout)
    return answers


def go(
    certificate: bytes, cas: Sequence[bytes], purpose: str, names: Sequence[str] = (), time: datetime | None = None
) -> list[str]:
    """What Go's `x509.Certificate.Verify` refuses; it knows no e-mail addresses."""
    roots, intermediates = split(cas)
    question = {
        "Certificate": certificate.decode(),
        "Roots": roots.decode(),
        "Intermediates": intermediates.decode(),
        "Usage": _GO_USAGES[purpose],
    }
    if time:
        question["Time"] = time.isoformat()
    answers = ask_go([{**question, "Name": name} for name in ["", *names] if "@" not in name])
    return [str(answer["error"]) for answer in answers if answer["error"]]


def go_request(request: bytes) -> dict[str, Any]:
    """Go's view of a CSR whose signature it has checked: `error`, `dns`, `addresses`, `emails`, `uris`, `subject`."""
    return ask_go([{"Request": request.decode()}])[0]


def go_revocation_list(revoked: bytes, issuer: bytes) -> dict[str, Any]:
    """Go's view of a CRL in PEM whose signature it has checked: `error` and `serials`, decimal."""
    return ask_go([{"List": revoked.decode(), "Issuer": issuer.decode()}])[0]


@cache
def _pkix_linter() -> Any:
    return pkix_certificate.create_pkix_certificate_validator_container(
        pkix_certificate.create_decoding_validators(
            pkix_name.ATTRIBUTE_TYPE_MAPPINGS, pkix_extension.EXTENSION_MAPPINGS
        ),
        [
            pkix_certificate.create_issuer_validator_container([]),
            pkix_certificate.create_validity_validator_container(),
            pkix_certificate.create_subject_validator_container([]),
            pkix_certificate.create_extensions_validator_container([]),
            pkix_certificate.create_spki_validator_container([]),
        ],
    )


def pkilint(certificate: bytes) -> list[str]:
    """What the linter for RFC 5280 finds, notices included, but for what is accepted: severity, code, place, words."""
    document = loader.load_pem_certificate(certificate.decode(), "certificate")
    found = []
    for result in _pkix_linter().validate(document.root):
        for description in result.finding_descriptions:
            code, severity, message = description.finding.code, description.finding.severity, description.message or ""
            accepted = any(one.code == code and re.fullmatch(one.message, message) for one in _ACCEPTED)
            if severity <= ValidationFindingSeverity.NOTICE and not accepted:
                found.append(f"{severity.name} {code} at {result.node.path}: {message}")
    return found


def context(side: int, cas: Sequence[bytes], pair: Pair | None = None, *, hostname: bool = True) -> ssl.SSLContext:
    """A context that wants a certificate of these CAs, strictly, and presents its own."""
    made = ssl.SSLContext(side)
    made.verify_mode = ssl.CERT_REQUIRED if cas else ssl.CERT_NONE
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if side == ssl.PROTOCOL_TLS_CLIENT:
        made.check_hostname = hostname
    if cas:
        made.load_verify_locations(cadata=split(cas)[0].decode())
    if pair:
        with _files(chain=pair.chain, key=pair.key) as paths:
            made.load_cert_chain(paths["chain"], paths["key"])
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """What goes wrong between two sides in memory, empty when they have said something to each other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = {
        "server": server.wrap_bio(to_server, to_client, server_side=True),
        "client": client.wrap_bio(to_client, to_server, server_hostname=name),
    }
    # The server finds fault with a client's certificate only after the client has finished (TLS 1.3).
    steps = [("client", "do_handshake"), ("server", "do_handshake")] * 4
    done: set[str] = set()
    for side, step in steps:
        if side in done:
            continue
        try:
            getattr(sides[side], step)()
            done.add(side)
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            return f"{side}: {error}"
    if done != set(sides):
        return "the handshake does not come to an end"
    sides["server"].write(b"answer")
    return "" if sides["client"].read(16) == b"answer" else "the answer does not arrive"


def tls(certificate: bytes, key: bytes, cas: Sequence[bytes], side: str, names: Sequence[str] = ()) -> list[str]:
    """What Python's TLS refuses when this pair is the server (under each name) or the client of a mutual handshake."""
    pair = Pair(certificate + split(cas)[1], key)
    other_ca, other = _counterpart()
    if side == "client":
        server = context(ssl.PROTOCOL_TLS_SERVER, cas, other)
        client = context(ssl.PROTOCOL_TLS_CLIENT, [other_ca], pair)
        said = handshake(server, client, "counterpart")
        return [said] if said else []
    server = context(ssl.PROTOCOL_TLS_SERVER, [other_ca], pair)
    found = []
    for name in [name for name in names if "@" not in name] or [""]:
        client = context(ssl.PROTOCOL_TLS_CLIENT, cas, other, hostname=bool(name))
        said = handshake(server, client, name or "unchecked")
        found += [f"{name or 'without a name'}: {said}"] if said else []
    return found


@cache
def _counterpart() -> tuple[bytes, Pair]:
    """(CA, a pair that may be server and client), made without kubepki."""
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca of the counterpart")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "counterpart")])
    made = []
    for name, own, is_ca in ((issuer, ca_key, True), (subject, key, False)):
        builder = (
            x509.CertificateBuilder(issuer, name, own.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .add_extension(_bits(is_ca), critical=True)
        )
        if not is_ca:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            alternative = x509.SubjectAlternativeName([x509.DNSName("counterpart")])
            builder = builder.add_extension(alternative, critical=False)
        made.append(builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    written = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made[0], Pair(made[1], written)


def _bits(is_ca: bool) -> x509.KeyUsage:
    unset = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **unset)
