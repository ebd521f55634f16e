"""What the daemon writes onto a full disk: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
_CODE = """
import os, sys
from pathlib import Path
from flanneld.errors import FlanneldError
from flanneld.outputs import write_atomically
path = Path(sys.argv[1], "flannel", "subnet.env")
assert write_atomically(path, "FLANNEL_MTU=1450\\n")
with open(path.with_name("filler"), "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError as error:
        print(error.strerror)
try:
    write_atomically(path, "FLANNEL_MTU=1400\\n")
except FlanneldError as error:
    print(str(error).replace(str(path), "PATH"))
print(path.read_text(), sorted(os.listdir(path.parent)))
assert not write_atomically(path, "FLANNEL_MTU=1450\\n")
path.with_name("filler").unlink()
assert write_atomically(path, "FLANNEL_MTU=1400\\n")
print(path.read_text())
"""


def test_the_old_file_stays_on_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk")
    mounting = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounting, str(tmp_path), sys.executable, "-c", _CODE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [
        "No space left on device",
        "PATH cannot be written: No space left on device (check the directory and its free space)",
        "FLANNEL_MTU=1450",
        " ['filler', 'subnet.env']",
        "FLANNEL_MTU=1400",
        "",
        "",
    ]
