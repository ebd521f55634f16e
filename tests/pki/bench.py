"""kubepki against cfssl, in pairs, in one run: `make bench-pki`. Writes docs/benchmarks.md between its marks.

Every figure is a median; each pair is measured one after the other, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

import tools

from kubepki import reconcile, spec

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: make bench-pki -->", "<!-- end of figures of kubepki -->"
# What the documents ask cfssl for.
_CONFIG = {
    "signing": {
        "default": {"expiry": "87600h"},
        "profiles": {
            "kubernetes": {
                "expiry": "43800h",
                "usages": ["signing", "key encipherment", "server auth", "client auth"],
            }
        },
    }
}
_KEYS = {"RSA-2048": {"algo": "rsa", "size": 2048}, "P-256": {"algo": "ecdsa", "size": 256}}


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def specification(count: int, key: dict[str, Any]) -> dict[str, Any]:
    certificates = [
        {
            "name": f"node{number}",
            "ca": "k",
            "cn": f"system:node:node{number}",
            "o": ["system:nodes"],
            "profile": "peer",
            "hosts": [f"node{number}", f"10.{number // 250}.{number % 250}.1"],
            "key": key,
        }
        for number in range(count)
    ]
    return {"cas": {"k": {"cn": "k"}}, "certificates": certificates}


def batch(count: int, key: dict[str, Any], rounds: int) -> tuple[float, float, float]:
    """Seconds of an apply from nothing, and of a plan that finds nothing; processor seconds per second of apply."""
    wanted = spec.parse(specification(count, key))
    first, again, busy = [], [], []
    # All rounds stay until the end: ext4 is slow to make files where others have just been removed.
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as place:
        for number in range(rounds):
            directory = Path(place) / f"pki{number}"
            before, begin = os.times(), time.perf_counter()
            reconcile.apply(wanted, directory, datetime.now(UTC))
            taken, after = time.perf_counter() - begin, os.times()
            first.append(taken)
            busy.append((sum(after[:4]) - sum(before[:4])) / taken)
            begin = time.perf_counter()
            found = reconcile.plan(wanted, directory, datetime.now(UTC))
            again.append(time.perf_counter() - begin)
            if found.changed:
                sys.exit("the plan after an apply is not empty: these figures would mean nothing")
    return statistics.median(first), statistics.median(again), statistics.median(busy)


@contextmanager
def place_with_ca(cfssl: Path, key: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        place = Path(name)
        (place / "ca-config.json").write_text(json.dumps(_CONFIG))
        (place / "ca-csr.json").write_text(json.dumps({"CN": "kubernetes", "key": key, "ca": {"expiry": "87600h"}}))
        request = {"CN": "etcd", "hosts": ["192.168.80.10", "192.168.80.11"], "key": key}
        (place / "server-csr.json").write_text(json.dumps(request))
        shell(f"{cfssl}/cfssl gencert -loglevel 5 -initca ca-csr.json | {cfssl}/cfssljson -bare ca", place)
        yield place


def shell(script: str, place: Path) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=place, check=True, stderr=subprocess.DEVNULL)


_GENCERT = "gencert -loglevel 5 -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile=kubernetes"


def single(cfssl: Path, kubepki: Path, key: dict[str, Any], pairs: int) -> tuple[float, float]:
    """Seconds of one `gencert` as a process: cfssl's, kubepki's."""
    with place_with_ca(cfssl, key) as place:
        commands = [[str(program), *_GENCERT.split(), "server-csr.json"] for program in (cfssl / "cfssl", kubepki)]
        taken: list[list[float]] = [[], []]
        for number in range(pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                command = commands[which]
                taken[which].append(
                    seconds(lambda: subprocess.run(command, cwd=place, check=True, capture_output=True))  # noqa: B023
                )
    return statistics.median(taken[0]), statistics.median(taken[1])


def loop(cfssl: Path, kubepki: Path, key: dict[str, Any], count: int, rounds: int) -> tuple[float, float]:
    """Seconds for `count` certificates: the documents' loop with cfssl, and one `kubepki apply`."""
    script = f"for i in $(seq {count}); do {cfssl}/cfssl {_GENCERT} server-csr.json | {cfssl}/cfssljson -bare s$i; done"
    theirs, ours = [], []
    for number in range(rounds):
        with place_with_ca(cfssl, key) as place:
            (place / "spec.json").write_text(json.dumps(specification(count, key)))
            works = [
                (theirs, lambda: shell(script, place)),
                (ours, lambda: shell(f"{kubepki} apply spec.json >/dev/null", place)),
            ]
            for taken, work in works if number % 2 else reversed(works):
                taken.append(seconds(work))
    return statistics.median(theirs), statistics.median(ours)


def figures(rounds: int, pairs: int) -> str:
    (ROOT / "build").mkdir(exist_ok=True)
    _compiled()
    cfssl, kubepki = tools.cfssl_directory(), Path(sys.executable).with_name("kubepki")
    lines = [
        BEGIN,
        "",
        f"{os.cpu_count()} cores, {date.today()}, `make bench-pki` (`--rounds {rounds} --pairs {pairs}`)",
        "",
        "| in one call | first, s | again (a plan), s | processors busy |",
        "|---|---|---|---|",
    ]
    for name, count in (("P-256", 1000), ("RSA-2048", 100)):
        first, again, busy = batch(count, _KEYS[name], rounds)
        lines.append(f"| {count} certificates, {name} | {first:.2f} | {again:.2f} | {busy:.1f} |")
        report(lines[-1])
    lines += ["", "| | cfssl, s | kubepki, s | ratio |", "|---|---|---|---|"]
    for name, key in _KEYS.items():
        theirs, ours = single(cfssl, kubepki, key, pairs)
        lines.append(f"| one `gencert` process, {name} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |")
        report(lines[-1])
    for name, key in _KEYS.items():
        theirs, ours = loop(cfssl, kubepki, key, 100, rounds)
        lines.append(
            f"| 100 certificates, {name}: loop of `cfssl \\| cfssljson`, one `kubepki apply` "
            f"| {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |"
        )
        report(lines[-1])
    return "\n".join([*lines, "", END])


def _compiled() -> None:
    """Let Python keep the code of modules, as it does for users, whatever this session's environment says."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "src" / "kubepki")], check=True)


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args()
    made = figures(arguments.rounds, arguments.pairs)
    text = DOCUMENT.read_text()
    before, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        sys.exit(f"{DOCUMENT}: the marks {BEGIN} and {END} are not there")
    DOCUMENT.write_text(before + made + rest.partition(END)[2])
    report(f"written to {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
