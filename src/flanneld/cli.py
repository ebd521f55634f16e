"""The command line: `flanneld [FLAG]...` is the daemon, `flanneld COMMAND [WORD]...` one of the commands beside it."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from pathlib import Path
from typing import List, Mapping, NamedTuple, Sequence

from flanneld import __version__
from flanneld.errors import FlanneldError, UsageError


class Command(NamedTuple):
    """A command: the module and the function (words, environment) -> exit status, and what it is for."""

    module: str
    function: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "status": Command("flanneld.status", "run", "show the own lease, the peers, and what is programmed"),
    "explain": Command("flanneld.explain", "run", "say which way packets to an address take, and whether it works"),
    "check": Command("flanneld.check", "run", "find out whether this machine can do what the configuration asks for"),
    "cleanup": Command("flanneld.cleanup", "run", "remove every trace of flanneld from this machine"),
    "migrate": Command("flanneld.migrate", "run", "copy a network from etcd's v2 store to the v3 store"),
    "mk-docker-opts": Command("flanneld.docker", "mk_docker_opts", "write the options of Docker's daemon"),
    "remove-docker0": Command("flanneld.docker", "remove_docker0", "remove the bridge docker0 of another network"),
}

_ANSWERS_TO_NAME = ("mk-docker-opts", "remove-docker0")
"""Commands that a link to this program, with or without .sh behind its name, stands for: unit files call these."""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run what `argv` (with the program's name first) asks for; returns the exit status, 2 for a mistake in it."""
    words = list(argv[1:])
    while words and not words[0]:
        del words[0]  # systemd makes one of "${VARIABLE}" where that is not set
    name = Path(argv[0]).name
    if name.endswith(".sh"):
        name = name[: -len(".sh")]
    try:
        if name in _ANSWERS_TO_NAME:
            return _command(name, words, environ)
        if words and not words[0].startswith("-"):
            return _command(words[0], words[1:], environ)
        return _daemon(words, environ)
    except FlanneldError as error:
        _say(f"flanneld: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.ENOSPC}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at the end
        if error.errno == errno.ENOSPC:  # else whoever read the output has seen enough
            _say(f"flanneld: the output cannot be written: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def help_text() -> str:
    """Return what `flanneld -help` shows."""
    from flanneld import flags, options  # noqa: PLC0415 - the other commands do without

    commands = "".join(f"  {name:<16}{command.help}\n" for name, command in COMMANDS.items())
    return (
        "Usage: flanneld [FLAG]...             run the daemon\n"
        "       flanneld COMMAND [WORD]...     run a command; COMMAND -h says more\n\n"
        f"Commands:\n{commands}\n"
        "Flags; those not given are read from FLANNELD_ variables, for example FLANNELD_ETCD_ENDPOINTS:\n"
        f"{flags.usage(options.FLAGS)}"
    )


def _command(name: str, words: List[str], environ: Mapping[str, str]) -> int:
    command = COMMANDS.get(name)
    if command is None:
        from flanneld.flags import near  # noqa: PLC0415 - only mistakes need it

        likely = near(name, COMMANDS)
        told = f"did you mean {likely}? " if likely else ""
        raise UsageError(
            f"{name!r} is neither a command nor a flag",
            f"{told}flanneld -help lists them; boolean flags take their value after '=', for example -ip-masq=true",
        )
    status = getattr(importlib.import_module(command.module), command.function)(words, environ)
    sys.stdout.flush()  # here, where a reader that is gone is dealt with
    return int(status)


def _daemon(words: List[str], environ: Mapping[str, str]) -> int:
    from flanneld import flags, log, options  # noqa: PLC0415 - the other commands do without the daemon's modules

    parsed, wanted = options.read(words, environ)
    if parsed.help:
        _say(help_text())
        return 0
    if wanted is None:
        _say(f"v{__version__}\n")
        return 0
    _take_name("flanneld")
    log.set_up(wanted.log)
    log.logger.info("flanneld v%s, Python %s", __version__, sys.version.split()[0])
    log.logger.info("CLI flags config: %s", flags.shown(options.FLAGS, parsed))
    for variable in parsed.unknown:
        log.logger.warning("the variable %s belongs to no flag", variable)
    if parsed.idle:
        shown = ", ".join(f"-{one}" for one in parsed.idle)
        log.logger.warning("without effect: %s; all of the log goes to standard error", shown)
    from flanneld import daemon  # noqa: PLC0415 - as above

    return daemon.run(wanted, environ)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(text)


def _take_name(name: str) -> None:
    """Be called so in lists of processes, where `python3` says nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _open_streams() -> None:
    """Lead what is closed of the standard streams nowhere, or the first connection takes a log's place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
    # Python has none where the descriptor was closed.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good


def console() -> None:
    """Entry point: take the words and the environment from the process."""
    _open_streams()
    sys.exit(main(sys.argv, os.environ))
