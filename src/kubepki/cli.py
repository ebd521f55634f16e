"""The command `kubepki`: finds the module of a subcommand, and says what went wrong."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from kubepki.errors import KubepkiError

Main = Callable[[list[str]], int]


class _Command(NamedTuple):
    """Where a subcommand is: `module` is imported only when it is called, because each start pays for what it loads."""

    module: str
    function: str
    summary: str


_COMMANDS: dict[str, _Command] = {
    "gencert": _Command("kubepki.cfssl_sign", "gencert", "generate a key and a signed certificate"),
    "genkey": _Command("kubepki.cfssl_sign", "genkey", "generate a key and a CSR"),
    "gencsr": _Command("kubepki.cfssl_sign", "gencsr", "generate a CSR for a key that exists"),
    "sign": _Command("kubepki.cfssl_sign", "sign", "sign a CSR"),
    "selfsign": _Command("kubepki.cfssl_sign", "selfsign", "generate a self-signed certificate, for tests"),
    "gencrl": _Command("kubepki.cfssl_sign", "gencrl", "generate a certificate revocation list"),
    "cfssljson": _Command("kubepki.cfssljson", "main", "write the answers of these commands to files"),
    "certinfo": _Command("kubepki.cfssl_show", "certinfo", "show a certificate or a CSR as JSON"),
    "bundle": _Command("kubepki.cfssl_show", "bundle", "complete a certificate with its chain"),
    "info": _Command("kubepki.cfssl_show", "info", "ask a cfssl server what it signs with"),
    "print-defaults": _Command("kubepki.cfssl_show", "print_defaults", "templates of the JSON files"),
    "version": _Command("kubepki.cfssl_show", "version", "show the version"),
    "plan": _Command("kubepki.manage", "plan", "what a specification would change in its directory, and why"),
    "apply": _Command("kubepki.manage", "apply", "issues and repairs what `plan` finds"),
    "check": _Command("kubepki.monitor", "main", "say which certificates end, and what is wrong with them"),
    "show": _Command("kubepki.show", "show", "certificates, requests, revocation lists and keys in words"),
    "diff": _Command("kubepki.show", "diff", "what differs between two certificates"),
    "verify": _Command("kubepki.verify", "main", "the PKI directory against the rules of Kubernetes and etcd"),
    "rotate": _Command("kubepki.rotate", "main", "replace a CA while everything runs"),
}


def _usage() -> str:
    width = max(map(len, _COMMANDS), default=0)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in _COMMANDS.items()]
    return "\n".join(["kubepki COMMAND [ARGUMENTS]", "", *lines, "", "kubepki COMMAND -h says more."]) + "\n"


def _open_streams() -> None:
    """Streams that the caller has closed lead nowhere; texts that a terminal cannot show are escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand: 0, or 1 with one message on stderr; some have exit codes of their own."""
    arguments = sys.argv[1:] if argv is None else argv
    _open_streams()
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        (sys.stdout if arguments else sys.stderr).write(_usage())
        return 0 if arguments else 1
    command = _COMMANDS.get(arguments[0])
    if not command:
        sys.stderr.write(f"kubepki: there is no command {arguments[0]!r}\n\n{_usage()}")
        return 1
    try:
        run: Main = getattr(importlib.import_module(command.module), command.function)
        code = run(arguments[1:])
        sys.stdout.flush()
        return code
    except KubepkiError as error:
        sys.stderr.write(f"kubepki: {error}\n")
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.stderr.write("kubepki: interrupted\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"kubepki: {error.filename or 'output'}: {error.strerror}\n")
    return 1
