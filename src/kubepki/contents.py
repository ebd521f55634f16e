"""What is in the bytes of a file: certificates, keys, requests, revocation lists, or a kubeconfig. Pure.

Only what is wrong with something that was meant to be one of these is a problem; any other file is simply none of them.
PEM is read as Go reads it (RFC 7468, lines of their own), because its readers are Kubernetes and etcd.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
)

from kubepki import facts, issue, keys

# Files with these names are meant to hold something: with nothing in them they are damaged.
MEANT = (".pem", ".crt", ".cer", ".der")
# What a kubeconfig may hold, in bytes: several hundred clusters.
_LARGEST_KUBECONFIG = 2 * 2**20
_MARK = re.compile(rb"^-----(BEGIN|END) ([A-Za-z0-9 ]+)-----[ \t]*\r?$", re.MULTILINE)
_JOINED = re.compile(rb"-----END [A-Za-z0-9 ]+----------BEGIN ")
_CERTIFICATE = ("CERTIFICATE", "X509 CERTIFICATE")
_REQUEST = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_LIST = "X509 CRL"
# Those of SSH and others are not for TLS. The last one is cfssl's.
_KEYS = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", keys.ODD_LABEL.decode())
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class KeyPiece:
    """The public half of a private key, None when that is `encrypted` or has a `problem`. The key is not kept."""

    public: facts.PublicKey | None = None
    encrypted: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Reference:
    """What a kubeconfig says of a certificate or a key: its bytes, or a path as written there, or a problem."""

    data: bytes = b""
    path: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Entry:
    """A `user` or a `cluster` of a kubeconfig, and what it has of certificate and key."""

    kind: str
    name: str
    certificate: Reference | None
    key: Reference | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Contents:
    """Everything in a file, in its order. `problems` are sentences without a subject: `certificate 2 is cut`."""

    certificates: tuple[x509.Certificate, ...] = ()
    keys: tuple[KeyPiece, ...] = ()
    requests: tuple[x509.CertificateSigningRequest, ...] = ()
    lists: tuple[x509.CertificateRevocationList, ...] = ()
    problems: tuple[str, ...] = ()
    kubeconfig: tuple[Entry, ...] | None = None
    others: int = 0

    def __bool__(self) -> bool:
        return bool(
            self.certificates
            or self.keys
            or self.requests
            or self.lists
            or self.problems
            or self.others
            or self.kubeconfig is not None
        )


class _Collector:
    """Gathers pieces; numbers certificates from 1, the damaged ones included."""

    def __init__(self) -> None:
        self.certificates: list[x509.Certificate] = []
        self.keys: list[KeyPiece] = []
        self.requests: list[x509.CertificateSigningRequest] = []
        self.lists: list[x509.CertificateRevocationList] = []
        self.problems: list[str] = []
        self.others = 0
        self._counts: dict[str, int] = {}

    def contents(self, kubeconfig: tuple[Entry, ...] | None = None) -> Contents:
        return Contents(
            tuple(self.certificates),
            tuple(self.keys),
            tuple(self.requests),
            tuple(self.lists),
            tuple(self.problems),
            kubeconfig,
            self.others,
        )

    def _called(self, what: str) -> str:
        self._counts[what] = self._counts.get(what, 0) + 1
        return f"{what} {self._counts[what]}"

    def block(self, label: str, text: bytes, body: bytes | None) -> None:
        """A block of PEM: `text` is all of it, `body` what is between its lines, None when it has no last one."""
        what = _kind(label)
        if not what:
            self.others += 1
            return
        called = self._called(what)
        if body is None:
            joined = "two blocks are joined in one line" if _JOINED.search(text) else "its END line is missing"
            self.problems.append(f"{called} is cut: {joined}")
        elif what == "private key":
            self.keys.append(_key(text, called))
        else:
            self._der(what, called, text, body)

    def _der(self, what: str, called: str, text: bytes, body: bytes) -> None:
        if _JOINED.search(text):
            self.problems.append(f"{called} is damaged: two blocks are joined in one line")
            return
        try:
            der = _decoded(body)
        except (binascii.Error, ValueError) as error:
            self.problems.append(f"{called} is damaged: no base64 ({facts.first_line(error)})")
            return
        try:
            self.add(what, der)
        except issue.UNREADABLE as error:
            self.problems.append(f"{called} is damaged: {facts.first_line(error)}")

    def add(self, what: str, der: bytes) -> None:
        """Something in DER; one of issue.UNREADABLE when it is none."""
        if what == "certificate":
            self.certificates.append(_loaded(der))
        elif what == "request":
            self.requests.append(x509.load_der_x509_csr(der))
        else:
            self.lists.append(x509.load_der_x509_crl(der))


def _loaded(der: bytes) -> x509.Certificate:
    found = x509.load_der_x509_certificate(der)
    # These are read when they are asked for; without them nothing can be said of a certificate.
    _ = found.not_valid_before_utc, found.not_valid_after_utc, found.serial_number
    return found


def _kind(label: str) -> str:
    if label in _CERTIFICATE:
        return "certificate"
    if label in _KEYS:
        return "private key"
    if label in _REQUEST:
        return "request"
    return "list" if label == _LIST else ""


def _decoded(body: bytes) -> bytes:
    # Headers, which RFC 7468 does not have any more, end at an empty line.
    if b":" in body:
        body = re.split(rb"\r?\n[ \t]*\r?\n", body, maxsplit=1)[-1]
    return base64.b64decode(b"".join(body.split()), validate=True)


def _key(text: bytes, called: str) -> KeyPiece:
    try:
        # The full validation of an RSA key takes up to half a second, for doubts that nobody has here.
        key = load_pem_private_key(
            text.replace(keys.ODD_LABEL, b"PRIVATE KEY"), None, unsafe_skip_rsa_key_validation=True
        )
    except TypeError:
        return KeyPiece(encrypted=True)
    except issue.UNREADABLE:
        return KeyPiece(problem=f"{called} is damaged")
    return _public(key, called)


def _public(key: PrivateKeyTypes, called: str) -> KeyPiece:
    if not keys.consistent(key):
        return KeyPiece(problem=f"{called} is damaged")
    public = key.public_key()
    encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return KeyPiece(facts.public_key(public, encoded))


def read(content: bytes, name: str) -> Contents:
    """What a file of this name holds. Falsy when it is none of ours."""
    with warnings.catch_warnings():
        # Of oddities in certificates, which `check` tells of in its own words.
        warnings.simplefilter("ignore")
        return _read(content, name.lower())


def _read(content: bytes, name: str) -> Contents:
    meant = name.endswith(MEANT)
    if meant and not content.strip():
        return Contents(problems=("is empty",))
    if b"-----BEGIN " in content:
        found = _pem(content)
        if found or not meant:
            return found or _kubeconfig(content)
    elif content[:1] == b"\x30":
        return _der(content, meant=meant)
    elif config := _kubeconfig(content):
        return config
    return Contents(problems=("holds neither PEM nor DER",)) if meant else Contents()


def _pem(content: bytes) -> Contents:
    collector = _Collector()
    if content.startswith(_BOM + b"-----BEGIN "):
        collector.problems.append("begins with a byte order mark, so that readers pass over its first block")
    for label, text, body in _blocks(content):
        collector.block(label, text, body)
    return collector.contents()


def _blocks(content: bytes) -> Iterator[tuple[str, bytes, bytes | None]]:
    """(label, text, what is between its lines or None when the last line is missing) of every block."""
    begin: re.Match[bytes] | None = None
    for mark in _MARK.finditer(content):
        if begin and mark[1] == b"END" and mark[2] == begin[2]:
            yield begin[2].decode(), content[begin.start() : mark.end()] + b"\n", content[begin.end() : mark.start()]
            begin = None
        elif mark[1] == b"BEGIN":
            if begin:
                yield begin[2].decode(), content[begin.start() : mark.start()], None
            begin = mark
    if begin:
        yield begin[2].decode(), content[begin.start() :], None


def _der(content: bytes, *, meant: bool) -> Contents:
    collector = _Collector()
    said = ""
    for what in ("certificate", "request", "list"):
        try:
            collector.add(what, content)
            return collector.contents()
        except issue.UNREADABLE as error:
            said = said or facts.first_line(error)
    if piece := _der_key(content):
        return Contents(keys=(piece,))
    if _loads(load_der_public_key, content):
        return Contents(others=1)
    return Contents(problems=(f"is damaged: {said}",)) if meant else Contents()


def _der_key(content: bytes) -> KeyPiece | None:
    try:
        return _public(load_der_private_key(content, None, unsafe_skip_rsa_key_validation=True), "private key 1")
    except TypeError:
        return KeyPiece(encrypted=True)
    except issue.UNREADABLE:
        return None


def _loads(load: Callable[[bytes], object], content: bytes) -> bool:
    try:
        load(content)
    except issue.UNREADABLE:
        return False
    return True


def _kubeconfig(content: bytes) -> Contents:
    """The entries of a kubeconfig, in YAML or JSON."""
    if b"certificate" not in content or (b"clusters" not in content and b"users" not in content):
        return Contents()
    sure = bool(re.search(rb'^[ \t{]*"?kind"?[ \t]*:[ \t]*"?Config\b', content, re.MULTILINE)) and not _template(
        content
    )
    if len(content) > _LARGEST_KUBECONFIG:
        problem = f"is a kubeconfig larger than {_LARGEST_KUBECONFIG // 2**20} MB, which was not read"
        return Contents(problems=(problem,)) if sure else Contents()
    try:
        data = _parsed(content.decode())
    except (ValueError, RecursionError) as error:
        return Contents(problems=(f"is a damaged kubeconfig: {facts.first_line(error)}",)) if sure else Contents()
    if not isinstance(data, Mapping) or data.get("kind", "Config") != "Config":
        return Contents()
    entries = [*_entries(data, "cluster"), *_entries(data, "user")]
    known = isinstance(data.get("clusters"), list) or isinstance(data.get("users"), list)
    return Contents(kubeconfig=tuple(entries)) if known else Contents()


def _template(content: bytes) -> bool:
    return b"{{" in content or b"{%" in content


def _parsed(text: str) -> Any:
    """YAML or JSON with all values as texts; ValueError."""
    if text.lstrip().startswith("{"):
        # JSON allows tabs where YAML does not.
        try:
            return json.loads(text)
        except ValueError:
            pass
    import yaml  # noqa: PLC0415 - most runs meet no kubeconfig

    from kubepki import yamltext  # noqa: PLC0415 - as above

    try:
        return yamltext.load(text, texts_only=True)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _entries(data: Mapping[str, Any], kind: str) -> Iterator[Entry]:
    listed = data.get(f"{kind}s")
    for number, item in enumerate(listed if isinstance(listed, list) else [], 1):
        if not isinstance(item, Mapping) or not isinstance(body := item.get(kind), Mapping):
            continue
        name = facts.plain(str(item.get("name") or number))
        prefix = "certificate-authority" if kind == "cluster" else "client-certificate"
        yield Entry(kind, name, _reference(body, prefix), _reference(body, "client-key") if kind == "user" else None)


def _reference(body: Mapping[str, Any], field: str) -> Reference | None:
    """The data, or else the path: kubectl's order (client-go, `rest.dataFromSliceOrFile`)."""
    data, path = body.get(f"{field}-data"), body.get(field)
    if data:
        try:
            return Reference(base64.b64decode("".join(str(data).split()), validate=True))
        except ValueError:
            return Reference(problem=f"{field}-data is no base64")
    return Reference(path=str(path)) if path else None
