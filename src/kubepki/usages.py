"""The names of key usages, as cfssl's configuration files have them."""

from __future__ import annotations

from collections.abc import Iterable

# Name -> attribute of a KeyUsage (RFC 5280, 4.2.1.3).
KEY = {
    "signing": "digital_signature",
    "digital signature": "digital_signature",
    "content commitment": "content_commitment",
    "key encipherment": "key_encipherment",
    "key agreement": "key_agreement",
    "data encipherment": "data_encipherment",
    "cert sign": "key_cert_sign",
    "crl sign": "crl_sign",
    "encipher only": "encipher_only",
    "decipher only": "decipher_only",
}
# Name -> object identifier of an extended usage (RFC 5280, 4.2.1.12).
EXTENDED = {
    "any": "2.5.29.37.0",
    "server auth": "1.3.6.1.5.5.7.3.1",
    "client auth": "1.3.6.1.5.5.7.3.2",
    "code signing": "1.3.6.1.5.5.7.3.3",
    "email protection": "1.3.6.1.5.5.7.3.4",
    "s/mime": "1.3.6.1.5.5.7.3.4",
    "ipsec end system": "1.3.6.1.5.5.7.3.5",
    "ipsec tunnel": "1.3.6.1.5.5.7.3.6",
    "ipsec user": "1.3.6.1.5.5.7.3.7",
    "timestamping": "1.3.6.1.5.5.7.3.8",
    "ocsp signing": "1.3.6.1.5.5.7.3.9",
    "microsoft sgc": "1.3.6.1.4.1.311.10.3.3",
    "netscape sgc": "2.16.840.1.113730.4.1",
}
# As cfssl wrote it until 2017.
_FORMER = {"content committment": "content commitment"}
SERVER_AUTH = EXTENDED["server auth"]
CLIENT_AUTH = EXTENDED["client auth"]


def unknown(names: Iterable[str]) -> list[str]:
    """Those that are the name of no usage."""
    return [name for name in names if _FORMER.get(name, name) not in KEY and name not in EXTENDED]


def known() -> list[str]:
    """All names."""
    return [*KEY, *EXTENDED]


def key(names: Iterable[str]) -> set[str]:
    """The attributes of a KeyUsage that these names set."""
    return {KEY[today] for name in names if (today := _FORMER.get(name, name)) in KEY}


def bits(extension: object) -> list[str]:
    """The attributes that are set in a KeyUsage. The last two are defined only beside key agreement (RFC 5280)."""
    agreement = getattr(extension, "key_agreement", False)
    asked = [bit for bit in dict.fromkeys(KEY.values()) if agreement or not bit.endswith("_only")]
    return [bit for bit in asked if getattr(extension, bit)]


def extended(names: Iterable[str]) -> list[str]:
    """Object identifiers in the order of the names, each once."""
    return list(dict.fromkeys(EXTENDED[name] for name in names if name in EXTENDED))


def name_of(oid: str) -> str:
    """The name of an extended usage, or its number when it has none."""
    return next((name for name, number in EXTENDED.items() if number == oid), oid)
