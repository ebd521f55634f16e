"""What byte code in flanneld's file saves: `python tests/unit/bench_pyz.py` prints the table of ADR 6.

CPU time (user and system, the best of 15) until the modules of a daemon with etcd, iptables and vxlan are imported,
from variants of the file: without byte code, and with that of the interpreter in question, deflated and stored.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from test_flanneld_pyz import SUPPORTED

from kubewright.pyz import build_flanneld

RUNS = 15
IMPORTS = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "import flanneld.cli, flanneld.options, flanneld.daemon, flanneld.subnet.etcd, flanneld.rules.iptables\n"
    "import flanneld.backend.vxlan"
)
# For the interpreter in question: add its byte code to the sources in the first file; write the second and the third.
COMPILE = """\
import importlib.util, marshal, sys, zipfile
source = zipfile.ZipFile(sys.argv[1])
for dest, method in ((sys.argv[2], zipfile.ZIP_DEFLATED), (sys.argv[3], zipfile.ZIP_STORED)):
    with zipfile.ZipFile(dest, "w", method) as made:
        for name in source.namelist():
            text = source.read(name)
            made.writestr(name, text)
            if name.endswith(".py"):
                head = importlib.util.MAGIC_NUMBER + b"\\1\\0\\0\\0" + importlib.util.source_hash(text)
                made.writestr(name + "c", head + marshal.dumps(compile(text, name, "exec", dont_inherit=True), 2))
"""


def milliseconds(python: str, *words: str | Path) -> float:
    """Return the least CPU time that a command took."""
    best = float("inf")
    for _ in range(RUNS):
        process = os.posix_spawn(python, [python, "-IS", *map(str, words)], os.environ)
        _, status, usage = os.wait4(process, 0)
        if status:
            raise SystemExit(f"{python} {words}: status {status}")
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best * 1000


def main() -> None:
    """Print a line per interpreter found."""
    with tempfile.TemporaryDirectory() as name:
        sources, deflated, stored = (Path(name, one) for one in ("sources", "deflated", "stored"))
        with zipfile.ZipFile(build_flanneld(Path(name, "built"))) as built, zipfile.ZipFile(sources, "w", 8) as made:
            for one in built.namelist():
                if not one.endswith(".pyc"):
                    made.writestr(one, built.read(one))
        sys.stdout.write(
            "| Python | bare | from source | byte code, deflated | byte code, stored |\n|---|---|---|---|---|\n"
        )
        for version, python in sorted(SUPPORTED.items(), key=lambda item: int(item[0].split(".")[1])):
            subprocess.run([python, "-c", COMPILE, sources, deflated, stored], check=True)
            times = [milliseconds(python, "-c", "pass")]
            times += [milliseconds(python, "-c", IMPORTS, one) for one in (sources, deflated, stored)]
            sys.stdout.write(f"| {version} | {' | '.join(f'{one:.0f}' for one in times)} |\n")


if __name__ == "__main__":
    main()
