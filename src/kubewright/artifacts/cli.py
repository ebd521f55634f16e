"""python -m kubewright.artifacts COMMAND: the binaries and images of artifacts.lock.yml.

fetch   obtain what is not in the cache yet, from one of the sources
list    what the cache has
lock    bring the Debian parts of the lock file up to what the archive offers
verify  hash everything in the cache again, remove what is damaged (exit status 1 when something was)
gc      remove what no checkout on this machine has used for some time

The cache is $KUBEWRIGHT_CACHE, or ~/.cache/kubewright. A failure ends with status 1 and what to do.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from kubewright.artifacts import catalog, debian, lock, relock, upkeep
from kubewright.cache import cache_directory
from kubewright.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kubewright.artifacts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [-h] COMMAND ...",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog=parser.prog
    )
    added = {}
    for name in ("fetch", "list", "lock", "verify", "gc"):
        text = next(line for line in str(__doc__).splitlines() if line.startswith(f"{name} ")).removeprefix(name)
        added[name] = commands.add_parser(name, description=text.strip().capitalize())
    for name in ("fetch", "list"):
        command = added[name]
        command.add_argument("names", nargs="*", metavar="NAME", help="artifacts; none: all")
        command.add_argument("--source", choices=catalog.SOURCES, default="debian", help="default: %(default)s")
        command.add_argument(
            "--dir", default="", metavar="DIRECTORY", help="of the source local; images are made of a busybox in it"
        )
        command.add_argument("--mirror-url", default="", metavar="URL", help="base URL of the source mirror")
        command.add_argument("--kubernetes-version", default="", metavar="VERSION", help="default: the locked one")
    for name in ("fetch", "list", "lock", "gc"):
        added[name].add_argument(
            "--lock-file", type=Path, default=Path("artifacts.lock.yml"), metavar="FILE", help="default: %(default)s"
        )
    added["gc"].add_argument(
        "--days", type=int, default=30, metavar="N", help="unused for N days; default: %(default)s"
    )
    added["gc"].add_argument("--dry-run", action="store_true", help="only show what would be removed")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


def _settings(options: argparse.Namespace) -> catalog.Settings:
    return catalog.Settings(
        source=options.source,
        lock_file=options.lock_file,
        mirror_url=options.mirror_url,
        directory=options.dir,
        kubernetes_version=options.kubernetes_version,
    )


def _fetch(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    settings = _settings(options)
    artifacts = catalog.ensure(options.names or catalog.all_names(settings), settings, _say)
    size = sum(artifact.size for artifact in artifacts.values())
    _say(f"{len(artifacts)} artifacts, {size >> 20} MiB, ready in {time.monotonic() - begin:.1f} s")
    return 0


def _list(options: argparse.Namespace) -> int:
    settings = _settings(options)
    found = catalog.Catalog(settings, _say)
    for name in options.names or catalog.all_names(settings):
        artifact = found.cached(name)
        state = f"{artifact.sha256[:12]}  {artifact.size >> 10:>7} KiB" if artifact else "not in the cache"
        _say(f"{name:24} {found.kind(name):7} {found.version(name):16} {state}")
    return 0


def _lock(options: argparse.Namespace) -> int:
    suites = lock.load(options.lock_file).suites
    apt = debian.Apt(debian.place(cache_directory(), suites), _say, suites)
    changes = relock.rewrite(options.lock_file, apt)
    for change in changes:
        _say(change)
    _say(f"{options.lock_file}: {'rewritten' if changes else 'nothing has changed'}")
    return 0


def _verify(_: argparse.Namespace) -> int:
    cache = cache_directory()
    checked = []
    for item in upkeep.verify(cache, _say):
        checked.append(item)
        if not item.good:
            _say(f"damaged, removed: {item.what}")
    damaged = sum(not item.good for item in checked)
    _say(f"{cache}: {len(checked)} verified, {sum(i.size for i in checked) >> 20} MiB, {damaged} damaged")
    if damaged:
        _say("python -m kubewright.artifacts fetch gets again what is needed")
    return 1 if damaged else 0


def _gc(options: argparse.Namespace) -> int:
    cache = cache_directory()
    if options.days < 0:
        raise UserError(
            f"--days {options.days}: it cannot be negative", "0 removes all that this lock file does not name"
        )
    keep, now = catalog.keys_of(options.lock_file, cache), time.time()
    if options.dry_run:
        garbage = upkeep.unused(cache, keep, options.days, now)
    else:
        garbage = upkeep.collect(cache, keep, options.days, now, _say)
    for item in garbage:
        _say(str(item))
    done = "would be removed" if options.dry_run else "removed"
    _say(f"{cache}: {len(garbage)} {done}, {sum(item.size for item in garbage) >> 20} MiB")
    return 0


_COMMANDS = {"fetch": _fetch, "list": _list, "lock": _lock, "verify": _verify, "gc": _gc}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; running again goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough; without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
