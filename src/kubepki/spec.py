"""What should exist: CAs, key pairs and certificates, read from plain data and checked as a whole."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kubepki.errors import SpecError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_DNS = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DURATION = re.compile(r"(\d+)h")
# RFC 5280, appendix A.1: ub-common-name.
_COMMON_NAME_LENGTH = 64
_CURVES = (256, 384, 521)
_USAGES = ("server", "client", "peer")


@dataclass(frozen=True)
class Key:
    """Algorithm (`ecdsa` with 256, 384 or 521 bits, `rsa` with 2048 to 8192) of a private key."""

    algo: str = "ecdsa"
    size: int = 256


@dataclass(frozen=True)
class Authority:
    """A self-signed CA; its files are `<name>-ca.pem` and `<name>-ca-key.pem`."""

    name: str
    cn: str
    key: Key
    expiry: timedelta


@dataclass(frozen=True)
class Certificate:
    """A leaf; its files are `<name>.pem` and `<name>-key.pem`."""

    name: str
    ca: str
    cn: str
    o: tuple[str, ...]
    hosts: tuple[str | IPAddress, ...]
    usage: str
    key: Key
    expiry: timedelta


@dataclass(frozen=True)
class Spec:
    """Everything, by name."""

    authorities: Mapping[str, Authority]
    keypairs: Mapping[str, Key]
    certificates: tuple[Certificate, ...]


class _Reader:
    """Collects every problem instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def keys(self, where: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in data:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                self.problems.append(f"{where}: unknown key {key!r}; {hint}")

    def key(self, where: str, data: Any) -> Key:
        if data is None:
            return Key()
        if not isinstance(data, Mapping):
            self.problems.append(f"{where}: key is {data!r}; write {{algo: ecdsa, size: 256}}")
            return Key()
        self.keys(where, data, ("algo", "size"))
        algo = str(data.get("algo", "ecdsa"))
        size = data.get("size", 256 if algo == "ecdsa" else 2048)
        good = (algo == "ecdsa" and size in _CURVES) or (
            algo == "rsa" and isinstance(size, int) and 2048 <= size <= 8192
        )
        if not good:
            self.problems.append(f"{where}: key {algo} with {size} bits; ecdsa has 256, 384 or 521, rsa 2048 to 8192")
            return Key()
        return Key(algo, int(size))

    def expiry(self, where: str, value: object, default: str) -> timedelta:
        try:
            return duration(str(default if value is None else value))
        except ValueError as error:
            self.problems.append(f"{where}: expiry {error}")
            return timedelta(hours=1)

    def common_name(self, where: str, value: object) -> str:
        text = str(value or "")
        if not text:
            self.problems.append(f"{where}: cn is empty")
        elif len(text) > _COMMON_NAME_LENGTH:
            self.problems.append(f"{where}: cn {text!r} has {len(text)} characters, X.509 allows {_COMMON_NAME_LENGTH}")
        return text

    def hosts(self, where: str, values: object) -> tuple[str | IPAddress, ...]:
        if not isinstance(values, (list, tuple)):
            self.problems.append(f"{where}: hosts is {values!r}; write a list")
            return ()
        found: list[str | IPAddress] = []
        for value in values:
            try:
                host_ = host(str(value))
            except ValueError as error:
                self.problems.append(f"{where}: host {error}")
                continue
            if host_ not in found:
                found.append(host_)
        return tuple(found)


def duration(text: str) -> timedelta:
    """Whole hours such as `8760h`; ValueError says what was seen."""
    match = _DURATION.fullmatch(text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a positive number of hours such as 8760h")
    return timedelta(hours=int(match[1]))


def host(text: str) -> str | IPAddress:
    """A subject alternative name: an address, or a DNS name (a final dot is dropped). ValueError names the reason."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    name = text.removesuffix(".")
    if not name or name != name.strip():
        raise ValueError(f"{text!r} is empty or has blanks around it")
    if "/" in name:
        raise ValueError(f"{text!r} looks like a network; certificates hold single addresses")
    if ":" in name:
        raise ValueError(f"{text!r} holds a port; leave it out")
    if not name.isascii():
        raise ValueError(f"{text!r} is not ASCII; write it in its IDNA form (xn--...)")
    if re.fullmatch(r"[0-9.]+", name):
        raise ValueError(f"{text!r} is neither an address nor a name")
    if not _DNS.fullmatch(name) or len(name) > 253 or any(len(label) > 63 for label in name.split(".")):
        raise ValueError(f"{text!r} is not a DNS name")
    return name


def _certificate(reader: _Reader, data: Mapping[str, Any], authorities: Mapping[str, Any]) -> Certificate:
    name = str(data.get("name") or "")
    where = f"certificate {name!r}"
    reader.keys(where, data, ("name", "ca", "cn", "o", "hosts", "usage", "expiry", "key"))
    if not _NAME.fullmatch(name):
        reader.problems.append(f"{where}: the name must be usable as a file name (letters, digits, '.', '_', '-')")
    ca = str(data.get("ca") or "")
    if ca not in authorities:
        reader.problems.append(f"{where}: unknown ca {ca!r}; there are {', '.join(authorities)}")
    usage = str(data.get("usage") or "")
    if usage not in _USAGES:
        reader.problems.append(f"{where}: usage {usage!r}; it must be one of {', '.join(_USAGES)}")
    hosts = reader.hosts(where, data.get("hosts") or [])
    if usage in ("server", "peer") and not hosts:
        reader.problems.append(f"{where}: a {usage} certificate needs hosts")
    return Certificate(
        name=name,
        ca=ca,
        cn=reader.common_name(where, data.get("cn")),
        o=tuple(str(o) for o in data.get("o") or ()),
        hosts=hosts,
        usage=usage,
        key=reader.key(where, data.get("key")),
        expiry=reader.expiry(where, data.get("expiry"), "8760h"),
    )


def parse(data: Mapping[str, Any]) -> Spec:
    """Read {cas, keypairs, certificates}; a SpecError lists every problem."""
    reader = _Reader()
    reader.keys("spec", data, ("cas", "keypairs", "certificates"))
    authorities = {}
    for name, entry in (data.get("cas") or {}).items():
        where = f"ca {name!r}"
        reader.keys(where, entry, ("cn", "key", "expiry"))
        authorities[str(name)] = Authority(
            name=str(name),
            cn=reader.common_name(where, entry.get("cn")),
            key=reader.key(where, entry.get("key")),
            expiry=reader.expiry(where, entry.get("expiry"), "87600h"),
        )
    keypairs = {str(n): reader.key(f"keypair {n!r}", e) for n, e in (data.get("keypairs") or {}).items()}
    certificates = tuple(_certificate(reader, entry, authorities) for entry in data.get("certificates") or ())
    seen: set[str] = {f"{name}-ca" for name in authorities}
    for certificate in certificates:
        if certificate.name in seen:
            reader.problems.append(f"certificate {certificate.name!r}: the name is used twice")
        seen.add(certificate.name)
    if reader.problems:
        raise SpecError(reader.problems)
    return Spec(authorities, keypairs, certificates)
