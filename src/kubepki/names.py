"""Subject alternative names: what a text in `hosts` stands for, and what must not become a name at all.

cfssl tries address, e-mail, URI and takes the rest for a DNS name, whatever it is. Verifiers stumble over such names:
since CVE-2025-58187 Go refuses to parse a certificate with an empty DNS name.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# An underscore is no host name's, but names of machines have it, and verifiers take it.
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_DNS = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)([/?#].*)?")
# RFC 3986: what a path, query or fragment is made of.
_URI_REST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*")
_AUTHORITY = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=:-]*@)?(\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]@]+))(:[0-9]+)?")
_EMAIL = re.compile(rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(\.{_LABEL})*")
# What the two editions of IDNA make different names of.
_AMBIGUOUS = set("ßς\u200c\u200d")
# What people call the kinds of names, where the name alone does not tell.
WORDS = {"dns": "a DNS name", "email": "an e-mail address", "uri": "a URI", "ip": "an address"}
# RFC 1035, 2.3.4.
LONGEST_NAME = 253
LONGEST_LABEL = 63


class Name(NamedTuple):
    """A subject alternative name; `kind` is `dns`, `email`, `ip` or `uri`."""

    kind: str
    value: str

    def __str__(self) -> str:
        return self.value

    @property
    def address(self) -> IPAddress:
        """The address of a name of kind `ip`."""
        return ipaddress.ip_address(self.value)


def parse(text: str) -> Name:
    """What a text in `hosts` means. ValueError says what is wrong with it and what to write."""
    try:
        return Name("ip", str(_address(text)))
    except ValueError:
        pass
    if "://" in text and text.isascii() and not re.search(r"\s", text):
        if not _is_uri(text):
            raise ValueError(
                f"{text!r} is no URI that verifiers can read; write scheme://host/path, other bytes as %XX"
            )
        return Name("uri", text)
    if not text.strip():
        raise ValueError(f"{text!r} is empty; remove it: verifiers refuse a certificate with an empty name")
    if text != text.strip() or re.search(r"\s", text):
        raise ValueError(f"{text!r} has blanks in it; write each name for itself, without blanks")
    if not text.isascii():
        raise ValueError(f"{text!r} is not ASCII; {_idna(text)}")
    if _EMAIL.fullmatch(text):
        return Name("email", text)
    _refuse_addresses(text)
    if text.endswith(".") and _is_dns(text[:-1]):
        raise ValueError(f"{text!r} ends in a dot; write {text[:-1]}: names in certificates have none")
    if not _is_dns(text):
        raise ValueError(f"{text!r} is no DNS name, address, URI or e-mail address")
    return Name("dns", text)


def _address(text: str) -> IPAddress:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise ValueError
    # An IPv4 address in other clothes; verifiers look for four bytes.
    return getattr(address, "ipv4_mapped", None) or address


def _is_uri(text: str) -> bool:
    """Whether Go and others can read it (RFC 3986, with a host that is a name or an address)."""
    parts = _URI.fullmatch(text)
    authority = parts and _AUTHORITY.fullmatch(parts[1])
    if not parts or not authority or not _URI_REST.fullmatch(parts[2] or ""):
        return False
    if authority["v6"] is not None:
        try:
            ipaddress.IPv6Address(authority["v6"])
        except ValueError:
            return False
        return "%" not in authority["v6"]
    return _is_dns(authority["host"])


def _is_dns(text: str) -> bool:
    short = all(len(label) <= LONGEST_LABEL for label in text.split("."))
    return bool(_DNS.fullmatch(text)) and len(text) <= LONGEST_NAME and short


def _refuse_addresses(text: str) -> None:
    """What was meant as an address, and is none."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone; write the address without it")
    if "/" in text:
        address, _, _ = text.partition("/")
        raise ValueError(f"{text!r} looks like a network; write the addresses that are used, such as {address}")
    bare = text.removeprefix("[").removesuffix("]")
    if bare != text:
        raise ValueError(f"{text!r} has brackets; write {bare}")
    if ":" in text:
        host = text.rpartition(":")[0].removeprefix("[").removesuffix("]")
        raise ValueError(f"{text!r} has a port; write {host}: names in certificates have none")
    if re.fullmatch(r"[0-9.]+", text):
        raise ValueError(
            f"{text!r} is neither an address nor a name; an address is four numbers up to 255, without 0 in front"
        )


def _idna(text: str) -> str:
    if set(text) & _AMBIGUOUS:
        return "write it in its IDNA form (xn--...), as its registry has it"
    try:
        return f"write it in its IDNA form, {text.encode('idna').decode()}"
    except UnicodeError:
        return "and has no IDNA form"
