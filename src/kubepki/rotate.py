"""`kubepki rotate`: replace a CA while everything runs.

status says where each CA stands and what comes next. A rotation is trust, issue, drop; between them new files are
handed out, and consumers are confirmed: that they trust both CAs before issue, that they have their new certificates
before drop. Each step can be run again, and finishes one that was interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from kubepki import arguments, issue, rotation, sources, spec, tls
from kubepki.errors import KubepkiError
from kubepki.rotation import State

_STEPS: dict[str, tuple[Callable[..., State], str]] = {
    "trust": (rotation.trust, "make the new CA, and let the bundle hold both"),
    "issue": (rotation.issue, "make the new CA the one that issues"),
    "drop": (rotation.drop, "trust the old CA no more"),
    "abort": (rotation.abort, "go back, before issue"),
}
# What there is to do by hand after a step.
_AFTER = {
    rotation.TRUST_BOTH: "Hand {bundle} to every consumer, restart or reload it, and confirm that it trusts both.",
    rotation.ISSUE_FROM_NEW: "Run {apply}, hand out the new certificates, restart or reload, and confirm them.",
    rotation.SETTLED: "Hand {bundle} to every consumer, and restart or reload it, when there is time.",
}


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        prog="kubepki rotate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    status = steps.add_parser("status", help="where each CA stands, who is waited for, what comes next")
    arguments.add_specification(status)
    status.add_argument("ca", metavar="CA", nargs="?", help="only this one")
    status.add_argument("--json", action="store_true", help="for programs")
    confirm = steps.add_parser("confirm", help="record what a consumer really trusts, or presents")
    arguments.add_specification(confirm)
    for name, (_, summary) in _STEPS.items():
        step = steps.add_parser(name, help=summary)
        arguments.add_specification(step)
        step.add_argument("ca", metavar="CA", help="its name in the specification")
        if name in ("trust", "issue"):
            step.add_argument(
                "--old-password",
                default="",
                metavar="SOURCE",
                help="the password that the new CA's key is under, when the specification has another: "
                "env:NAME or file:PATH",
            )
    confirm.add_argument("ca", metavar="CA", help="its name in the specification")
    confirm.add_argument("consumer", metavar="CONSUMER", help="as the specification calls it")
    confirm.add_argument(
        "--trust", action="append", default=[], metavar="FILE", help="the trust anchors that it has; - is stdin"
    )
    confirm.add_argument(
        "--cert", action="append", default=[], metavar="FILE", help="a certificate that it presents; - is stdin"
    )
    confirm.add_argument(
        "--connect", action="append", default=[], metavar="HOST:PORT", help="ask a server what it presents"
    )
    return parser


def main(argv: list[str]) -> int:
    """Take one step, or say where things stand. Exit code 1 when a step is refused."""
    given = _parser().parse_args(argv)
    wanted = spec.load(given.spec)
    directory = arguments.directory(given)
    call = shlex.quote(str(given.spec)) + (f" -C {shlex.quote(str(directory))}" if given.directory else "")
    if given.step == "status":
        return _status(wanted, directory, call, given)
    now = datetime.now(UTC)
    if given.step == "confirm":
        found = rotation.confirm(
            wanted,
            directory,
            given.ca,
            given.consumer,
            now,
            trusts=[issue.load_all(_content(one), one) for one in given.trust],
            presents=[
                *(issue.load_all(_content(one), one)[0] for one in given.cert),
                *(_presented(one) for one in given.connect),
            ],
            call=call,
        )
        sys.stdout.write(f"{given.consumer} is confirmed.\n\n{_words(found, call)}")
        return 0
    before = rotation.state(wanted, directory, given.ca, call=call)
    take, _ = _STEPS[given.step]
    more = {"old_password": given.old_password} if "old_password" in given else {}
    found = take(wanted, directory, given.ca, now, call=call, **more)
    sys.stdout.write(_words(found, call))
    if found.phase != before.phase or before.unfinished:
        stem = wanted.authorities[given.ca].stem
        words = {"bundle": f"{directory}/{stem}-bundle.pem", "apply": f"kubepki apply {call}"}
        sys.stdout.write(f"\n{_AFTER[found.phase].format(**words)}\n")
    return 0


def _content(path: str) -> bytes:
    return sources.stdin() if path == "-" else sources.file(path)


def _presented(address: str) -> x509.Certificate:
    """What a server presents. It is compared with a file, so it need not be trusted."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise KubepkiError(f"--connect {address!r}: it must be HOST:PORT", "such as 192.168.80.10:6443")
    try:
        return tls.presented(host, int(port), address)
    except (OSError, ValueError) as error:
        raise KubepkiError(
            f"--connect {address}: {getattr(error, 'strerror', None) or error}",
            "a server that wants a client's certificate first is asked with openssl s_client, "
            "and its certificate is shown with --cert",
        ) from error


def _status(wanted: spec.Spec, directory: Path, call: str, given: argparse.Namespace) -> int:
    names = [given.ca] if given.ca else list(wanted.authorities)
    states = [rotation.state(wanted, directory, name, call=call) for name in names]
    if given.json:
        sys.stdout.write(f"{json.dumps([as_json(one) for one in states], indent=2)}\n")
    else:
        sys.stdout.write("\n".join(_words(one, call) for one in states))
    return 0


def as_json(state: State) -> dict[str, Any]:
    """A state in plain data: certificates are {subject, serial, fingerprint, not_after}, times are ISO 8601."""
    return {
        "name": state.name,
        "phase": state.phase,
        "unfinished": state.unfinished,
        "begun": state.begun.isoformat() if state.begun else "",
        "old": _brief(state.old),
        "new": _brief(state.new) if state.new else None,
        "trusted": [rotation.fingerprint(one) for one in state.trusted],
        "next": state.next,
        "missing": [{"who": one.who, "what": one.what, "command": one.command} for one in state.missing],
        "unwatched": list(state.unwatched),
    }


def _brief(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": rotation.fingerprint(certificate),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _words(state: State, call: str) -> str:
    since = f" since {state.begun:%Y-%m-%d %H:%M} UTC" if state.begun else ""
    lines = [f"{state.name}: {state.phase}{since}"]
    if state.unfinished:
        lines.append(f"  a run of {state.unfinished!r} was interrupted")
    lines.append(_line("CA" if state.phase == rotation.SETTLED and not state.new else "old", state.old))
    if state.new:
        lines.append(_line("new", state.new))
    for one in state.missing:
        lines += [f"  waits for {one.who}, which {one.what}", f"    {one.command}"]
    if state.unwatched and state.phase != rotation.SETTLED:
        lines.append(
            f"  nobody is waited for because of {', '.join(state.unwatched)}: there are no consumers in the "
            "specification"
        )
    step = f"kubepki rotate {state.next} {call} {shlex.quote(state.name)}"
    if state.phase == rotation.SETTLED and not state.unfinished:
        lines.append(f"  to rotate: {step}")
    else:
        lines.append(f"  {'then' if state.missing else 'next'}: {step}")
    return "\n".join(lines) + "\n"


def _line(which: str, certificate: x509.Certificate) -> str:
    return (
        f"  {which}: {certificate.subject.rfc4514_string()}, serial {certificate.serial_number:x}, "
        f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
    )
