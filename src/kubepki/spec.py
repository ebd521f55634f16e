"""What should exist: CAs, key pairs and certificates, read from plain data and checked as a whole."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from kubepki import durations, names, usages
from kubepki.errors import SpecError, StoreError
from kubepki.keys import Key

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# A name of a user or group, or its number.
_ACCOUNT = r"(?:[A-Za-z_][A-Za-z0-9_.-]{0,63}|[0-9]{1,9})"
_OWNER = re.compile(rf"{_ACCOUNT}(:{_ACCOUNT})?")
_MODES = (0o600, 0o400, 0o640, 0o440)
# RFC 5280, appendix A.1: ub-common-name, ub-organization-name.
_SUBJECT_LENGTH = 64
_CURVES = (256, 384, 521)
_LARGEST = 10 * 2**20
# Files of a CA that is being replaced (see `rotation`): no certificate may take their names.
_ROTATING = ("-next.pem", "-next-key.pem", "-previous.pem", "-previous-key.pem")
# What a certificate, or a CA, is for in a cluster: `rules` says what each must have.
CA_ROLES = ("kubernetes", "etcd", "front-proxy", "kubelet-signer")
ROLES = (
    "apiserver",
    "apiserver-kubelet-client",
    "apiserver-etcd-client",
    "front-proxy-client",
    "controller-manager",
    "scheduler",
    "kube-proxy",
    "admin",
    "kubelet-client",
    "kubelet-server",
    "etcd-server",
    "etcd-peer",
    "etcd-client",
)


@dataclass(frozen=True)
class Profile:
    """Usages by cfssl's names, and a length of life. With `adapted`, RSA keys may encipher as well (TLS 1.2)."""

    name: str
    usages: tuple[str, ...]
    expiry: timedelta
    adapted: bool = False


_LIFE = timedelta(hours=8760)
# There without being written; a specification may say something else under the same names.
PROFILES: Mapping[str, Profile] = {
    "server": Profile("server", ("signing", "server auth"), _LIFE, adapted=True),
    "client": Profile("client", ("signing", "client auth"), _LIFE, adapted=True),
    "peer": Profile("peer", ("signing", "server auth", "client auth"), _LIFE, adapted=True),
}


@dataclass(frozen=True)
class Authority:
    """A self-signed CA; its files are `<name>-ca.pem`, `<name>-ca-key.pem` and `<name>-ca-bundle.pem`.

    `password`: `env:NAME` or `file:PATH`, where the password of the key is; empty for a key that is not encrypted.
    `role`: one of CA_ROLES or empty. `consumers`: who trusts this CA, and must be told before it changes.
    """

    name: str
    cn: str
    o: tuple[str, ...]
    key: Key
    expiry: timedelta
    password: str = ""
    role: str = ""
    consumers: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What its files' names begin with."""
        return f"{self.name}-ca"


@dataclass(frozen=True)
class Certificate:
    """A leaf; its files are `<path>.pem` and `<path>-key.pem`.

    `owner`: `USER` or `USER:GROUP` of both files, empty for whoever runs this. `mode`: of the key. `consumers`: who
    presents the certificate, and is to be restarted or reloaded after a change. `role`: one of ROLES or empty.
    """

    name: str
    path: str
    ca: str
    cn: str
    o: tuple[str, ...]
    hosts: tuple[names.Name, ...]
    profile: Profile
    key: Key
    expiry: timedelta
    owner: str = ""
    mode: int = 0o600
    role: str = ""
    consumers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What the rules must know of a cluster: its networks of Services, its DNS domain."""

    service_networks: tuple[Network, ...] = ()
    dns_domain: str = "cluster.local"


@dataclass(frozen=True)
class Spec:
    """Everything, by name."""

    authorities: Mapping[str, Authority]
    keypairs: Mapping[str, Key]
    certificates: tuple[Certificate, ...]
    cluster: Surroundings = field(default_factory=Surroundings)


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

    def mapping(self, where: str, data: object) -> Mapping[Any, Any]:
        if data is None or isinstance(data, Mapping):
            return data or {}
        self.problems.append(f"{where} is {data!r:.60}; write key: value")
        return {}

    def texts(self, where: str, data: object) -> tuple[str, ...]:
        if data is None:
            return ()
        if not isinstance(data, (list, tuple)) or not all(isinstance(one, str) and one for one in data):
            self.problems.append(f"{where} is {data!r:.60}; write a list of texts")
            return ()
        return tuple(dict.fromkeys(data))

    def text(self, where: str, value: object) -> str:
        """A text; YAML takes what is written without quotes for numbers, dates and truths, and for texts the rest."""
        if value is None or isinstance(value, str):
            return value or ""
        advice = "write one text" if isinstance(value, (Mapping, list, tuple)) else "write it in quotes"
        self.problems.append(f"{where} is {value!r:.60}; {advice}")
        return ""

    def named(self, where: str, data: Mapping[Any, Any]) -> dict[str, Any]:
        """A mapping whose keys are names."""
        for name in data:
            if not isinstance(name, str):
                self.problems.append(f"{where}: name is {name!r:.60}; write it in quotes")
        return {str(name): entry for name, entry in data.items()}

    def choice(self, where: str, value: object, known: Sequence[str]) -> str:
        text = self.text(where, value)
        if text and text not in known:
            self.problems.append(f"{where} {text!r}; it must be one of {', '.join(known)}")
        return text

    def key(self, where: str, data: Any) -> Key:
        if data is None:
            return Key()
        if not isinstance(data, Mapping):
            self.problems.append(f"{where}: key is {data!r}; write {{algo: ecdsa, size: 256}}")
            return Key()
        self.keys(where, data, ("algo", "size"))
        algo = str(data.get("algo", "ecdsa"))
        size = data.get("size", 2048 if algo == "rsa" else 256)
        good = (
            (algo == "ecdsa" and size in _CURVES)
            or (algo == "rsa" and isinstance(size, int) and 2048 <= size <= 8192)
            or (algo == "ed25519" and size == 256)
        )
        if isinstance(size, str) and size.isdecimal():
            self.problems.append(f"{where}: key size is {size!r:.60}; write the number without quotes")
            return Key()
        if not good:
            self.problems.append(
                f"{where}: key {algo} with {size} bits; ecdsa has 256, 384 or 521, rsa 2048 to 8192, ed25519 256"
            )
            return Key()
        return Key(algo, int(size))

    def expiry(self, where: str, value: object, default: timedelta) -> timedelta:
        if value is None:
            return default
        try:
            return durations.positive(str(value))
        except ValueError as error:
            self.problems.append(f"{where}: expiry {error}")
            return default

    def common_name(self, where: str, value: object) -> str:
        text = self.text(f"{where}: cn", value)
        if value is None or value == "":
            self.problems.append(f"{where}: cn is empty")
        self._subject(f"{where}: cn", text)
        return text

    def organisations(self, where: str, value: object) -> tuple[str, ...]:
        found = self.texts(f"{where}: o", value)
        for text in found:
            self._subject(f"{where}: o", text)
        return found

    def _subject(self, where: str, text: str) -> None:
        if len(text) > _SUBJECT_LENGTH:
            self.problems.append(f"{where} {text!r:.80} has {len(text)} characters, X.509 allows {_SUBJECT_LENGTH}")
        if not text.isprintable():
            self.problems.append(f"{where} {text!r:.80} has characters that cannot be printed; remove them")

    def file_name(self, where: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            self.problems.append(
                f"{where}: the name must be usable as a file name (letters, digits, '.', '_', '-', at most 128)"
            )

    def hosts(self, where: str, values: object) -> tuple[names.Name, ...]:
        if values is None:
            return ()
        if not isinstance(values, (list, tuple)):
            self.problems.append(f"{where}: hosts is {values!r:.60}; write a list")
            return ()
        found: list[names.Name] = []
        for value in values:
            if not isinstance(value, str):
                self.problems.append(f"{where}: host is {value!r:.60}; write it in quotes")
                continue
            try:
                found.append(names.parse(value))
            except ValueError as error:
                self.problems.append(f"{where}: host {error}")
        return tuple(dict.fromkeys(found))

    def mode(self, where: str, value: object) -> int:
        if value is None:
            return 0o600
        # YAML reads 0640 as a number in base eight, and "0640" as a text.
        try:
            mode = value if isinstance(value, int) else int(str(value), 8)
        except ValueError:
            mode = -1
        if mode not in _MODES:
            meant = [f"{one:04o}" for one in _MODES if isinstance(value, int) and f"{one:o}" == str(value)]
            advice = f'write "{meant[0]}"' if meant else "a key has 0600, 0400, 0640 or 0440"
            self.problems.append(f"{where}: mode {value!r:.60}; {advice}")
            return 0o600
        return mode

    def owner(self, where: str, value: object) -> str:
        text = self.text(f"{where}: owner", value)
        if text and not _OWNER.fullmatch(text):
            self.problems.append(f"{where}: owner {text!r}; write user or user:group")
        return text

    def password(self, where: str, value: object) -> str:
        text = value if isinstance(value, str) else "" if value is None else "no text"
        kind, _, rest = text.partition(":")
        if text and (kind not in ("env", "file") or not rest):
            # The value may be the password itself.
            self.problems.append(f"{where}: password is neither env:NAME nor file:PATH; write where the password is")
        return text

    def profile(self, name: str, data: object) -> Profile:
        where = f"profile {name!r}"
        entry = self.mapping(where, data)
        self.keys(where, entry, ("usages", "expiry"))
        wanted = self.texts(f"{where}: usages", entry.get("usages"))
        for usage in usages.unknown(wanted):
            close = difflib.get_close_matches(usage, usages.known(), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(usages.known())}"
            self.problems.append(f"{where}: unknown usage {usage!r}; {hint}")
        if not wanted:
            self.problems.append(f"{where}: no usages; a server's are [signing, server auth]")
        for usage in ("cert sign", "crl sign"):
            if usage in wanted:
                self.problems.append(f"{where}: usage {usage!r} is for CAs; what is under `cas` has it")
        return Profile(name, wanted, self.expiry(where, entry.get("expiry"), _LIFE))

    def networks(self, where: str, values: object) -> tuple[Network, ...]:
        found = []
        for value in self.texts(where, values):
            try:
                found.append(ipaddress.ip_network(value))
            except ValueError:
                self.problems.append(f"{where}: {value!r} is no network such as 10.96.0.0/12")
        return tuple(found)


def _certificate(
    reader: _Reader, data: Mapping[str, Any], authorities: Mapping[str, Any], profiles: Mapping[str, Profile]
) -> Certificate:
    where = f"certificate {data.get('name') or ''!r:.150}"
    name = reader.text(f"{where}: name", data.get("name"))
    reader.keys(
        where,
        data,
        ("name", "path", "ca", "cn", "o", "hosts", "profile", "expiry", "key", "owner", "mode", "role", "consumers"),
    )
    if isinstance(data.get("name"), str | None):
        reader.file_name(where, name)
    path = reader.text(f"{where}: path", data.get("path")) or name
    if path != name and not _PATH.fullmatch(path):
        reader.problems.append(f"{where}: path {path!r} must be below the directory, of letters, digits, '.', '_', '-'")
    ca = reader.text(f"{where}: ca", data.get("ca"))
    if isinstance(data.get("ca"), str | None) and ca not in authorities:
        reader.problems.append(f"{where}: unknown ca {ca!r}; there are {', '.join(authorities)}")
    called = reader.text(f"{where}: profile", data.get("profile"))
    profile = profiles.get(called)
    if profile is None:
        if isinstance(data.get("profile"), str | None):
            reader.problems.append(f"{where}: unknown profile {called!r}; there are {', '.join(profiles)}")
        profile = PROFILES["client"]
    hosts = reader.hosts(where, data.get("hosts"))
    if "server auth" in profile.usages and not data.get("hosts"):
        reader.problems.append(f"{where}: a certificate of a server needs hosts")
    return Certificate(
        name=name,
        path=path,
        ca=ca,
        cn=reader.common_name(where, data.get("cn")),
        o=reader.organisations(where, data.get("o")),
        hosts=hosts,
        profile=profile,
        key=reader.key(where, data.get("key")),
        expiry=reader.expiry(where, data.get("expiry"), profile.expiry),
        owner=reader.owner(where, data.get("owner")),
        mode=reader.mode(where, data.get("mode")),
        role=reader.choice(f"{where}: role", data.get("role"), ROLES),
        consumers=reader.texts(f"{where}: consumers", data.get("consumers")),
    )


def _authority(reader: _Reader, name: str, data: object) -> Authority:
    where = f"ca {name!r}"
    entry = reader.mapping(where, data)
    reader.keys(where, entry, ("cn", "o", "key", "expiry", "password", "role", "consumers"))
    reader.file_name(where, name)
    return Authority(
        name=name,
        cn=reader.common_name(where, entry.get("cn")),
        o=reader.organisations(where, entry.get("o")),
        key=reader.key(where, entry.get("key")),
        expiry=reader.expiry(where, entry.get("expiry"), 10 * _LIFE),
        password=reader.password(where, entry.get("password")),
        role=reader.choice(f"{where}: role", entry.get("role"), CA_ROLES),
        consumers=reader.texts(f"{where}: consumers", entry.get("consumers")),
    )


def _files(
    authorities: Mapping[str, Authority], keypairs: Mapping[str, Key], certificates: Sequence[Certificate]
) -> list[tuple[str, str]]:
    """(path of a file, whose it is), of everything."""
    found = [
        (f"{one.stem}{end}", f"ca {one.name!r}")
        for one in authorities.values()
        for end in (".pem", "-key.pem", "-bundle.pem", *_ROTATING)
    ]
    found += [(f"{name}{end}", f"keypair {name!r}") for name in keypairs for end in (".key", ".pub")]
    return found + [
        (f"{one.path}{end}", f"certificate {one.name!r}") for one in certificates for end in (".pem", "-key.pem")
    ]


def parse(data: object) -> Spec:
    """Read {cas, keypairs, profiles, certificates, cluster}; a SpecError lists every problem."""
    reader = _Reader()
    top = reader.mapping("spec", data)
    reader.keys("spec", top, ("cas", "keypairs", "profiles", "certificates", "cluster"))
    cas, pairs, given = (
        reader.named(what, reader.mapping(what, top.get(what))) for what in ("cas", "keypairs", "profiles")
    )
    authorities = {name: _authority(reader, name, entry) for name, entry in cas.items()}
    keypairs = {name: reader.key(f"keypair {name!r}", entry) for name, entry in pairs.items()}
    for name in keypairs:
        reader.file_name(f"keypair {name!r}", name)
    profiles = {**PROFILES, **{name: reader.profile(name, entry) for name, entry in given.items()}}
    entries = top.get("certificates") or ()
    if not isinstance(entries, (list, tuple)):
        reader.problems.append(f"certificates is {entries!r:.60}; write a list")
        entries = ()
    certificates = tuple(
        _certificate(reader, reader.mapping(f"certificate {number}", entry), authorities, profiles)
        for number, entry in enumerate(entries, 1)
    )
    surroundings = reader.mapping("cluster", top.get("cluster"))
    reader.keys("cluster", surroundings, ("service_cidrs", "dns_domain"))
    cluster = Surroundings(
        reader.networks("cluster: service_cidrs", surroundings.get("service_cidrs")),
        reader.text("cluster: dns_domain", surroundings.get("dns_domain")) or "cluster.local",
    )
    named: set[str] = set()
    for certificate in certificates:
        if certificate.name in named:
            reader.problems.append(f"certificate {certificate.name!r}: the name is used twice")
        named.add(certificate.name)
    owners: dict[str, str] = {}
    for path, whose in _files(authorities, keypairs, certificates):
        if owners.setdefault(path, whose) != whose:
            reader.problems.append(f"{whose}: its file {path} is that of {owners[path]} as well; give one another path")
    for certificate in certificates:
        for parent in Path(certificate.path).parents:
            if str(parent) in owners:
                reader.problems.append(
                    f"certificate {certificate.name!r}: its directory {parent} is a file of {owners[str(parent)]}; "
                    "give it another path"
                )
    if not (authorities or keypairs or certificates or reader.problems):
        reader.problems.append("there is nothing in it; write what is to exist under cas, keypairs and certificates")
    if reader.problems:
        raise SpecError(reader.problems)
    return Spec(authorities, keypairs, certificates, cluster)


def load(path: Path) -> Spec:
    """The specification in a YAML file. SpecError; StoreError when it cannot be read.

    Relative paths in it (`password: file:PATH`) begin where the file is.
    """
    import yaml  # noqa: PLC0415 - whoever has the data already does not need it

    from kubepki import yamltext  # noqa: PLC0415 - as above

    try:
        if path.stat().st_size > _LARGEST:
            raise StoreError(f"{path}: larger than {_LARGEST // 2**20} MB; this is no specification")
        data = yamltext.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}", "give the path of a specification, a YAML file; docs/pki.md shows one"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{path}: no YAML: {' '.join(str(error).split())}"]) from error
    try:
        found = parse(data)
    except SpecError as error:
        raise SpecError(error.problems, str(path)) from error
    return replace(found, authorities={n: _beside(path, one) for n, one in found.authorities.items()})


def _beside(path: Path, authority: Authority) -> Authority:
    kind, _, rest = authority.password.partition(":")
    return replace(authority, password=f"file:{path.parent / rest}") if kind == "file" else authority
