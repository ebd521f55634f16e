"""The Pythons of this machine: flanneld has to run with those that machines have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def interpreters() -> dict[str, str]:
    """Interpreters by minor version: the one that runs the tests, those in PATH, and those of pyenv."""
    names = [f"python3.{minor}" for minor in range(6, 14)]
    found = [shutil.which(name) for name in names]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/*/bin/python")))
    versions: dict[str, str] = {}
    for path in [sys.executable, *filter(None, found)]:
        code = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:  # else it is a shim that leads nowhere
            versions.setdefault(done.stdout, path)
    return versions


def supported() -> dict[str, str]:
    """Those that flanneld runs with, by minor version."""
    return {version: path for version, path in interpreters().items() if version in {f"3.{n}" for n in range(9, 14)}}
