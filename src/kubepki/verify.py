"""`kubepki verify SPEC`: what lies in the PKI directory, against the rules that Kubernetes and etcd impose."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from kubepki import arguments, issue, keys, rules, sources, spec, store
from kubepki.errors import KubepkiError, StoreError
from kubepki.rules import Entry, Finding, Found, KeyFile
from kubepki.spec import Authority, Spec


def read(wanted: Spec, directory: Path) -> Found:
    """Everything of a specification that lies in a directory; what cannot be read becomes a problem of its entry."""
    return Found(
        {name: _authority(authority, directory) for name, authority in wanted.authorities.items()},
        {name: _keypair(directory, name) for name in wanted.keypairs},
        {
            one.name: _entry(directory / f"{one.path}.pem", _key(directory / f"{one.path}-key.pem"))
            for one in wanted.certificates
        },
    )


def _certificates(path: Path) -> tuple[tuple[x509.Certificate, ...] | None, str]:
    """(certificates of a file, None when it is missing; a problem)."""
    try:
        content = store.read(path)
        return (None, "") if content is None else (tuple(issue.load_all(content.content, str(path))), "")
    except KubepkiError as error:
        return None, error.message


def _entry(path: Path, key: KeyFile) -> Entry:
    found, problem = _certificates(path)
    return Entry(path, key, found or (), problem)


def _authority(wanted: Authority, directory: Path) -> Entry:
    path = directory / f"{wanted.stem}.pem"
    found, problem = _certificates(path)
    bundle, bundle_problem = _certificates(directory / f"{wanted.stem}-bundle.pem")
    previous, _ = _certificates(directory / f"{wanted.stem}-previous.pem")
    return Entry(
        path,
        _key(directory / f"{wanted.stem}-key.pem", wanted.password),
        found or (),
        problem,
        bundle,
        bundle_problem,
        previous[0] if previous else None,
        (directory / f"{wanted.stem}-rotation.json").exists(),
        tuple(_key(directory / f"{wanted.stem}-{which}-key.pem", wanted.password) for which in ("next", "previous")),
    )


def _keypair(directory: Path, name: str) -> KeyFile:
    key, path = _key(directory / f"{name}.key"), directory / f"{name}.pub"
    problem = ""
    try:
        found = store.read(path)
        if found is None:
            problem = f"{path} is missing"
        elif key.public and serialization.load_pem_public_key(found.content) != key.public:
            problem = f"{path} is not the public half of {key.path}"
    except KubepkiError as error:
        problem = error.message
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = f"{path} is damaged"
    return dataclasses.replace(key, pub_problem=problem)


def _key(path: Path, password: str = "") -> KeyFile:
    asked: list[str] = []

    def secret() -> bytes:
        asked.append(password)
        return sources.password(password)

    mode = 0
    try:
        found = store.read(path)
        if found is None:
            return KeyFile(path, "missing")
        mode = found.mode
        return KeyFile(path, "read", mode, keys.load(found.content, str(path), secret).public_key())
    except KubepkiError as error:
        return KeyFile(path, "encrypted" if asked else "damaged", mode, problem=error.message)


def main(argv: list[str]) -> int:
    """Print all findings: exit code 0 without errors, 1 with."""
    parser = arguments.Parser(prog="kubepki verify", description=__doc__)
    arguments.add_specification(parser)
    parser.add_argument("--json", action="store_true", help="findings for programs")
    given = parser.parse_args(argv)
    wanted = spec.load(given.spec)
    directory = arguments.directory(given)
    if not directory.is_dir():
        raise StoreError(f"{directory}: there is no such directory", f"kubepki apply {given.spec} makes it")
    findings = rules.judge(wanted, read(wanted, directory), datetime.now(UTC))
    for finding in findings:
        if not given.json:
            sys.stdout.write(_words(finding))
    errors = sum(finding.level == "error" for finding in findings)
    count = {
        "certificates": len(wanted.certificates),
        "authorities": len(wanted.authorities),
        "keypairs": len(wanted.keypairs),
        "without_role": sum(not one.role for one in wanted.certificates),
        "errors": errors,
        "warnings": len(findings) - errors,
    }
    if given.json:
        listed = [{"level": one.level, **dataclasses.asdict(one)} for one in findings]
        sys.stdout.write(f"{json.dumps({'findings': listed, **count}, indent=2)}\n")
    else:
        sys.stdout.write(_summary(directory, count))
    return 1 if errors else 0


def _words(finding: Finding) -> str:
    return f"{finding.level} {finding.rule}: {finding.subject}: {finding.message}\n  {finding.remedy}\n"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _summary(directory: Path, count: dict[str, int]) -> str:
    pairs = f"{_plural(count['keypairs'], 'key pair')}, " if count["keypairs"] else ""
    said = (
        f"{directory}: {_plural(count['certificates'], 'certificate')} of {_plural(count['authorities'], 'CA')}, "
        f"{pairs}{_plural(count['errors'], 'error')}, {_plural(count['warnings'], 'warning')}\n"
    )
    if count["without_role"]:
        said += (
            f"  {_plural(count['without_role'], 'certificate')} without a role: Kubernetes' and etcd's rules were not "
            f"asked; roles are {', '.join(spec.ROLES)}\n"
        )
    return said
