"""Builds flanneld.pyz: the daemon and PyYAML's pure Python part, as one executable file with byte code in it.

The result depends on the sources and on the minor version of the building Python only: sorted names, a fixed time
stamp, stored modes, and byte code that is marshalled without regard to what else the process holds. See
docs/adr/0006-flanneld-is-one-file.md for what is in the file and why.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import marshal
import sys
import zipfile
from pathlib import Path

from kubewright.errors import UserError
from kubewright.files import write_file

# -I and -S: what is installed on a machine for other Python programs has no part in the network daemon.
_START = b'#!/bin/sh\nexec python3 -IS "$0" "$@"\n'
_EPOCH = (1980, 1, 1, 0, 0, 0)
# This one must be understood by every Python that a machine may have.
_MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("flanneld needs Python 3.9 or newer, this is %s (%s)" % (sys.version.split()[0], sys.executable))

from flanneld.cli import console

console()
"""
_UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: found by a hash that nobody compares, instead of a time stamp
_WITHOUT_REFERENCES = 2  # later versions of marshal mark objects by their reference count, which depends on the process
_C_BINDING = "cyaml.py"


def build_flanneld(dest: Path) -> Path:
    """Write flanneld.pyz to `dest` (mode 0755, atomically) and return `dest`.

    Raises UserError when flanneld or PyYAML is not installed here or the file cannot be written.
    """
    contents = _sources()
    for name, source in _sources().items():
        if name.endswith(".py") and name != "__main__.py":
            contents[f"{name}c"] = _byte_code(name, source)
    try:
        write_file(dest, _archive(contents), 0o755)
    except OSError as error:
        raise UserError(
            f"{dest} cannot be written: {error.strerror}", "Check the directory and its free space."
        ) from None
    return dest


def recipe() -> str:
    """Return a digest of everything that decides what `build_flanneld` writes."""
    digest = hashlib.sha256(_START + importlib.util.MAGIC_NUMBER + Path(__file__).read_bytes())
    for name, source in sorted(_sources().items()):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _sources() -> dict[str, bytes]:
    """Everything in the file that is not byte code, by name."""
    flanneld, yaml = _package("flanneld"), _package("yaml")
    found = {f"flanneld/{path.relative_to(flanneld)}": path.read_bytes() for path in flanneld.rglob("*.py")}
    found.update((f"yaml/{path.name}", path.read_bytes()) for path in yaml.glob("*.py") if path.name != _C_BINDING)
    found.update(_licences())
    found["__main__.py"] = _MAIN.encode()
    return found


def _byte_code(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source)
    return header + marshal.dumps(code, _WITHOUT_REFERENCES)


def _archive(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    made.write(_START)
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
    files = importlib.metadata.files("PyYAML") or []
    return {
        f"yaml/{file.name}": file.read_binary()
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
