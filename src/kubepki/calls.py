"""What cfssl's commands share: flags, the log, input and output, and how an error is said.

The same flags and files as cfssl's, JSON on stdout, `{"code","message"}` on stderr, exit code 1 on any error.
docs/pki.md lists where they differ on purpose.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import goflags, issue, keys, sources
from kubepki.errors import CertificateError, FlagError, KubepkiError, PrivateKeyError, StoreError
from kubepki.goflags import Arguments, Flag
from kubepki.keys import PrivateKey

# What Go's package `flag` ends with.
_FLAG_ERROR = 2
_PASSWORD = "CFSSL_CA_PK_PASSWORD"  # noqa: S105 - the name of a variable
_INFO, _WARNING = 1, 2
_LOGLEVEL = {"loglevel": Flag(1, "Log level (0 = DEBUG, 5 = FATAL)")}
COMPAT = {"compat": Flag(False, "pass over what cfssl passes over: unknown keys, usages and profiles, empty hosts")}
CA = {
    "ca": Flag("", "CA used to sign the new certificate: PATH, file:PATH or env:NAME"),
    "ca-key": Flag("", "CA private key: PATH, file:PATH or env:NAME"),
    "ca-key-password": Flag("", f"password of the CA key: env:NAME or file:PATH (or the variable {_PASSWORD})"),
}
CONFIG = {"config": Flag("", "path to configuration file"), "profile": Flag("", "signing profile to use")}
HOSTNAME = {"hostname": Flag("", "Hostname for the cert, could be a comma-separated hostname list")}
REMOTE = {
    "remote": Flag("", "remote CFSSL server"),
    "label": Flag("", "key label to use in remote CFSSL server"),
}
INITCA = {"initca": Flag(False, "initialise new CA")}


class Log:
    """Lines as cfssl writes them, on stderr."""

    def __init__(self, level: int) -> None:
        self._level = level

    def _write(self, level: int, name: str, text: str) -> None:
        if level >= self._level:
            sys.stderr.write(f"{datetime.now():%Y/%m/%d %H:%M:%S} [{name}] {text}\n")

    def info(self, text: str) -> None:
        """What is being done."""
        self._write(_INFO, "INFO", text)

    def warn(self, text: str) -> None:
        """What may not be as it was meant."""
        self._write(_WARNING, "WARNING", text)


class Call(NamedTuple):
    """One call: its arguments, its log, its time."""

    arguments: Arguments
    log: Log
    now: datetime

    @property
    def compat(self) -> bool:
        """Whether cfssl's leniency was asked for."""
        return self.arguments.switch("compat")

    def text(self, name: str) -> str:
        """The value of a flag."""
        return self.arguments.text(name)

    def positional(self, number: int, what: str) -> str:
        """An argument after the flags; FlagError when `what` is missing."""
        if len(self.arguments.given) <= number:
            raise FlagError("not enough arguments are supplied --- please refer to the usage", f"{what} is missing")
        return self.arguments.given[number]


def read(source: str) -> bytes:
    """The content of a file, of a variable, or of stdin (`-`)."""
    return sources.stdin() if source == "-" else sources.read(source)


def where(source: str) -> str:
    """What messages call a source."""
    return "standard input" if source == "-" else source


def answer(found: Mapping[str, Any]) -> None:
    """JSON for programs: one line, keys in order."""
    sys.stdout.write(json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")


def pretty(found: Any) -> None:
    """JSON for people."""
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def certificate_pem(found: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The text of a certificate or a CSR."""
    return found.public_bytes(Encoding.PEM).decode()


def _password(call: Call) -> bytes:
    source = call.text("ca-key-password")
    if source and not source.startswith(("env:", "file:")):
        # It may be the password itself, which belongs into no log.
        raise FlagError("-ca-key-password is neither env:NAME nor file:PATH", "say where the password is")
    if source:
        return sources.password(source)
    return os.environb.get(_PASSWORD.encode(), b"")


def load_key(call: Call, source: str) -> PrivateKey:
    """The key in a source. PrivateKeyError."""
    try:
        return keys.load(read(source), where(source), lambda: _password(call))
    except StoreError as error:
        raise PrivateKeyError(error.message, error.hint, 2001) from error


def load_certificates(source: str) -> list[x509.Certificate]:
    """The certificates in a source. CertificateError."""
    try:
        return issue.load_all(read(source), where(source))
    except StoreError as error:
        raise CertificateError(error.message, error.hint, 1001) from error


def only(found: Sequence[x509.Certificate], source: str) -> x509.Certificate:
    """The one certificate of a source. CertificateError."""
    if len(found) > 1:
        raise CertificateError(
            f"{where(source)} holds {len(found)} certificates (the PEM file should contain only one object)",
            "give the one that signs",
            1003,
        )
    return found[0]


def command(run: Callable[[Call], None], usage: str, flags: Mapping[str, Flag]) -> Callable[[list[str]], int]:
    """A subcommand out of what it does with a call."""

    def main(argv: list[str]) -> int:
        return _run(run, usage, {**flags, **_LOGLEVEL}, argv)

    return main


def _run(run: Callable[[Call], None], usage: str, flags: Mapping[str, Flag], argv: Sequence[str]) -> int:
    if any(word in ("-h", "-help", "--help", "--h") for word in argv):
        sys.stdout.write(f"{usage}\n\nFlags:\n{goflags.describe(flags)}\n")
        return 0
    try:
        arguments = goflags.parse(argv, flags)
    except FlagError as error:
        _complain(error)
        return _FLAG_ERROR
    try:
        run(Call(arguments, Log(arguments.number("loglevel")), datetime.now(UTC)))
    except KubepkiError as error:
        _complain(error)
        return 1
    return 0


def _complain(error: KubepkiError) -> None:
    said = {"code": error.code, "message": error.message} | ({"hint": error.hint} if error.hint else {})
    sys.stderr.write(json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
