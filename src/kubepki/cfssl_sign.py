"""cfssl's commands that make something: gencert, genkey, gencsr, sign, selfsign, gencrl."""

from __future__ import annotations

import base64
import sys
from datetime import timedelta

from cryptography import x509

from kubepki import calls, crl, keys, policy, signing, sources
from kubepki import request as requests
from kubepki.calls import Call, answer, certificate_pem, load_certificates, load_key, only, read, where
from kubepki.errors import FlagError, PolicyError, RequestError, StoreError
from kubepki.goflags import Flag
from kubepki.issue import Issuer
from kubepki.keys import PrivateKey
from kubepki.names import Name
from kubepki.policy import Config
from kubepki.reading import Reader
from kubepki.request import CaSettings, Request


def _key_pem(key: PrivateKey) -> str:
    return keys.traditional_pem(key).decode()


def _request(call: Call, source: str) -> Request:
    return requests.parse(read(source), where(source), call.log.warn, compat=call.compat)


def _config(call: Call) -> Config:
    if not call.text("config"):
        return policy.NO_FILE
    try:
        content = sources.read(call.text("config"))
    except StoreError as error:
        raise PolicyError(f"Failed to load config file: {error.message}", error.hint) from error
    return policy.parse(content, call.text("config"), call.log.warn, compat=call.compat)


def _hosts(call: Call, text: str) -> tuple[Name, ...] | None:
    """The names of -hostname; None without it."""
    if not text:
        return None
    reader = Reader("-hostname", RequestError, call.log.warn, compat=call.compat)
    found = requests.hosts(reader, "hosts", tuple(text.split(",")), compat=call.compat)
    reader.finish()
    return found


def _issuer(call: Call) -> Issuer:
    _refuse_remote(call)
    for flag, what in (("ca", "a CA certificate"), ("ca-key", "the key of the CA")):
        if not call.text(flag):
            raise FlagError(f"need {what} (provide one with -{flag})", "-ca ca.pem -ca-key ca-key.pem")
    certificate = only(load_certificates(call.text("ca")), call.text("ca"))
    return signing.issuer(certificate, load_key(call, call.text("ca-key")), call.text("ca"), call.now)


def _refuse_remote(call: Call) -> None:
    if call.text("remote"):
        raise FlagError("-remote: kubepki signs with a CA key that it can read", "give -ca and -ca-key, or use cfssl")


def _generate(call: Call, request: Request) -> PrivateKey:
    call.log.info(f"generating key: {request.key.algo}-{request.key.size}")
    return keys.generate(request.key)


def _signed(call: Call, certificate: x509.Certificate) -> x509.Certificate:
    call.log.info(f"signed certificate with serial number {certificate.serial_number}")
    return certificate


def _csr(call: Call, request: Request, key: PrivateKey, *, ca: bool = False) -> x509.CertificateSigningRequest:
    hosts = () if ca else request.hosts
    if ca and request.hosts:
        call.log.warn(f"a CA has no names; left out: {', '.join(map(str, request.hosts))}")
    settings = (request.ca or CaSettings()) if ca else None
    found = requests.sign(request.subject, hosts, key, settings, request.extensions)
    call.log.info("encoded CSR")
    return found


def _gencert(call: Call) -> None:
    if call.arguments.switch("renewca"):
        _renewca(call)
    elif call.arguments.switch("initca"):
        _initca(call)
    else:
        _leaf(call)


def _renewca(call: Call) -> None:
    for flag in ("ca", "ca-key"):
        if not call.text(flag):
            raise FlagError(f"-renewca needs -{flag}", "gencert -renewca -ca ca.pem -ca-key ca-key.pem")
    call.log.info("re-generate a CA certificate from CA cert and key")
    ca = only(load_certificates(call.text("ca")), call.text("ca"))
    made = signing.renewed(ca, load_key(call, call.text("ca-key")), call.text("ca"), call.now)
    answer({"cert": certificate_pem(_signed(call, made))})


def _initca(call: Call) -> None:
    request = _named(call, _request(call, call.positional(0, "the JSON of the request")))
    known = call.text("ca-key")
    call.log.info(
        "re-generate a CA certificate from CSR and CA key"
        if known
        else "generating a new CA key and certificate from CSR"
    )
    key = load_key(call, known) if known else _generate(call, request)
    found = _new_authority(call, request, key)
    answer(found if known else {**found, "key": _key_pem(key)})


def _new_authority(call: Call, request: Request, key: PrivateKey) -> dict[str, str]:
    csr = _csr(call, request, key, ca=True)
    made = signing.authority(request.subject, key, request.ca or CaSettings(), call.now, request.crl_url)
    return {"cert": certificate_pem(_signed(call, made)), "csr": certificate_pem(csr)}


def _named(call: Call, request: Request) -> Request:
    """With the name of -cn in the place of CN."""
    name = call.text("cn") if "cn" in call.arguments.values else ""
    return request._replace(subject=requests.with_common_name(request.subject, name)) if name else request


def _leaf(call: Call) -> None:
    request = _named(call, _request(call, call.positional(0, "the JSON of the request")))
    if request.ca:
        raise RequestError("ca section only permitted in initca", "remove it, or call gencert -initca")
    named = _hosts(call, call.text("hostname"))
    request = request if named is None else request._replace(hosts=named)
    profile = policy.choose(
        _config(call), call.text("profile"), call.text("config") or "no -config", call.log.warn, compat=call.compat
    )
    issuer = _issuer(call)
    key = _generate(call, request)
    csr = _csr(call, request, key)
    made = signing.sign(csr, profile, issuer, call.now, call.log.warn, compat=call.compat)
    answer({"cert": certificate_pem(_signed(call, made)), "csr": certificate_pem(csr), "key": _key_pem(key)})


def _genkey(call: Call) -> None:
    request = _request(call, call.positional(0, "the JSON of the request"))
    key = _generate(call, request)
    if call.arguments.switch("initca"):
        answer({**_new_authority(call, request, key), "key": _key_pem(key)})
        return
    answer({"csr": certificate_pem(_csr(call, request, key)), "key": _key_pem(key)})


def _gencsr(call: Call) -> None:
    if not call.text("key"):
        raise FlagError("need the key to sign the CSR with (provide one with -key)", "-key server-key.pem")
    key = load_key(call, call.text("key"))
    if call.text("cert"):
        certificate = load_certificates(call.text("cert"))[0]
        csr = requests.sign(certificate.subject, requests.names_of(certificate, call.text("cert")), key)
        call.log.info("encoded CSR")
    else:
        csr = _csr(call, _request(call, call.positional(0, "the JSON of the request, or -cert,")), key)
    answer({"csr": certificate_pem(csr), "key": _key_pem(key)})


def _sign(call: Call) -> None:
    source = call.text("csr") or call.positional(0, "the CSR")
    try:
        content = read(source)
    except StoreError as error:
        raise RequestError(error.message, error.hint, 9001) from error
    csr = requests.load(content, where(source))
    rest = call.arguments.given[0 if call.text("csr") else 1 :]
    subject = _request(call, rest[0]).subject if rest else None
    hosts = _hosts(call, call.text("hostname"))
    profile = policy.choose(
        _config(call), call.text("profile"), call.text("config") or "no -config", call.log.warn, compat=call.compat
    )
    made = signing.sign(
        csr, profile, _issuer(call), call.now, call.log.warn, hosts=hosts, subject=subject, compat=call.compat
    )
    answer({"cert": certificate_pem(_signed(call, made)), "csr": certificate_pem(csr)})


def _selfsign(call: Call) -> None:
    hostname = call.positional(0, "the host name")
    request = _request(call, call.positional(1, "the JSON of the request"))
    profile = policy.choose(_config(call), "", call.text("config"), call.log.warn, compat=call.compat)
    if not call.text("config"):
        # A quarter of a year, as cfssl's own policy has it.
        profile = policy.Policy(adapted=True, expiry=timedelta(hours=2190))
    names = dict.fromkeys([*(_hosts(call, hostname) or ()), *request.hosts])
    key = _generate(call, request)
    csr = _csr(call, request, key)
    made = signing.self_signed(csr, key, profile, tuple(names), call.now)
    sys.stderr.write(
        "*** WARNING ***\n\nSelf-signed certificates are for tests: nothing that matters should trust one.\n\n"
    )
    answer({"cert": certificate_pem(made), "csr": certificate_pem(csr), "key": _key_pem(key)})


def _gencrl(call: Call) -> None:
    listed = call.positional(0, "the list of serial numbers")
    numbers = crl.serials(read(listed), where(listed))
    source = call.positional(1, "the certificate of the CA")
    certificate = only(load_certificates(source), source)
    key = load_key(call, call.positional(2, "the key of the CA"))
    life = crl.life(call.arguments.given[3]) if len(call.arguments.given) > 3 else crl.LIFE
    made = crl.make(numbers, signing.issuer(certificate, key, where(source), call.now), call.now, life)
    sys.stdout.write(base64.b64encode(made).decode() + "\n")


_JSON = "    CSRJSON:    JSON file of the request, '-' for standard input"
gencert = calls.command(
    _gencert,
    "kubepki gencert -- generate a new key and signed certificate\n\n"
    "    kubepki gencert -initca CSRJSON\n"
    "    kubepki gencert -initca -ca-key KEY CSRJSON\n"
    "    kubepki gencert -renewca -ca CERT -ca-key KEY\n"
    "    kubepki gencert -ca CERT -ca-key KEY [-config CONFIG] [-profile PROFILE] [-hostname NAMES] CSRJSON\n\n"
    + _JSON,
    {
        **calls.INITCA,
        "renewca": Flag(False, "re-generate a CA certificate from existing CA certificate and key"),
        **calls.CA,
        **calls.CONFIG,
        **calls.HOSTNAME,
        "cn": Flag("", "Common Name (CN)"),
        **calls.REMOTE,
        **calls.COMPAT,
    },
)
genkey = calls.command(
    _genkey,
    "kubepki genkey -- generate a new key and CSR\n\n    kubepki genkey [-initca] CSRJSON\n\n" + _JSON,
    {**calls.INITCA, "config": calls.CONFIG["config"], **calls.COMPAT},
)
gencsr = calls.command(
    _gencsr,
    "kubepki gencsr -- generate a CSR for a key that exists\n\n"
    "    kubepki gencsr -key KEY CSRJSON\n    kubepki gencsr -key KEY -cert CERT\n\n" + _JSON,
    {
        "key": Flag("", "private key for the CSR"),
        "cert": Flag("", "certificate whose subject and names the CSR takes"),
        "ca-key-password": Flag("", "password of the key: env:NAME or file:PATH"),
        **calls.COMPAT,
    },
)
sign = calls.command(
    _sign,
    "kubepki sign -- sign a CSR\n\n"
    "    kubepki sign -ca CERT -ca-key KEY [-config CONFIG] [-profile PROFILE] [-hostname NAMES] CSR [SUBJECT]\n\n"
    "    CSR:        PEM file of the request, '-' for standard input\n"
    "    SUBJECT:    JSON file with the subject to use in the place of the CSR's",
    {
        **calls.HOSTNAME,
        "csr": Flag("", "PEM file of the request"),
        **calls.CA,
        **calls.CONFIG,
        **calls.REMOTE,
        **calls.COMPAT,
    },
)
selfsign = calls.command(
    _selfsign,
    "kubepki selfsign -- generate a key and a self-signed certificate, for tests\n\n"
    "    kubepki selfsign HOSTNAME CSRJSON\n\n" + _JSON,
    {"config": calls.CONFIG["config"], **calls.COMPAT},
)
gencrl = calls.command(
    _gencrl,
    "kubepki gencrl -- a certificate revocation list, base64\n\n"
    "    kubepki gencrl INPUTFILE CERT KEY [SECONDS]\n\n"
    "    INPUTFILE:  serial numbers, decimal, one per line, '-' for standard input\n"
    "    SECONDS:    from now until the next list, 604800 unless told",
    {"ca-key-password": calls.CA["ca-key-password"], **calls.COMPAT},
)
