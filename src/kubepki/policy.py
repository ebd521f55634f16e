"""cfssl's signing configuration (`ca-config.json`): which profile signs what, and for how long."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from kubepki import usages
from kubepki.errors import PolicyError
from kubepki.reading import Reader, Section, Warn, shown

_PROFILE = (
    "usages",
    "issuer_urls",
    "ocsp_url",
    "crl_url",
    "ca_constraint",
    "ocsp_no_check",
    "expiry",
    "backdate",
    "auth_key",
    "prev_auth_key",
    "remote",
    "auth_remote",
    "not_before",
    "not_after",
    "name_whitelist",
    "allowed_extensions",
    "copy_extensions",
    "cert_store",
    "ct_log_servers",
    "lint_error_level",
    "ignored_lints",
    "ignored_lint_sources",
    "Policies",
    "CSRWhitelist",
    "ClientProvidesSerialNumbers",
)
_WHITELIST = (
    "Subject",
    "PublicKeyAlgorithm",
    "PublicKey",
    "SignatureAlgorithm",
    "DNSNames",
    "IPAddresses",
    "EmailAddresses",
    "URIs",
)
# Settings that nothing here reads.
_IDLE = (
    "lint_error_level",
    "ignored_lints",
    "ignored_lint_sources",
    "allowed_extensions",
    "ClientProvidesSerialNumbers",
)
# What a profile would have done, and kubepki does not.
_ELSEWHERE = {
    "remote": "signs at another server",
    "auth_remote": "signs at another server",
    "cert_store": "records certificates in a database",
    "ct_log_servers": "submits certificates to logs",
}
_BACKDATE = timedelta(minutes=5)
# What Go's expressions have and Python's have not.
_POSIX = re.compile(r"\[:([a-z]+):\]")
_CLASSES = {
    "alnum": "A-Za-z0-9",
    "alpha": "A-Za-z",
    "digit": "0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
    "word": "A-Za-z0-9_",
}
_LONGEST_PATH = 100
_WORDS = "signing", "key encipherment", "server auth", "client auth"


class PolicyInformation(NamedTuple):
    """A certificate policy (RFC 5280, 4.2.1.4): its identifier, URIs of practice statements, notices."""

    oid: str
    practices: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


class Policy(NamedTuple):
    """A profile. `backdate` counts back from now; `not_before` and `not_after` take the place of it and of `expiry`."""

    name: str = "default"
    usages: tuple[str, ...] = _WORDS
    expiry: timedelta = timedelta(hours=8760)
    backdate: timedelta = _BACKDATE
    not_before: datetime | None = None
    not_after: datetime | None = None
    is_ca: bool = False
    path_length: int | None = None
    ocsp_no_check: bool = False
    ocsp_url: str = ""
    crl_url: str = ""
    issuer_urls: tuple[str, ...] = ()
    name_whitelist: re.Pattern[str] | None = None
    copy_extensions: bool = False
    whitelist: frozenset[str] | None = None
    policies: tuple[PolicyInformation, ...] = ()
    # Nobody asked for these usages: EC keys get those that they can use.
    adapted: bool = False


class Config(NamedTuple):
    """The profiles of a file. `default` is None when the file has none that could sign."""

    default: Policy | None
    profiles: Mapping[str, Policy] = MappingProxyType({})


NO_FILE = Config(Policy(adapted=True))


def parse(content: bytes, where: str, warn: Warn, *, compat: bool = False) -> Config:
    """Read a configuration. PolicyError with every problem."""
    reader = Reader(where, PolicyError, warn, compat=compat)
    top = Section(reader, "", reader.decode(content), ("signing", "auth_keys", "remotes", "ocsp"))
    if "signing" not in top:
        reader.problem('no "signing" field: {"signing": {"default": {...}, "profiles": {...}}}')
    signing = top.section("signing", ("default", "profiles"))
    known = top.raw("auth_keys")
    auth_keys = tuple(known) if isinstance(known, Mapping) else ()
    default: Policy | None = NO_FILE.default
    if "default" in signing:
        default = _policy(reader, signing.section("default", _PROFILE), "default", None, auth_keys)
    profiles = {}
    entries = signing.raw("profiles")
    if entries is not None and not isinstance(entries, Mapping):
        reader.problem(f'signing.profiles is {shown(entries)}; write {{"name": {{...}}}}')
        entries = {}
    for name, entry in (entries or {}).items():
        section = Section(reader, f"signing.profiles.{name}", entry, _PROFILE)
        profiles[name] = _policy(reader, section, name, default, auth_keys)
    reader.finish()
    return Config(default if default and default.usages else None, profiles)


def choose(config: Config, name: str, where: str, warn: Warn, *, compat: bool = False) -> Policy:
    """The profile of a name; the default one without a name. PolicyError."""
    if name in config.profiles:
        return config.profiles[name]
    if name and name != "default":
        close = difflib.get_close_matches(name, config.profiles, 1)
        there = f"it has {', '.join(config.profiles)}" if config.profiles else "it has none"
        hint = f"did you mean {close[0]}?" if close else there
        if not compat:
            raise PolicyError(f"{where} has no profile {name!r}", hint, 5400)
        warn(f"{where} has no profile {name!r}; the default one is used instead ({hint})")
    if not config.default:
        raise PolicyError(
            f"{where}: the default profile has no usages, and cannot sign",
            f"name a profile with -profile: {', '.join(config.profiles) or 'there is none'}",
            5100,
        )
    return config.default


def _policy(reader: Reader, section: Section, name: str, default: Policy | None, auth_keys: tuple[str, ...]) -> Policy:
    for key in ("auth_key", "prev_auth_key"):
        if section.text(key) and section.text(key) not in auth_keys:
            reader.problem(f"{section.at(key)} {section.text(key)!r} is not in auth_keys")
    for key, what in _ELSEWHERE.items():
        if section.raw(key):
            reader.problem(f"{section.at(key)}: this profile {what}, which kubepki does not; remove it, or use cfssl")
    for key in _IDLE:
        if section.raw(key):
            reader.lenient(f"{section.at(key)}: kubepki does not do this; remove it")
    expiry = section.duration("expiry")
    begin, end = _time(reader, section, "not_before"), _time(reader, section, "not_after")
    if expiry is None and end is None:
        reader.problem(f'{section.at("expiry")} is missing; write "8760h" for a year')
    if expiry is not None and expiry <= timedelta(0) and end is None:
        reader.problem(
            f"{section.at('expiry')} is {section.text('expiry')!r}: every certificate would have expired already"
        )
    base = default or Policy(name, ())
    constraint = section.section("ca_constraint", ("is_ca", "max_path_len", "max_path_len_zero"))
    length = constraint.number("max_path_len")
    if not 0 <= length <= _LONGEST_PATH:
        reader.problem(f"{constraint.at('max_path_len')} is {length}; write 0 to {_LONGEST_PATH}")
    wanted = _usages(reader, section)
    if not wanted and name != "default":
        reader.problem(f'{section.at("usages")} is empty; a server has ["signing", "key encipherment", "server auth"]')
    backdate = section.duration("backdate")
    return base._replace(
        name=name,
        usages=wanted,
        adapted=False,
        expiry=expiry or base.expiry,
        backdate=_BACKDATE if backdate is None else backdate,
        not_before=begin,
        not_after=end,
        is_ca=constraint.switch("is_ca"),
        # As with pathlen: 0 is also what is not said.
        path_length=length or (0 if constraint.switch("max_path_len_zero") else None),
        ocsp_no_check=section.switch("ocsp_no_check"),
        ocsp_url=section.text("ocsp_url") or base.ocsp_url,
        crl_url=section.text("crl_url") or base.crl_url,
        issuer_urls=section.texts("issuer_urls") or base.issuer_urls,
        name_whitelist=_pattern(reader, section),
        copy_extensions=section.switch("copy_extensions"),
        whitelist=_whitelist(section),
        policies=tuple(_policies(section)),
    )


def _usages(reader: Reader, section: Section) -> tuple[str, ...]:
    wanted = section.texts("usages")
    unknown = usages.unknown(wanted)
    for name in unknown:
        close = difflib.get_close_matches(name, usages.known(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(usages.known())}"
        reader.lenient(f"{section.at('usages')}: unknown usage {name!r}; {hint}")
    known = tuple(name for name in wanted if name not in unknown)
    if wanted and not known:
        reader.problem(f"{section.at('usages')} has no usage that is known")
    return known


def _time(reader: Reader, section: Section, name: str) -> datetime | None:
    text = section.text(name)
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    # In UTC it may be before the year 1, or after 9999.
    except (ValueError, OverflowError):
        pass
    reader.problem(f"{section.at(name)} is {text!r:.60}; write 2030-01-31T00:00:00Z")
    return None


def _pattern(reader: Reader, section: Section) -> re.Pattern[str] | None:
    text = section.text("name_whitelist")
    try:
        return re.compile(_POSIX.sub(lambda one: _CLASSES.get(one[1], one[0]), text), re.ASCII) if text else None
    except (re.error, OverflowError, RecursionError) as error:
        reader.problem(f"{section.at('name_whitelist')} is no regular expression: {error}")
        return None


def _whitelist(section: Section) -> frozenset[str] | None:
    if "CSRWhitelist" not in section:
        return None
    inner = section.section("CSRWhitelist", _WHITELIST)
    return frozenset(name for name in _WHITELIST if inner.switch(name))


def _policies(section: Section) -> list[PolicyInformation]:
    found = []
    for entry in section.sections("Policies", ("ID", "Qualifiers")):
        identifier: Any = entry.raw("ID")
        oid = ".".join(map(str, identifier)) if isinstance(identifier, list) else entry.text("ID")
        qualifiers = [(one.text("Type"), one.text("Value")) for one in entry.sections("Qualifiers", ("Type", "Value"))]
        found.append(
            PolicyInformation(
                oid,
                tuple(value for kind, value in qualifiers if kind == "id-qt-cps"),
                tuple(value for kind, value in qualifiers if kind == "id-qt-unotice"),
            )
        )
    return found
