"""The door to the programs iptables and nft: run one, and say in one sentence why it failed.

Rules of others have comments in any encoding: what is no UTF-8 comes and goes as surrogates, octet by octet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Iterator, Sequence, Tuple

from flanneld.environment import for_programs
from flanneld.errors import RulesError

LOCK_WAIT = 10
"""Seconds that another program may hold the lock of iptables."""

_LOCK = "/run/xtables.lock"
_TIMEOUT = 30.0
_SHOWN = 300

_LACKS = "the kernel lacks a module: load {modules}"


class KernelLacksError(RulesError):
    """The kernel has nothing of the kind that the program is for."""


_DENIED = "flanneld needs root with CAP_NET_ADMIN and CAP_NET_RAW"
NFT_RULES = "somebody has made rules in it with nft: they belong into a table of another name, or use EnableNFTables"
_CAUSES: Tuple[Tuple[str, str], ...] = (
    ("Permission denied|Operation not permitted", _DENIED),
    ("xtables lock", f"it was held for {LOCK_WAIT} s; `fuser {_LOCK}` names who has it"),
    ("open lock file", f"{_LOCK} must be writable"),
    (
        "JSON support not compiled-in|invalid option -- 'j'",
        "nft 0.9 or newer with JSON is needed, or EnableNFTables off",
    ),
    (r"CHAIN_ADD failed \(Operation not supported\)|is incompatible, use 'nft'", NFT_RULES),
    (
        "Table does not exist|nitialize table|do you need to insmod|No chain/target/match by that name|not supported|"
        "Failed to initialize nft|extension .* is not supported|"
        r"CHAIN_ADD failed \(No such file or directory\)",
        _LACKS,
    ),
)


def run(command: Sequence[str], text: str = "", modules: str = "") -> str:
    """Run a program with `text` as its input and return what it printed.

    Raises RulesError. `modules`: the kernel's modules without which it cannot work, for the hint.
    """
    name = command[0]
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            env=for_programs(os.environ),
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RulesError(f"{name} did not end within {_TIMEOUT:g} s", f"who holds {_LOCK}?") from None
    except FileNotFoundError:
        package = "nftables" if name == "nft" else "iptables"
        raise RulesError(
            f"{name} is not on PATH", f"install {package}, or run with -ip-masq=false -iptables-forward-rules=false"
        ) from None
    except OSError as error:
        raise RulesError(f"{name} cannot be run: {error.strerror}") from None
    if done.returncode:
        failure = explain(name, done.returncode, done.stderr.decode("utf-8", "replace"), modules)
        # ip6tables-legacy fails in the same words for want of a module and of permission.
        raise failure if _may_change_the_network() else RulesError(failure.message, _DENIED)
    return done.stdout.decode("utf-8", "surrogateescape")


def _may_change_the_network() -> bool:
    """Tell whether the daemon has CAP_NET_ADMIN."""
    try:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return True
    return match is None or bool(int(match[1], 16) >> 12 & 1)


def explain(name: str, status: int, stderr: str, modules: str = "") -> RulesError:
    """Return the error for a program that failed; its hint is empty where the cause is not known."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(("#", "Try "))]
    said = " ".join(" ".join(lines).split())[:_SHOWN]
    hint = next((hint for pattern, hint in _CAUSES if re.search(pattern, said)), "")
    message = f"{name} failed with status {status}"
    kind = KernelLacksError if hint is _LACKS else RulesError
    return kind(f"{message}: {said}" if said else message, hint.format(modules=modules or "what it names"))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of iptables, for versions whose iptables-restore does not take it itself.

    Raises RulesError when another program keeps it.
    """
    try:
        lock = os.open(_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RulesError(f"{_LOCK} cannot be opened: {error.strerror}") from None
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise RulesError(f"{_LOCK} cannot be locked: {error.strerror}") from None
                if time.monotonic() >= deadline:
                    raise explain("iptables-restore", 4, "another program has the xtables lock") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(lock)
