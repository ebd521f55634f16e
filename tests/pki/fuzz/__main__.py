"""Damage the input of kubepki's readers until one fails in a way that it does not document.

python tests/pki/fuzz TARGET|all [--seconds 60] [--runs N] [--seed N] [--directory build/fuzz]
python tests/pki/fuzz TARGET --input FILE     once more, what failed

What was found to be interesting stays in the directory for the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "src"))
with atheris.instrument_imports(include=["kubepki"]):
    from targets import TARGETS, Target


def _call(target: Target, data: bytes) -> None:
    try:
        target.run(data)
    except target.errors as error:
        said = str(error)
        # It is for people.
        if not said.strip():
            raise RuntimeError("an error that says nothing") from error


def _fuzz(name: str, options: argparse.Namespace) -> None:
    target = TARGETS[name]
    corpus = options.directory / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    flags = [f"-seed={options.seed}", f"-runs={options.runs}", f"-max_total_time={options.seconds}", "-timeout=10"]
    flags += [f"-artifact_prefix={options.directory}/{name}-", "-max_len=8192", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: _call(target, data))
    # Ends the process.
    atheris.Fuzz()


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many for each target")
    parser.add_argument("--seed", type=int, default=0, help="0 is another one each time")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--input", type=Path)
    options = parser.parse_args()
    if options.target == "all":
        command = [sys.executable, str(Path(__file__).parent)]
        rest = [f"--{name}={getattr(options, name)}" for name in ("seconds", "runs", "seed", "directory")]
        # A signal is a negative code; all targets run, also after a failure.
        codes = [subprocess.run([*command, name, *rest], check=False).returncode for name in TARGETS]
        return int(any(codes))
    if options.input:
        _call(TARGETS[options.target], options.input.read_bytes())
        return 0
    _fuzz(options.target, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
