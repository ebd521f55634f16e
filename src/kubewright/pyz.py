"""Builds flanneld.pyz: the daemon and the part of pyroute2 it uses, as one executable file.

The result depends on the sources only: sorted names, a fixed time stamp, stored modes. pyroute2's own package
module is left empty: it imports the whole library (0.2 s), of which the daemon uses the rtnetlink messages.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import sys
import zipfile
from pathlib import Path

from kubewright.errors import UserError
from kubewright.files import write_file

_SHEBANG = b"#!/usr/bin/env python3\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_START = "from flanneld.cli import console\n\nconsole()\n"
_PYROUTE2 = (
    "common.py",
    "netlink/__init__.py",
    "netlink/exceptions.py",
    "netlink/rtnl/__init__.py",
    "netlink/rtnl/ifaddrmsg.py",
    "netlink/rtnl/ndmsg.py",
    "netlink/rtnl/rtmsg.py",
)


def build_flanneld(dest: Path) -> Path:
    """Write flanneld.pyz to `dest` (mode 0755, atomically) and return `dest`. Same sources, same bytes.

    Raises UserError when flanneld or pyroute2 is not installed here or the file cannot be written.
    """
    contents = {f"flanneld/{path.name}": path.read_bytes() for path in _package("flanneld").glob("*.py")}
    library = _package("pyroute2")
    contents["pyroute2/__init__.py"] = b""
    for name in _PYROUTE2:
        contents[f"pyroute2/{name}"] = (library / name).read_bytes()
    contents.update(_licences())
    contents["__main__.py"] = _START.encode()
    try:
        write_file(dest, _archive(contents), 0o755)
    except OSError as error:
        raise UserError(
            f"{dest} cannot be written: {error.strerror}", "Check the directory and its free space."
        ) from None
    return dest


def _archive(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    made.write(_SHEBANG)
    with zipfile.ZipFile(made, "w") as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, contents[name])
    return made.getvalue()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"The Python package {name} is not installed here.", "Install the project: pip install -e .")
    return Path(spec.origin).parent


def _licences() -> dict[str, bytes]:
    files = importlib.metadata.files("pyroute2") or []
    return {
        f"pyroute2/{file.name}": file.read_binary()
        for file in files
        if ".dist-info" in str(file) and file.name.upper().startswith("LICENSE")
    }


def main() -> int:
    """`python -m kubewright.pyz DEST`: build the file and print where it is."""
    if len(sys.argv) != 2:
        sys.stderr.write("Usage: python -m kubewright.pyz DEST\n")
        return 2
    try:
        dest = build_flanneld(Path(sys.argv[1]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{dest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
