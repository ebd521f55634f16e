"""A judgement as a table, as JSON, and as metrics for Prometheus. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kubepki.check import SEVERITIES, Finding, Judged, Judgement, Spot
from kubepki.facts import plain
from kubepki.survey import Place

_WIDTH = 100
_STATE, _DAYS, _ENDS, _SUBJECT, _ISSUER = 8, 6, 10, 32, 22
_PURPOSE = _WIDTH - (_STATE + _DAYS + 2 + _ENDS + 2 + _SUBJECT + 2 + _ISSUER + 2)
_INDENT = 10
_COLOURS = {"ok": "32", "warning": "33", "critical": "31", "unknown": "35"}
_SHOWN = {"info": "note"}
_PREFIX = "kubepki"


def _cut(text: str, width: int, *, name: bool = False) -> str:
    """A text of at most this width. Of paths the end matters most, of a `name` its beginning, the common name."""
    if len(text) <= width:
        return text
    tail = (width - 3) // 3 if name else (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def where(place: Place) -> str:
    """A place in words."""
    text = (
        place.path if not place.kubeconfig or place.kubeconfig == place.path else f"{place.path} of {place.kubeconfig}"
    )
    text += f", {place.entry}" if place.entry else ""
    return text + (f" [{place.index}]" if place.index > 1 else "")


def table(judgement: Judgement, *, colours: bool = False, width: int = _WIDTH) -> str:
    """For people: a verdict, the certificates by their end with their places below, other findings, a count.

    `width`: that of the lines with places.
    """
    lines = [_verdict(judgement, colours=colours), ""]
    if judgement.certificates:
        lines.append(_row("STATE", "DAYS", "ENDS", "SUBJECT", "ISSUER", "FOR"))
    for judged in judgement.certificates:
        lines += _certificate(judged, width, colours=colours)
    if judgement.others:
        lines += ["", "APART FROM CERTIFICATES"] if judgement.certificates else []
        for finding in judgement.others:
            lines += _other(finding, colours=colours)
    lines += ["", _totals(judgement)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _painted(state: str, width: int, *, colours: bool) -> str:
    word = f"{_SHOWN.get(state, state):<{width}}"
    return f"\033[{_COLOURS[state]}m{word}\033[0m" if colours and state in _COLOURS else word


def _row(state: str, days: str, ends: str, subject: str, issuer: str, purpose: str) -> str:
    # `state` may carry colours, and is as wide as it shall be already.
    start = f"{state:<{_STATE}}{days:>{_DAYS}}  {ends:<{_ENDS}}"
    who = f"{_cut(subject, _SUBJECT, name=True):<{_SUBJECT}}  {_cut(issuer, _ISSUER, name=True):<{_ISSUER}}"
    return f"{start}  {who}  {_cut(purpose, _PURPOSE)}"


def _certificate(judged: Judged, width: int, *, colours: bool) -> Iterator[str]:
    found = judged.facts
    issuer = "(itself)" if judged.chain.status == "root" else found.issuer
    purpose = (
        "CA" if found.extensions.is_ca else ", ".join(one.removesuffix(" auth") for one in found.extensions.usages)
    )
    word = "replaced" if judged.replaced and judged.state == "ok" else judged.state
    state = _painted(word, _STATE, colours=colours)
    yield _row(state, f"{math.floor(judged.days)}", f"{found.not_after:%Y-%m-%d}", found.title, issuer, purpose)
    for finding in judged.findings:
        yield from _wrapped(finding)
    for spot in judged.spots:
        yield " " * _INDENT + _cut(where(spot.place), width - _INDENT)
        for finding in spot.findings:
            yield from _wrapped(finding)


def _wrapped(finding: Finding) -> Iterator[str]:
    """A finding below its certificate, in as many lines as it takes."""
    yield from _filled(f"{_SHOWN.get(finding.severity, finding.severity)}: {finding.text}", _INDENT, _INDENT + 2)


def _filled(text: str, indent: int, further: int) -> Iterator[str]:
    line = " " * indent
    started = False
    for word in text.split(" "):
        word_cut = _cut(word, _WIDTH - further)
        if started and len(line) + 1 + len(word_cut) > _WIDTH:
            yield line
            line, started = " " * further, False
        line += f" {word_cut}" if started else word_cut
        started = True
    yield line


def _other(finding: Finding, *, colours: bool) -> Iterator[str]:
    state = _painted(finding.severity, _STATE, colours=colours)
    if not finding.path:
        yield f"{state}  {_cut(finding.text, _WIDTH - _INDENT)}"
        return
    yield f"{state}  {_cut(finding.path, _WIDTH - _INDENT)}"
    yield from _filled(finding.text, _INDENT + 2, _INDENT + 2)


def _verdict(judgement: Judgement, *, colours: bool) -> str:
    """One line for whoever reads no other, as monitoring systems do."""
    counts = Counter(one.severity for one in judgement.findings)
    said = [f"{counts[one]} {one}" for one in reversed(SEVERITIES[1:]) if counts[one]]
    state = judgement.state
    painted = _painted(state, 0, colours=colours) if colours else state.upper()
    text = f"{painted}: {', '.join(said) or 'nothing to do'}"
    in_use = [one for one in judgement.certificates if not one.replaced]
    if in_use:
        first = in_use[0]
        days = math.floor(first.days)
        when = f"ends in {_count(days, 'day')}" if days >= 0 else f"has ended {-days - 1} days ago"
        text += f"; {_cut(first.facts.title, 40, name=True)} {when}"
    return text


def _totals(judgement: Judgement) -> str:
    parts = [
        _count(len(judgement.certificates), "certificate") + f" in {_count(judgement.places, 'place')}",
        _count(judgement.keys, "file") + " with private keys",
        _count(judgement.kubeconfigs, "kubeconfig"),
        _count(judgement.files, "file") + " looked at",
    ]
    return ", ".join(parts)


def as_json(judgement: Judgement) -> str:
    """For programs: an entry per place of a certificate, soonest end first; `findings` are those of no certificate."""
    counts = Counter(one.severity for one in judgement.findings)
    document = {
        "checked_at": _time(judgement.at),
        "state": judgement.state,
        "exit_code": judgement.exit_code,
        "warn_days": judgement.limits.warn,
        "critical_days": judgement.limits.critical,
        "counts": {
            "certificates": len(judgement.certificates),
            "places": judgement.places,
            "files": judgement.files,
            "kubeconfigs": judgement.kubeconfigs,
            "files_with_keys": judgement.keys,
            "findings": {severity: counts[severity] for severity in SEVERITIES},
        },
        "certificates": [_entry(judged, spot) for judged in judgement.certificates for spot in judged.spots],
        "findings": [_finding(one) | {"path": one.path} for one in judgement.others],
    }
    return json.dumps(document, indent=2) + "\n"


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _finding(finding: Finding) -> dict[str, Any]:
    return {"severity": finding.severity, "kind": finding.kind, "text": finding.text}


def _entry(judged: Judged, spot: Spot) -> dict[str, Any]:
    found, place = judged.facts, spot.place
    return {
        "path": place.path,
        "index": place.index,
        "kubeconfig": place.kubeconfig or None,
        "entry": place.entry or None,
        "replaced_by": place.replaced_by or None,
        "state": judged.state,
        "subject": found.subject,
        "issuer": found.issuer,
        "sans": [{"type": name.kind, "value": name.value} for name in found.names],
        "key_usages": list(found.extensions.key_usages),
        "extended_usages": list(found.extensions.usages),
        "is_ca": found.extensions.is_ca,
        "path_length": found.extensions.path_length,
        "serial": f"{found.serial:x}",
        "not_before": _time(found.not_before),
        "not_after": _time(found.not_after),
        "days_left": math.floor(judged.days * 100) / 100,
        "public_key": found.key.kind,
        "signature": found.signature,
        "fingerprint_sha256": found.fingerprint,
        "key": {"path": spot.key, "state": spot.key_state} if spot.key else None,
        "chain": {"status": judged.chain.status, "issuers": list(judged.chain.issuers)},
        "findings": [_finding(one) for one in (*judged.findings, *spot.findings)],
    }


def prometheus(judgement: Judgement) -> str:
    """For node_exporter's textfile collector (Prometheus text exposition format 0.0.4); times in seconds since 1970."""
    rows = [(_labels(judged, spot), judged) for judged in judgement.certificates for spot in judged.spots]
    counts = Counter(one.severity for one in judgement.findings)
    return "".join(
        (
            _metric(
                "certificate_not_after_timestamp_seconds",
                "When the certificate ends.",
                ((labels, judged.facts.not_after.timestamp()) for labels, judged in rows),
            ),
            _metric(
                "certificate_not_before_timestamp_seconds",
                "When the certificate begins to be valid.",
                ((labels, judged.facts.not_before.timestamp()) for labels, judged in rows),
            ),
            _metric(
                "check_findings",
                "Findings of the last check, by severity.",
                (({"severity": severity}, counts[severity]) for severity in SEVERITIES),
            ),
            _metric(
                "check_certificates", "Different certificates that were found.", [({}, len(judgement.certificates))]
            ),
            _metric(
                "check_exit_code",
                "Outcome of the last check: 0 ok, 1 warning, 2 critical, 3 unknown.",
                [({}, judgement.exit_code)],
            ),
            _metric("check_timestamp_seconds", "When the last check ran.", [({}, judgement.at.timestamp())]),
        )
    )


def _labels(judged: Judged, spot: Spot) -> dict[str, str]:
    place = spot.place
    return {
        "path": place.path,
        "index": str(place.index),
        "kubeconfig": place.kubeconfig,
        "entry": place.entry,
        "replaced": "true" if place.replaced_by else "false",
        "subject": judged.facts.subject,
        "issuer": judged.facts.issuer,
        "serial": f"{judged.facts.serial:x}",
    }


def _metric(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    # A series that is there twice makes the whole file unreadable; what has the same labels is the same certificate.
    series = {_label_text(labels): int(value) for labels, value in samples}
    lines = [f"{_PREFIX}_{name}{labels} {value}\n" for labels, value in series.items()]
    full = f"{_PREFIX}_{name}"
    return f"# HELP {full} {text}\n# TYPE {full} gauge\n{''.join(lines)}" if lines else ""


def _label_text(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
