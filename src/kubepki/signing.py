"""What cfssl's `gencert`, `sign` and `selfsign` make of a request: certificates by profile, and CAs.

Everything that could make a certificate that no verifier takes, or one that says more than was meant, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from kubepki import constraints, issue, keys, usages
from kubepki import request as requests
from kubepki.errors import CertificateError, PolicyError, PrivateKeyError, RequestError
from kubepki.issue import Issuer, Template
from kubepki.keys import PrivateKey, PublicKey
from kubepki.names import Name
from kubepki.policy import Policy, PolicyInformation
from kubepki.reading import Reader, Warn
from kubepki.request import CaSettings

_CA_LIFE = timedelta(hours=43800)
_INVALID_REQUEST = 5300
_NOT_WHITELISTED = 5500
# What a certificate says by other means than a copy from the CSR.
_OWN = (
    x509.BasicConstraints,
    x509.SubjectAlternativeName,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
)


def issuer(certificate: x509.Certificate, key: PrivateKey, where: str, now: datetime) -> Issuer:
    """A CA that may sign; CertificateError when it must not. `where` is what messages call the certificate."""
    if not issue.matches(key, certificate):
        raise CertificateError(
            f"the key is not that of {where} (x509: provided PrivateKey doesn't match parent's PublicKey)",
            "give the key that was made together with the certificate: -ca-key",
            1000,
        )
    _strong(key.public_key(), f"that of {where}")
    unfit = issue.unfit(certificate, now)
    if unfit:
        raise CertificateError(
            f"{where} ({certificate.subject.rfc4514_string()}) {unfit}", "give the certificate of a CA: -ca"
        )
    return Issuer(certificate, key)


def sign(
    csr: x509.CertificateSigningRequest,
    policy: Policy,
    ca: Issuer,
    now: datetime,
    warn: Warn,
    *,
    hosts: Sequence[Name] | None = None,
    subject: x509.Name | None = None,
    compat: bool = False,
) -> x509.Certificate:
    """A certificate for the key of a CSR, in whose place `hosts` and `subject` go. PolicyError, RequestError."""
    public = _public(csr)
    allowed = policy.whitelist
    wanted = list(hosts) if hosts is not None else _names(csr, warn, compat=compat)
    if allowed is not None:
        kinds = {"dns": "DNSNames", "ip": "IPAddresses", "email": "EmailAddresses", "uri": "URIs"}
        wanted = [name for name in wanted if kinds[name.kind] in allowed]
        if "PublicKey" not in allowed:
            raise PolicyError(f"the profile {policy.name} lets no key through: CSRWhitelist.PublicKey is false")
    if subject is None:
        subject = csr.subject if allowed is None or "Subject" in allowed else x509.Name([])
    _constraints(csr, policy, ca)
    if policy.is_ca and wanted:
        warn(f"a CA has no names; left out: {', '.join(map(str, wanted))}")
        wanted = []
    if not subject.rdns and not wanted:
        raise RequestError("the certificate would name nobody: no CN, no names, no hosts", "write at least one of them")
    _whitelist(policy, subject, wanted)
    uses = _usages(policy, public)
    _limits(policy, ca, wanted, uses[1])
    life = _life(policy, ca.certificate, now, warn, compat=compat)
    if usages.SERVER_AUTH in uses[1] and not wanted and not policy.is_ca:
        warn('no "hosts": clients refuse a server with this certificate, whatever its CN')
    template = _template(policy, subject, wanted, uses, life)._replace(
        ocsp_url=policy.ocsp_url,
        crl_url=policy.crl_url,
        issuer_urls=policy.issuer_urls,
        extensions=tuple(_extensions(csr, policy)),
    )
    return _signed(template, public, ca.key, ca.certificate)


def _template(
    policy: Policy,
    subject: x509.Name,
    wanted: Sequence[Name],
    uses: tuple[set[str], list[str]],
    life: tuple[datetime, datetime],
) -> Template:
    """What a profile makes of a subject and its names, whoever signs it; `uses` as `_usages` has them."""
    bits, extended = uses
    return Template(
        subject=subject,
        key_usages=frozenset(bits),
        extended_usages=tuple(extended),
        not_before=life[0],
        not_after=life[1],
        names=tuple(wanted),
        is_ca=policy.is_ca,
        path_length=policy.path_length if policy.is_ca else None,
    )


def _signed(
    template: Template, public: PublicKey, key: PrivateKey, ca: x509.Certificate | None = None
) -> x509.Certificate:
    try:
        return issue.sign(template, public, key, ca)
    except (ValueError, TypeError) as error:
        raise RequestError(f"such a certificate cannot be made: {error}") from error


def _public(csr: x509.CertificateSigningRequest) -> PublicKey:
    public = csr.public_key()
    if not isinstance(public, PublicKey):
        raise RequestError("the key of the CSR is neither ECDSA, RSA nor Ed25519", "make the request with another key")
    _strong(public, "that of the CSR")
    return public


def _strong(public: PublicKey, whose: str) -> None:
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < 2048:
        raise PrivateKeyError(
            f"RSA key is too weak: {whose} has {public.key_size} bits", "make one with 2048 or more", 2400
        )


def _names(csr: x509.CertificateSigningRequest, warn: Warn, *, compat: bool) -> list[Name]:
    try:
        found = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    texts = []
    for name in found:
        if type(name) in issue.KINDS:
            texts.append(str(name.value))
            continue
        text = f"the CSR has a name of the kind {type(name).__name__}, which no profile hands on"
        if not compat:
            raise RequestError(text, "name what is wanted with -hostname")
        warn(f"{text} (left out)")
    reader = Reader("the CSR", RequestError, warn, compat=compat)
    read = requests.hosts(reader, "names", tuple(texts), compat=compat)
    reader.finish()
    return list(read)


def _constraints(csr: x509.CertificateSigningRequest, policy: Policy, ca: Issuer) -> None:
    try:
        asks = csr.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        asks = False
    if asks and not policy.is_ca:
        raise PolicyError(
            f"the CSR asks for a CA, and the profile {policy.name} makes none",
            'a profile that does has "ca_constraint": {"is_ca": true}',
            _INVALID_REQUEST,
        )
    if not policy.is_ca:
        return
    length = ca.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if length is not None and (length == 0 or (policy.path_length or 0) >= length):
        name = ca.certificate.subject.rfc4514_string()
        raise PolicyError(
            f"the CA {name} has the path length {length}, and the profile {policy.name} makes a CA with "
            f"{'none' if policy.path_length is None else policy.path_length}",
            "no verifier would take what that CA signs (RFC 5280, 4.2.1.9); "
            + ("sign with the CA above it" if length == 0 else f"set max_path_len to less than {length}"),
            _INVALID_REQUEST,
        )


def _limits(policy: Policy, ca: Issuer, wanted: Sequence[Name], extended: Sequence[str]) -> None:
    """PolicyError for what the CA's own certificate does not let it issue."""
    name = ca.certificate.subject.rfc4514_string()
    beyond = constraints.usages_beyond(ca.certificate, extended)
    if beyond:
        raise PolicyError(
            f"the CA {name} is not for {', '.join(map(usages.name_of, beyond))}, as the profile {policy.name} is",
            "verifiers take a CA's extended usages for a limit: sign with another CA, or by another profile",
            _INVALID_REQUEST,
        )
    refused = constraints.refused(ca.certificate, wanted)
    if refused:
        raise PolicyError(
            f"the CA {name} may not issue for {', '.join(map(str, refused))}: its name constraints say so",
            "no verifier would take it (RFC 5280, 4.2.1.10): sign with another CA",
            _INVALID_REQUEST,
        )


def _whitelist(policy: Policy, subject: x509.Name, wanted: Sequence[Name]) -> None:
    if policy.name_whitelist is None:
        return
    texts = [str(one.value) for one in subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    texts += [name.value for name in wanted if name.kind != "ip"]
    # A line end would hide behind Python's `$`.
    refused = [text for text in texts if "\n" in text or not policy.name_whitelist.search(text)]
    if refused:
        raise PolicyError(
            f"the profile {policy.name} does not allow the names {', '.join(refused)}",
            f"its name_whitelist is {policy.name_whitelist.pattern}",
            _NOT_WHITELISTED,
        )


def _usages(policy: Policy, public: PublicKey) -> tuple[set[str], list[str]]:
    bits, extended = usages.key(policy.usages), usages.extended(policy.usages)
    if policy.adapted and not isinstance(public, rsa.RSAPublicKey):
        bits.discard("key_encipherment")
    if not bits and not extended:
        raise PolicyError(f"the profile {policy.name} has no usages", "name a profile with -profile", 5100)
    if policy.is_ca and "key_cert_sign" not in bits:
        raise PolicyError(
            f"the profile {policy.name} makes a CA that may not sign", 'add "cert sign" and "crl sign" to its usages'
        )
    if not policy.is_ca and "key_cert_sign" in bits:
        raise PolicyError(
            f'the profile {policy.name} has the usage "cert sign" and makes no CA',
            'RFC 5280, 4.2.1.9: remove the usage, or add "ca_constraint": {"is_ca": true}',
        )
    return bits, extended


def _life(
    policy: Policy, ca: x509.Certificate, now: datetime, warn: Warn, *, compat: bool
) -> tuple[datetime, datetime]:
    begin, end = _between(now, policy.backdate, policy.expiry, policy.not_before, policy.not_after)
    if end > ca.not_valid_after_utc:
        last = ca.not_valid_after_utc
        text = f"the profile {policy.name} lets it live until {end:%Y-%m-%d}, its CA ends on {last:%Y-%m-%d}"
        warn(f"{text}: it would outlive its CA" if compat else f"{text}: cut to that")
        end = end if compat else last
    return _alive(begin, end, now, f"the profile {policy.name}: expiry", policy.backdate)


def _between(
    now: datetime, backdate: timedelta, expiry: timedelta, first: datetime | None = None, last: datetime | None = None
) -> tuple[datetime, datetime]:
    """As cfssl reckons: from the nearest minute, less `backdate`, for `expiry`."""
    minute = (now + timedelta(seconds=30)).replace(second=0, microsecond=0)
    begin = first or minute - backdate
    return begin, last or issue.end_of(begin, expiry)


def _alive(begin: datetime, end: datetime, now: datetime, what: str, backdate: timedelta) -> tuple[datetime, datetime]:
    if end <= begin:
        raise PolicyError(
            f"{what} lets it end before it begins: {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
            "look at not_before, not_after and the end of the CA",
        )
    if end <= now:
        raise PolicyError(
            f"{what} makes a certificate that has expired already: it would end {end:%Y-%m-%d %H:%M} UTC",
            f"it counts from {backdate.total_seconds() / 60:g} minutes ago (backdate): make expiry longer",
        )
    return begin, end


def _extensions(csr: x509.CertificateSigningRequest, policy: Policy) -> list[x509.Extension[x509.ExtensionType]]:
    found: list[x509.Extension[x509.ExtensionType]] = []
    if policy.ocsp_no_check:
        found.append(_extension(x509.OCSPNoCheck()))
    if policy.policies:
        found.append(_extension(x509.CertificatePolicies([_information(one) for one in policy.policies])))
    if policy.copy_extensions:
        found += [one for one in csr.extensions if not isinstance(one.value, _OWN)]
    return found


def _extension(value: x509.ExtensionType) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, False, value)


def _information(policy: PolicyInformation) -> x509.PolicyInformation:
    qualifiers: list[str | x509.UserNotice] = [*policy.practices]
    qualifiers += [x509.UserNotice(None, notice) for notice in policy.notices]
    try:
        return x509.PolicyInformation(issue.identifier(policy.oid), qualifiers or None)
    except ValueError as error:
        raise PolicyError(f"Policies: ID: {error}") from error


def authority(
    subject: x509.Name, key: PrivateKey, settings: CaSettings, now: datetime, crl_url: str = ""
) -> x509.Certificate:
    """A self-signed CA, as `gencert -initca` makes it: for five years, and to sign certificates and CRLs only."""
    if not subject.rdns:
        raise RequestError(
            "a CA needs a name: CN and names are empty", "RFC 5280, 4.1.2.6: write a CN", _INVALID_REQUEST
        )
    _strong(key.public_key(), "that of the CA")
    backdate = issue.BACKDATE if settings.backdate is None else settings.backdate
    begin, end = _between(now, backdate, _CA_LIFE if settings.expiry is None else settings.expiry)
    begin, end = _alive(begin, end, now, "ca.expiry", backdate)
    template = Template(
        subject=subject,
        key_usages=frozenset({"key_cert_sign", "crl_sign"}),
        extended_usages=(),
        not_before=begin,
        not_after=end,
        is_ca=True,
        path_length=settings.path_length,
        crl_url=crl_url,
    )
    return _signed(template, key.public_key(), key)


def renewed(ca: x509.Certificate, key: PrivateKey, where: str, now: datetime) -> x509.Certificate:
    """The CA's certificate once more: for as long as before, from now on, with the same key, name and constraints."""
    if not issue.matches(key, ca):
        raise CertificateError(
            f"the key is not that of {where}", "give the key that was made together with it: -ca-key", 1000
        )
    if ca.issuer != ca.subject:
        raise CertificateError(
            f"{where} is not self-signed: {ca.issuer.rfc4514_string()} issued it", "have it renewed there"
        )
    try:
        is_ca = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise CertificateError(f"{where} is no CA", "-renewca is for the certificates of CAs")
    begin, end = _between(now, issue.BACKDATE, ca.not_valid_after_utc - ca.not_valid_before_utc)
    builder = (
        x509.CertificateBuilder()
        # The name's bytes stay as they are: what it issued goes on verifying.
        .subject_name(ca.subject)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for extension in ca.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, keys.digest(key))


def self_signed(
    csr: x509.CertificateSigningRequest, key: PrivateKey, policy: Policy, hosts: Sequence[Name], now: datetime
) -> x509.Certificate:
    """A certificate that is its own issuer, for tests."""
    if not csr.subject.rdns:
        raise RequestError("a certificate that is its own issuer needs a name", "RFC 5280, 4.1.2.4: write a CN")
    uses = _usages(policy, key.public_key())
    # Unlike what a CA signs: not to the minute, and for the whole of `expiry` from now.
    begin = policy.not_before or now.replace(microsecond=0) - policy.backdate
    end = policy.not_after or issue.end_of(now.replace(microsecond=0), policy.expiry)
    life = _alive(begin, end, now, f"the profile {policy.name}: expiry", policy.backdate)
    return _signed(_template(policy, csr.subject, hosts, uses, life), key.public_key(), key)
