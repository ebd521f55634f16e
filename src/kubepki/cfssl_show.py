"""cfssl's commands that show something: certinfo, bundle, info, print-defaults, version."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import ssl
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from cryptography import x509

from kubepki import bundle as bundles
from kubepki import calls, describe, issue, remote, sources, tls
from kubepki import certinfo as infos
from kubepki import request as requests
from kubepki.calls import Call, answer, load_certificates, load_key, pretty, read, where
from kubepki.errors import CertificateError, FlagError, PrivateKeyError, StoreError
from kubepki.goflags import Flag

_END = b"-----END CERTIFICATE-----"


def _certinfo(call: Call) -> None:
    if call.text("diff"):
        if not call.text("cert"):
            raise FlagError(
                "-diff needs another certificate to compare with (provide it with -cert)", "-cert old.pem -diff new.pem"
            )
        old, new = (load_certificates(call.text(flag))[0] for flag in ("cert", "diff"))
        sys.stdout.write("".join(f"{line}\n" for line in describe.difference(old, new)) or "no difference\n")
    elif call.text("cert"):
        found = load_certificates(call.text("cert"))
        pretty(infos.certificate(found[0]))
        if len(found) > 1:
            call.log.warn(f"{where(call.text('cert'))} holds {len(found)} certificates: this is the first")
    elif call.text("csr"):
        pretty(infos.csr(requests.load(read(call.text("csr")), where(call.text("csr")))))
    elif call.text("domain"):
        pretty(infos.certificate(_served(call.text("domain"))))
    else:
        raise FlagError("Must specify certinfo target through -cert, -csr, or -domain", "-cert server.pem")


def _served(domain: str) -> x509.Certificate:
    """What a server presents, whoever signed it."""
    bare = domain.count(":") > 1 and not domain.startswith("[")
    port_given = re.fullmatch(r"(.+):([0-9]{1,5})", domain) if not bare else None
    host, port = port_given.groups() if port_given else (domain, "443")
    try:
        return tls.presented(host.strip("[]"), int(port), domain)
    except (OSError, ValueError, OverflowError) as error:
        raise CertificateError(f"{domain}: {error}", "is a TLS server listening there?", 6000) from error


def _bundle(call: Call) -> None:
    if call.text("metadata"):
        call.log.warn("-metadata: how widely roots are spread is not weighed; the shortest chain is taken")
    flavor = call.text("flavor")
    if flavor not in ("ubiquitous", "optimal", "force"):
        raise FlagError(f"-flavor {flavor!r}", "there are ubiquitous, optimal and force")
    if call.text("cert"):
        given = load_certificates(call.text("cert"))
    elif call.text("domain"):
        given = [_served(call.text("domain"))]
    else:
        raise FlagError("Must specify bundle target through -cert or -domain", "-cert server.pem")
    key = load_key(call, call.text("key")) if call.text("key") else None
    if key and not issue.matches(key, given[0]):
        raise PrivateKeyError(
            f"{call.text('key')} is not the key of {call.text('cert')}", "give the key of the certificate", 2300
        )
    call.log.info(f"bundling certificate for {given[0].subject.rfc4514_string()}")
    if flavor == "force":
        answer(bundles.as_json(bundles.as_given(given), key))
        return
    roots = call.text("ca-bundle") or ssl.get_default_verify_paths().cafile or ""
    if not roots:
        raise FlagError("this system has no store of roots", "name the roots with -ca-bundle")
    between = [*given[1:], *(load_certificates(call.text("int-bundle")) if call.text("int-bundle") else [])]
    if call.text("int-dir"):
        between += _directory(call.text("int-dir"))
    anchors = load_certificates(roots) if call.text("ca-bundle") else _system_roots(roots)
    chain = bundles.build(given[0], between, anchors, call.now)
    if chain.root:
        call.log.info(f"the anchoring root is {chain.root.subject.rfc4514_string()}")
    answer(bundles.as_json(chain, key))


def _system_roots(path: str) -> list[x509.Certificate]:
    """Those that can be read: what others put into the store must not stop us."""
    found = []
    for block in sources.read(path).split(_END):
        with contextlib.suppress(CertificateError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found += issue.load_all(block + _END, path)
    return found


def _directory(path: str) -> list[x509.Certificate]:
    try:
        files = sorted(one for one in Path(path).iterdir() if one.suffix in (".pem", ".crt"))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", "-int-dir is a directory of intermediates") from error
    return [certificate for one in files for certificate in issue.load_all(sources.read(str(one)), str(one))]


_CONFIG_TEMPLATE = {
    "signing": {
        "default": {"expiry": "168h"},
        "profiles": {
            "www": {"expiry": "8760h", "usages": ["signing", "key encipherment", "server auth"]},
            "client": {"expiry": "8760h", "usages": ["signing", "key encipherment", "client auth"]},
        },
    }
}
_CSR_TEMPLATE = {
    "CN": "example.net",
    "hosts": ["example.net", "www.example.net"],
    "key": {"algo": "ecdsa", "size": 256},
    "names": [{"C": "US", "ST": "CA", "L": "San Francisco"}],
}
_TEMPLATES = {"config": _CONFIG_TEMPLATE, "csr": _CSR_TEMPLATE}


def _print_defaults(call: Call) -> None:
    wanted = call.positional(0, "the type (config, csr or list)")
    if wanted in _TEMPLATES:
        sys.stdout.write(json.dumps(_TEMPLATES[wanted], indent=4) + "\n")
        return
    listing = "".join(["Default configurations are available for:\n", *(f"\t{name}\n" for name in _TEMPLATES)])
    if wanted != "list":
        raise FlagError(f"there is no default {wanted!r}", " ".join(listing.split()))
    sys.stdout.write(listing)


def _info(call: Call) -> None:
    server = call.text("remote")
    if not server:
        raise FlagError("-remote must be given", "a certificate in a file is shown by kubepki certinfo -cert FILE")
    pretty(remote.info(server, call.text("label"), call.text("profile")))


def _version(call: Call) -> None:
    _ = call
    try:
        release = installed("kubewright")
    except PackageNotFoundError:
        release = "dev"
    sys.stdout.write(f"Version: {release}\nRevision: kubepki\nRuntime: Python {platform.python_version()}\n")


certinfo = calls.command(
    _certinfo,
    "kubepki certinfo -- what a certificate says\n\n"
    "    kubepki certinfo -cert FILE [-diff FILE]\n"
    "    kubepki certinfo -csr FILE\n"
    "    kubepki certinfo -domain HOST[:PORT]",
    {
        "cert": Flag("", "certificate, '-' for standard input"),
        "diff": Flag("", "another certificate: shows in words what differs from -cert to it"),
        "csr": Flag("", "certificate signature request, '-' for standard input"),
        "domain": Flag("", "server whose certificate is shown"),
        **calls.COMPAT,
    },
)
bundle = calls.command(
    _bundle,
    "kubepki bundle -- a certificate with its chain\n\n"
    "    kubepki bundle -cert FILE [-ca-bundle FILE] [-int-bundle FILE] [-int-dir DIR] [-key FILE] [-flavor FLAVOR]\n"
    "    kubepki bundle -domain HOST[:PORT] [-ca-bundle FILE] [-int-bundle FILE]",
    {
        "cert": Flag("", "certificate, with its intermediates if it has some"),
        "key": Flag("", "private key for the certificate"),
        "ca-bundle": Flag("", "path to root certificate store"),
        "int-bundle": Flag("", "path to intermediate certificate store"),
        "flavor": Flag("ubiquitous", "Bundle Flavor: ubiquitous, optimal and force."),
        "int-dir": Flag("", "directory of intermediates"),
        "metadata": Flag("", "not used: roots are not weighed"),
        "domain": Flag("", "server whose certificate is bundled"),
        "ca-key-password": Flag("", "password of the key: env:NAME or file:PATH"),
        **calls.COMPAT,
    },
)
print_defaults = calls.command(
    _print_defaults, "kubepki print-defaults -- templates\n\n    kubepki print-defaults config|csr|list", {}
)
info = calls.command(
    _info,
    "kubepki info -- what a remote signer is\n\n    kubepki info -remote HOST[:PORT] [-label LABEL] [-profile PROFILE]",
    {**calls.REMOTE, "profile": calls.CONFIG["profile"], "config": calls.CONFIG["config"]},
)
version = calls.command(_version, "kubepki version -- the version\n\n    kubepki version", {})
