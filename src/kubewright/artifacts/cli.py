"""python -m kubewright.artifacts fetch|list|lock"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import yaml

from kubewright.artifacts import catalog, debian
from kubewright.artifacts.store import cache_directory
from kubewright.errors import UserError

_HEADER = """---
# Every artifact: version, where each source has it, and the sha256 that it must have.
# `python -m kubewright.artifacts lock` brings the Debian parts up to what the archive offers.
"""


class _Indented(yaml.SafeDumper):
    """Indents lists, as yamllint and people expect."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Never without indentation."""
        del indentless
        super().increase_indent(flow, indentless=False)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kubewright.artifacts", description="Binaries and images as content")
    parser.add_argument("command", choices=["fetch", "list", "lock"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="artifacts; none: all")
    parser.add_argument("--source", choices=catalog.SOURCES, default="debian")
    parser.add_argument("--dir", default="", help="directory of the source local")
    parser.add_argument("--mirror-url", default="")
    parser.add_argument("--kubernetes-version", default="")
    parser.add_argument("--lock-file", type=Path, default=Path("artifacts.lock.yml"))
    return parser.parse_args(argv)


def _progress(text: str) -> None:
    print(text, flush=True)


def _lock(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    debian.refresh(data, debian.Apt(cache_directory() / "apt"), _progress)
    path.write_text(_HEADER + yaml.dump(data, Dumper=_Indented, sort_keys=False, width=120))


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 with a message when it cannot be done."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    settings = catalog.Settings(
        source=arguments.source,
        lock_file=arguments.lock_file,
        mirror_url=arguments.mirror_url,
        directory=arguments.dir,
        kubernetes_version=arguments.kubernetes_version,
    )
    begin = time.monotonic()
    try:
        if arguments.command == "lock":
            _lock(arguments.lock_file)
            return 0
        names = arguments.names or catalog.all_names(settings)
        if arguments.command == "list":
            found = catalog.Catalog(settings, _progress)
            for name in names:
                artifact = found.cached(name)
                state = f"{artifact.sha256[:12]}  {artifact.size >> 10:>7} KiB" if artifact else "not in the cache"
                print(f"{name:28} {found.version(name):40} {state}")
            return 0
        artifacts = catalog.ensure(names, settings, _progress)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; running again goes on where it stopped", file=sys.stderr)
        return 130
    size = sum(artifact.size for artifact in artifacts.values())
    print(f"{len(artifacts)} artifacts, {size >> 20} MiB, ready in {time.monotonic() - begin:.1f} s")
    return 0
