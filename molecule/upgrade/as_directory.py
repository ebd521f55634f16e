"""`as_directory.py LOCK DIRECTORY BROKEN...`: a lock file as artifacts_dir wants it; BROKEN programs end at once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from kubewright.artifacts import Settings, ensure
from kubewright.artifacts.catalog import FLANNELD, all_names


def main() -> None:
    """Make the directory anew."""
    settings, directory, broken = Settings("debian", Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, artifact in ensure(all_names(settings), settings, print).items():
        if name in broken:
            (directory / name).write_text("#!/bin/sh\necho broken on purpose >&2\nexit 7\n")
            (directory / name).chmod(0o755)
        elif name != FLANNELD and artifact.kind == "binary":
            # A link of its own: the cache replaces its file when it takes the same content in again.
            _link(artifact.path, directory / name.removeprefix("cni-"))


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
