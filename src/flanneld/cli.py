"""The command line: `flanneld [FLAG]...`, and `flanneld mk-docker-opts [OPTION]...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import List, Mapping, Sequence

from flanneld import __version__, log
from flanneld.errors import FlanneldError, UsageError

_DOCKER_USAGE = """\
mk-docker-opts [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Write Docker daemon options from the subnet that flanneld leased.
OPTIONS:
  -f  file of flanneld to read (default /run/flannel/subnet.env)
  -d  file to write (default /run/docker_opts.env)
  -i  one variable per option
  -c  all options in one variable (without -i and -c: both)
  -m  leave out --ip-masq
  -k  name of the combined variable (default DOCKER_OPTS)
"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run what `argv` (with the program's name first) asks for; returns the exit status."""
    words = list(argv[1:])
    try:
        if Path(argv[0]).name.startswith("mk-docker-opts"):
            return mk_docker_opts(words, environ)
        if words and words[0] == "mk-docker-opts":
            return mk_docker_opts(words[1:], environ)
        return _daemon(words, environ)
    except FlanneldError as error:
        print(f"flanneld: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _daemon(words: List[str], environ: Mapping[str, str]) -> int:
    from flanneld import flags, options  # noqa: PLC0415 - mk-docker-opts does without the daemon's modules

    parsed, wanted = options.read(words, environ)
    if parsed.help:
        sys.stderr.write(flags.usage(options.FLAGS))
        return 0
    if wanted is None:
        print(__version__, file=sys.stderr)
        return 0
    log.set_up(wanted.verbosity)
    from flanneld import daemon  # noqa: PLC0415 - as above

    return daemon.run(wanted, environ)


def mk_docker_opts(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Write Docker's options as mk-docker-opts.sh does; returns the exit status (1 for the usage, as there)."""
    import getopt  # noqa: PLC0415 - as above

    from flanneld.outputs import DockerOptions, docker_options, write_atomically  # noqa: PLC0415 - as above

    try:
        pairs, rest = getopt.getopt(list(words), "f:d:icmk:h?")
    except getopt.GetoptError as error:
        sys.stderr.write(f"mk-docker-opts: {error}\n{_DOCKER_USAGE}")
        return 1
    given = dict(pairs)
    if rest or "-h" in given or "-?" in given:
        sys.stderr.write(_DOCKER_USAGE)
        return 1
    individual, combined = "-i" in given, "-c" in given
    wanted = DockerOptions(
        Path(given.get("-f", "/run/flannel/subnet.env")),
        Path(given.get("-d", "/run/docker_opts.env")),
        given.get("-k", "DOCKER_OPTS"),
        individual or not combined,
        combined or not individual,
        "-m" not in given,
    )
    write_atomically(wanted.output, docker_options(wanted, environ))
    return 0


def console() -> None:
    """Entry point: take the words and the environment from the process."""
    sys.exit(main(sys.argv, os.environ))
