"""Keys and certificates in memory: made, and read back."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubepki.spec import Authority, Certificate, Key

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES: dict[int, ec.EllipticCurve] = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}
_USAGES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "peer": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}
# Clocks of machines differ a little: a certificate is valid from shortly before it was made.
BACKDATE = timedelta(minutes=5)


def generate(key: Key) -> PrivateKey:
    """A new private key."""
    if key.algo == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=key.size)
    return ec.generate_private_key(_CURVES[key.size])


def key_pem(key: PrivateKey) -> bytes:
    """PKCS#8, unencrypted: etcd and Kubernetes read nothing else."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def matches(key: PrivateKey, certificate: x509.Certificate) -> bool:
    """Whether the certificate is for this key."""
    return key.public_key() == certificate.public_key()


def subject(cn: str, organisations: tuple[str, ...]) -> x509.Name:
    """O before CN, as everybody writes them."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organisations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, cn)])


def _key_usage(*, signature: bool, encipherment: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def leaf_key_usage(key: PrivateKey) -> x509.KeyUsage:
    """RSA keys may also encipher (TLS 1.2 key exchange); EC keys only sign."""
    return _key_usage(signature=True, encipherment=isinstance(key, rsa.RSAPrivateKey), authority=False)


def authority(wanted: Authority, key: PrivateKey, now: datetime) -> x509.Certificate:
    """A self-signed CA certificate (RFC 5280 section 4.2)."""
    name = subject(wanted.cn, ())
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + wanted.expiry)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(signature=True, encipherment=False, authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(ca.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def unfit_authority(certificate: x509.Certificate, now: datetime) -> str:
    """Why a certificate cannot issue others (RFC 5280, 4.2.1.9 and 4.2.1.3); empty when it can."""
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "is no CA: its basic constraints say so"
    except x509.ExtensionNotFound:
        return "is no CA: it has no basic constraints"
    try:
        if not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            return "is a CA whose key usage lacks the signing of certificates"
    except x509.ExtensionNotFound:
        pass  # no restriction
    if now >= certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def alternative_names(wanted: Certificate) -> list[x509.GeneralName]:
    """DNS names and addresses in the order of the specification."""
    return [x509.DNSName(h) if isinstance(h, str) else x509.IPAddress(h) for h in wanted.hosts]


def usages(wanted: Certificate) -> list[x509.ObjectIdentifier]:
    """Extended key usages."""
    return _USAGES[wanted.usage]


def leaf(
    wanted: Certificate, key: PrivateKey, ca: x509.Certificate, ca_key: PrivateKey, now: datetime
) -> x509.Certificate:
    """A certificate that never outlives its CA."""
    # The issuer's name is handed on as it is: Go compares the encoded bytes, not the values.
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(wanted.cn, wanted.o))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - BACKDATE, ca.not_valid_before_utc))
        .not_valid_after(min(now + wanted.expiry, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(leaf_key_usage(key), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages(wanted)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key_identifier(ca), critical=False)
    )
    names = alternative_names(wanted)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca_key, hashes.SHA256())
