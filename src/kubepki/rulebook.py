"""The rules for a set of certificates: what they are called, how bad a breach is, and who imposes them.

An error is what a program refuses, or what gives away more than was meant; a warning works today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from kubepki.keys import PublicKey


@dataclass(frozen=True)
class Rule:
    """`level` is `error` or `warning`; `source` says who asks for it."""

    level: str
    source: str


def _error(source: str) -> Rule:
    return Rule("error", source)


def _warning(source: str) -> Rule:
    return Rule("warning", source)


RULES: Mapping[str, Rule] = {
    # Files.
    "missing": _error("each certificate of the specification is there"),
    "damaged": _error("certificates are PEM that can be read"),
    "key-missing": _error("each certificate lies beside its key, and key pairs are there"),
    "key-damaged": _error("keys are PEM that can be read, of a kind that Kubernetes knows"),
    "key-mismatch": _error("a key that is not the certificate's, or the public key's, fails each handshake and token"),
    "key-mode": _error("whoever reads a key is its owner (CIS Kubernetes Benchmark: 0600)"),
    "key-encrypted": _error("neither etcd nor Kubernetes asks for a password"),
    "ca-key-missing": _warning("without the CA's key nothing can be issued or renewed"),
    "ca-key-password": _error("an encrypted CA key needs the specification to say where its password is"),
    "ca-one-certificate": _error("controller manager: --cluster-signing-cert-file holds one certificate"),
    "bundle-missing": _warning("consumers trust what NAME-ca-bundle.pem holds"),
    "bundle": _error("consumers that do not trust the CA refuse all its certificates"),
    "bundle-extra": _warning("a CA that is trusted can issue for everybody; only a rotation needs two"),
    # X.509.
    "chain": _error("RFC 5280, 6.1.3: the issuer's key made the signature"),
    "previous-issuer": _warning("a rotation of the CA ends when nothing is left of the old one"),
    "issuer-encoding": _error("RFC 5280, 7.1; Go compares the bytes of the names"),
    "authority-key-identifier": _error("RFC 5280, 4.2.1.1; openssl verify -x509_strict, Python from 3.13 on"),
    "expired": _error("RFC 5280, 4.1.2.5"),
    "not-yet-valid": _error("RFC 5280, 4.1.2.5"),
    "outlives-ca": _error("verifiers refuse the chain as soon as one of it has expired"),
    "long-life": _warning("nothing in Kubernetes revokes certificates: their end is the only end"),
    "weak-key": _error("Go and OpenSSL refuse RSA below 1024, and NIST below 2048 bits; Go knows three curves"),
    "weak-hash": _error("Go from 1.18 on refuses SHA-1 and MD5"),
    "no-usages": _warning("RFC 5280, 4.2.1.12: without extended usages a certificate is good for everything"),
    "usage-any": _warning("Go takes 'any' for every usage, OpenSSL does not"),
    "key-usage": _warning("RFC 8446, 4.4.2.2: TLS 1.3 signs; OpenSSL refuses, Go does not look"),
    "leaf-is-ca": _error("whoever has the key of it can issue certificates for anybody"),
    "malformed-name": _error("RFC 5280, 4.2.1.6; Go refuses to read it since CVE-2025-58187"),
    "server-without-names": _error("RFC 6125; Go and OpenSSL look at no common name any more"),
    "key-reused": _warning("a stolen key should open one door"),
    "serial-reused": _warning("RFC 5280, 4.1.2.2: one serial number of an issuer, one certificate"),
    # CAs.
    "not-a-ca": _error("RFC 5280, 4.2.1.9 and 4.2.1.3"),
    "ca-chain": _error("OpenSSL wants a chain that ends in a self-signed certificate that it trusts"),
    "ca-path-length": _error("RFC 5280, 4.2.1.9"),
    "ca-form": _warning("openssl verify -x509_strict, Python from 3.13 on"),
    "ca-names": _warning("a CA is no server: cfssl leaves addresses in (cfssl#1276)"),
    "ca-usages": _warning("Go and OpenSSL take a CA's extended usages for a limit of what it issues"),
    "ca-usages-exclude": _error("Go and OpenSSL take a CA's extended usages for a limit of what it issues"),
    "leaf-has-ca-key": _error("whoever has the key of it can issue certificates for anybody"),
    "ca-key-reused": _error("two CAs with one key are one CA: what one issues, the other vouches for"),
    "ca-subject-reused": _warning("some verifiers look a CA up by its name alone, and logs name nothing else"),
    # Kubernetes and etcd.
    "front-proxy-ca": _error("kube-apiserver: --requestheader-client-ca-file is asked before --client-ca-file"),
    "role-ca": _warning("who is trusted for what is told by the CA"),
    "service-account-ca-key": _error("whoever verifies or signs tokens needs no CA"),
    "usage-missing": _error("Go: a server must show server auth, a client client auth"),
    "etcd-server-client-auth": _error("etcd's gateway dials its own server with the server's certificate (etcd#9785)"),
    "etcd-peer-names": _error("etcd compares a peer's address with the names of its certificate"),
    "etcd-peer-address": _warning("etcd looks names of peers up, there and back, when there are no addresses"),
    "apiserver-names": _error("Kubernetes, PKI certificates and requirements; pods and kubectl use these names"),
    "apiserver-service-address": _error("pods reach the API at the first address of the Services' network"),
    "apiserver-localhost": _warning("what runs beside the API server reaches it at 127.0.0.1"),
    "service-networks-unknown": _warning("pods reach the API at the first address of the Services' network"),
    "user-name": _error("RBAC's default bindings are for exactly this user"),
    "empty-common-name": _error("the common name is the user; without one nobody is authenticated"),
    "front-proxy-name": _warning("kube-apiserver: --requestheader-allowed-names, by custom front-proxy-client"),
    "kubelet-user": _error("the node authorizer takes system:node:NAME of the group system:nodes, in lower case"),
    "kubelet-client-names": _warning("signer kubernetes.io/kube-apiserver-client-kubelet allows no names"),
    "kubelet-server-user": _warning("signer kubernetes.io/kubelet-serving asks for system:node:NAME in system:nodes"),
    "system-masters": _warning("the group system:masters passes every authorizer, and cannot be revoked"),
    "doubled-prefix": _warning("a slip of widespread instructions: the group is nobody's"),
}


@dataclass(frozen=True)
class Finding:
    """A breach: of which rule, by what, what is wrong with the value seen, and what to do."""

    rule: str
    subject: str
    message: str
    remedy: str

    @property
    def level(self) -> str:
        """`error` or `warning`."""
        return RULES[self.rule].level


@dataclass(frozen=True)
class KeyFile:
    """A private key's file: `state` is `read`, `missing`, `encrypted` or `damaged`, and `problem` why it was not read.

    Of the key only the public half is kept. `mode` has the permission bits of the file. `pub_problem`: of key pairs,
    why the public key beside it is not its own.
    """

    path: Path
    state: str
    mode: int = 0
    public: PublicKey | None = None
    problem: str = ""
    pub_problem: str = ""


@dataclass(frozen=True)
class Entry:
    """The files of a certificate or CA: all certificates of its file, or a `problem`; none and no problem is missing.

    Of CAs: `bundle` are the trust anchors, None when there is no such file, and `previous` the CA that a rotation is
    about to replace; `other_keys` are those of the CAs before and after it, of those that are there.
    """

    path: Path
    key: KeyFile
    certificates: tuple[x509.Certificate, ...] = ()
    problem: str = ""
    bundle: tuple[x509.Certificate, ...] | None = None
    bundle_problem: str = ""
    previous: x509.Certificate | None = None
    rotating: bool = False
    other_keys: tuple[KeyFile, ...] = ()

    @property
    def certificate(self) -> x509.Certificate | None:
        """The first of the file, which is the one that is presented."""
        return self.certificates[0] if self.certificates else None


@dataclass(frozen=True)
class Found:
    """What lies in a PKI directory, by the names of the specification."""

    authorities: Mapping[str, Entry] = field(default_factory=dict)
    keypairs: Mapping[str, KeyFile] = field(default_factory=dict)
    certificates: Mapping[str, Entry] = field(default_factory=dict)
