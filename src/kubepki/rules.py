"""The whole set against all rules: a pure function of the specification and of what was found."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from cryptography import x509

from kubepki import rules_roles, rules_x509
from kubepki.rulebook import RULES, Entry, Finding, Found, KeyFile, Rule
from kubepki.spec import Spec

__all__ = ["RULES", "Entry", "Finding", "Found", "KeyFile", "Rule", "judge"]


def judge(spec: Spec, found: Found, now: datetime) -> list[Finding]:
    """Every breach, errors first, then in the order of the specification. `now` is an aware UTC time.

    What is not in `found` is not judged: a part of a set can be looked at for itself.
    """
    findings: list[Finding] = []
    issued: dict[str, list[x509.Certificate]] = defaultdict(list)
    for wanted in spec.certificates:
        entry = found.certificates.get(wanted.name)
        if entry and entry.certificate:
            issued[wanted.ca].append(entry.certificate)
    for name, authority in spec.authorities.items():
        if name in found.authorities:
            findings += rules_x509.authority(authority, found.authorities[name], issued[name], now)
    for name, key in found.keypairs.items():
        findings += rules_x509.keypair(name, key)
    for wanted in spec.certificates:
        entry = found.certificates.get(wanted.name)
        if entry:
            findings += rules_x509.leaf(wanted, entry, found.authorities.get(wanted.ca), now)
        if entry and entry.certificate:
            findings += rules_roles.leaf(spec, wanted, entry.certificate)
    findings += rules_x509.shared(spec, found)
    findings += rules_roles.authorities(spec, found)
    return sorted(findings, key=lambda finding: finding.level != "error")
