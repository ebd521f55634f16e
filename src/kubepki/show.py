"""`kubepki show` and `kubepki diff`: what is in files, and what differs between two certificates, in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from kubepki import contents, describe, facts, sources
from kubepki.arguments import Parser
from kubepki.contents import Contents, Entry, Reference
from kubepki.errors import CertificateError, KubepkiError

_SAME, _DIFFERENT, _TROUBLE = 0, 1, 2


def _contents(path: str) -> Contents:
    """What is in a file; `-` is standard input."""
    content = sources.stdin() if path == "-" else sources.file(path, facts.plain(path))
    found = contents.read(content, path)
    if not found or (found.others and not _pieces(found)):
        raise CertificateError(f"{facts.plain(path)} holds no certificate, request, revocation list, key or kubeconfig")
    return found


def _pieces(found: Contents) -> int:
    some = (found.certificates, found.requests, found.lists, found.keys, found.problems)
    return sum(map(len, some)) + (found.kubeconfig is not None)


def show(arguments: Sequence[str]) -> int:
    """Run the command: 0, or 1 when something is damaged."""
    parser = Parser(prog="kubepki show", description="Certificates, requests, revocation lists and keys in words.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="PEM, DER or a kubeconfig; - is standard input")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    now = datetime.now(UTC)
    damaged = False
    first = True
    for path in options.files:
        found = _contents(path)
        for title, lines in _sections(path, found, now):
            sys.stdout.write("" if first else "\n")
            sys.stdout.write("".join(f"{line}\n" for line in [f"# {facts.plain(title)}", *lines]))
            first = False
            damaged |= any(line.startswith("damaged: ") for line in lines)
    return int(damaged)


def _sections(path: str, found: Contents, now: datetime) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of every piece of a file."""
    with warnings.catch_warnings():
        # The lines say what is odd.
        warnings.simplefilter("ignore")
        for number, certificate in enumerate(found.certificates, 1):
            yield f"{path}: certificate {number}", describe.certificate(certificate, now)
        for number, request in enumerate(found.requests, 1):
            yield f"{path}: request {number}", describe.request(request)
        for number, revocations in enumerate(found.lists, 1):
            yield f"{path}: revocation list {number}", describe.revocations(revocations, now)
        for number, key in enumerate(found.keys, 1):
            yield f"{path}: private key {number}", describe.private_key(key)
    for problem in found.problems:
        yield path, [f"damaged: {problem}"]
    for entry in found.kubeconfig or ():
        yield from _entry(path, entry, now)


def _entry(path: str, entry: Entry, now: datetime) -> Iterator[tuple[str, list[str]]]:
    for reference in (entry.certificate, entry.key):
        if reference is None:
            continue
        if reference.problem:
            yield f"{path}: {entry}", [f"damaged: {reference.problem}"]
        elif reference.path:
            yield f"{path}: {entry}", [f"file {_beside(path, reference)}"]
        else:
            yield from _sections(f"{path}: {entry}", contents.read(reference.data, ""), now)


def _beside(path: str, reference: Reference) -> str:
    return facts.plain(str(Path(path).parent / reference.path))


def diff(arguments: Sequence[str]) -> int:
    """Run the command: 0 the same, 1 different, 2 trouble."""
    parser = Parser(
        prog="kubepki diff",
        description="What differs between the certificates of two files, from the first to the second.",
        epilog="exit codes: 0 the same, 1 different, 2 trouble",
    )
    parser.add_argument("old", metavar="A", help="PEM or DER; - is standard input")
    parser.add_argument("new", metavar="B")
    try:
        options = parser.parse_args(arguments)
        old, new = _certificates(options.old), _certificates(options.new)
    except SystemExit as stop:
        return int(stop.code or 0)
    except KubepkiError as error:
        sys.stderr.write(f"kubepki: {error}\n")
        return _TROUBLE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = list(_differences(old, new))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return _DIFFERENT if lines else _SAME


def _certificates(path: str) -> list[x509.Certificate]:
    found = _contents(path)
    if found.problems:
        raise CertificateError(f"{facts.plain(path)}: {found.problems[0]}", "restore it")
    if not found.certificates:
        raise CertificateError(f"{facts.plain(path)} holds no certificate")
    return list(found.certificates)


def _differences(old: list[x509.Certificate], new: list[x509.Certificate]) -> Iterator[str]:
    """Lines; of bundles, certificates with the same subject are compared in their order."""
    if len(old) == len(new) == 1:
        yield from describe.difference(old[0], new[0])
        return
    left = [one for one in old if one not in new]
    added = [one for one in new if one not in old]
    for one in left:
        subject = facts.of(one).title
        partner = next((other for other in added if facts.of(other).title == subject), None)
        if partner is None:
            yield f"{subject}: removed, serial {one.serial_number:x}"
            continue
        added.remove(partner)
        yield from (f"{subject}: {line}" for line in describe.difference(one, partner))
    yield from (f"{facts.of(one).title}: added, serial {one.serial_number:x}" for one in added)
    if old != new and set(old) == set(new):
        yield "the same certificates, in another order or number"
