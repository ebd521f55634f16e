"""Private keys: made, read and written.

Here and in what else each process of cfssl's commands loads, records are named tuples: a dataclass takes a
millisecond to make.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kubepki.errors import PrivateKeyError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
_CURVES: dict[int, ec.EllipticCurve] = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}
# cfssl's label, which nothing else reads: the content is PKCS#8.
ODD_LABEL = b"Ed25519 PRIVATE KEY"
_BLOCK = re.compile(rb"-----BEGIN ((?:[A-Za-z0-9]+ )*PRIVATE KEY)-----")


class Key(NamedTuple):
    """Algorithm (`ecdsa` with 256, 384 or 521 bits, `rsa` with 2048 to 8192, `ed25519` with 256) of a private key."""

    algo: str = "ecdsa"
    size: int = 256

    def __str__(self) -> str:
        return self.algo if self.algo == "ed25519" else f"{self.algo} {self.size}"


def generate(key: Key) -> PrivateKey:
    """A new private key."""
    if key.algo == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=key.size)
    if key.algo == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[key.size])


def kind(key: PrivateKey | PublicKey) -> Key:
    """Algorithm and size of a key."""
    if isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        return Key("ed25519", 256)
    return Key("rsa" if isinstance(key, (rsa.RSAPrivateKey, rsa.RSAPublicKey)) else "ecdsa", key.key_size)


def digest(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """The hash to sign with, as strong as the key (cfssl's choice); None for Ed25519, which has its own."""
    found = kind(key)
    if found.algo == "ed25519":
        return None
    limits = (4096, 3072) if found.algo == "rsa" else (521, 384)
    if found.size >= limits[0]:
        return hashes.SHA512()
    return hashes.SHA384() if found.size >= limits[1] else hashes.SHA256()


def pem(key: PrivateKey, password: bytes = b"") -> bytes:
    """PKCS#8; encrypted when there is a password. etcd and Kubernetes read only what is not."""
    cipher = serialization.BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)


def traditional_pem(key: PrivateKey) -> bytes:
    """PKCS#1 or SEC 1, as cfssl writes keys; PKCS#8 for Ed25519, which has no other form."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return pem(key)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def public_pem(key: PrivateKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def is_encrypted(content: bytes) -> bool:
    """Whether a PEM text holds a private key that needs a password."""
    found = _BLOCK.search(content)
    return found is not None and (found[1].startswith(b"ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in content)


def load(content: bytes, where: str, password: Callable[[], bytes] | None = None) -> PrivateKey:
    """The private key in a PEM text. PrivateKeyError; `where` is what its messages call the text.

    `password` is asked for a key that is encrypted (PKCS#8, or PEM's own way of old), and only then.
    """
    found = _BLOCK.search(content)
    if not found:
        what = "is empty" if not content.strip() else "holds no private key in PEM"
        raise PrivateKeyError(f"{where} {what}", "a key begins with -----BEGIN PRIVATE KEY-----", 2002)
    if found[1] == ODD_LABEL:
        content = content.replace(ODD_LABEL, b"PRIVATE KEY")
    encrypted = is_encrypted(content)
    secret = password() if encrypted and password else b""
    if encrypted and not secret:
        raise PrivateKeyError(f"{where} is encrypted", "name its password: env:NAME or file:PATH", 2100)
    try:
        key = _parsed(content, secret)
    # An Ed25519 key of another length is an InternalError.
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        if encrypted:
            raise PrivateKeyError(f"{where} cannot be decrypted", "is it the right password?", 2100) from error
        raise PrivateKeyError(f"{where} is damaged", "it was cut or changed: restore it", 2003) from error
    if not isinstance(key, PrivateKey):
        raise PrivateKeyError(f"{where} is neither ECDSA, RSA nor Ed25519", code=2200)
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size not in _CURVES:
        raise PrivateKeyError(f"{where} is on the curve {key.curve.name}", "use P-256, P-384 or P-521", 2003)
    return key


def _parsed(content: bytes, password: bytes) -> PrivateKeyTypes:
    # Whether its factors are prime takes OpenSSL up to half a second for each RSA key, and damage shows without it.
    key = serialization.load_pem_private_key(content, password or None, unsafe_skip_rsa_key_validation=True)
    if not consistent(key):
        raise ValueError("the numbers of the key do not fit each other")
    return key


def consistent(key: PrivateKeyTypes) -> bool:
    """Whether the numbers of an RSA key fit each other (RFC 8017, 3.2), but for the proof that p and q are prime.

    Keys of other kinds are consistent when they can be read.
    """
    if not isinstance(key, rsa.RSAPrivateKey):
        return True
    found = key.private_numbers()
    p, q, d, n, e = found.p, found.q, found.d, found.public_numbers.n, found.public_numbers.e
    return (
        min(p, q) > 2
        and p * q == n
        and (d * e) % (p - 1) == (d * e) % (q - 1) == 1
        and (found.dmp1, found.dmq1) == (d % (p - 1), d % (q - 1))
        and (found.iqmp * q) % p == 1
    )
