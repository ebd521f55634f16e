"""systemd, asked in one call and told in few."""

from __future__ import annotations

import subprocess
from typing import Any

_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "Result",
    "ExecMainStatus",
    "NRestarts",
    "Job",
    "Slice",
)


def _run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{' '.join(arguments)} did not end within {timeout:.0f} s") from None


def states(units: list[str]) -> dict[str, dict[str, str]]:
    """Properties of each unit by unit name; a unit that is not there has LoadState `not-found`."""
    if not units:
        return {}
    reply = _run("systemctl", "show", "--no-pager", "-p", ",".join(_PROPERTIES), *units)
    blocks = reply.stdout.strip("\n").split("\n\n")
    result: dict[str, dict[str, str]] = {}
    for unit, block in zip(units, blocks):
        pairs = (line.partition("=") for line in block.splitlines())
        result[unit] = {key: value for key, _, value in pairs}
    return result


def scopes() -> str:
    """Table of all scopes: name, load state, state, substate, description."""
    return _run("systemctl", "list-units", "--type=scope", "--all", "--plain", "--no-legend", "--no-pager").stdout


def has_failed(state: dict[str, str]) -> bool:
    """Tell whether a unit has failed for good.

    While a restart is queued, a unit whose old process had to be killed is `failed` as well, and is started next.
    """
    return state.get("ActiveState") == "failed" and not int(state.get("Job") or 0)


def daemon_reload() -> None:
    """Make systemd read its unit files again."""
    _check(_run("systemctl", "daemon-reload"), "systemctl daemon-reload")


def enable(unit: str) -> None:
    """Start the unit at every boot."""
    _check(_run("systemctl", "enable", "--quiet", unit), f"systemctl enable {unit}")


def reset_failed(unit: str) -> None:
    """Forget failures of a unit, also of one whose file is gone; there may be none."""
    _run("systemctl", "reset-failed", unit)


def disable(unit: str) -> None:
    """Stop the unit, and start it at no boot any more."""
    _check(_run("systemctl", "disable", "--now", "--quiet", unit), f"systemctl disable {unit}")


def restart(unit: str) -> None:
    """Queue a restart and return at once: whoever calls this waits for the service's own health, not for systemd."""
    reset_failed(unit)
    _check(_run("systemctl", "restart", "--no-block", unit), f"systemctl restart {unit}")


def stop(unit: str) -> None:
    """Stop the unit and wait until it is down; one that does not run, or is not there, is down already."""
    reply = _run("systemctl", "stop", unit)
    if states([unit])[unit].get("LoadState") != "not-found":
        _check(reply, f"systemctl stop {unit}")


def reload(unit: str) -> str:
    """Have the running service read its configuration again; empty, or what its ExecReload= had against it."""
    try:
        reply = _run("systemctl", "reload", unit)
    except TimeoutError as error:
        return str(error)
    return f"{unit} was not reloaded: {reply.stderr.strip()}" if reply.returncode else ""


def journal(unit: str, since: float, lines: int = 300) -> list[str]:
    """The last log lines of the unit from a moment on (seconds of the epoch): older ones explain nothing."""
    scope = ["-u", unit, "--since", f"@{since:.3f}"]
    reply = _run("journalctl", "--no-pager", "-q", "-o", "cat", "-n", str(lines), *scope)
    return [line for line in reply.stdout.splitlines() if line.strip()]


def _check(reply: subprocess.CompletedProcess[str], what: str) -> None:
    if reply.returncode:
        message = reply.stderr.strip() or reply.stdout.strip() or f"exit status {reply.returncode}"
        raise OSError(f"{what}: {message}")


def summary(state: dict[str, Any]) -> str:
    """One line about a unit for a person: `failed (Result=exit-code, status 2, 3 restarts)`."""
    text = f"{state.get('ActiveState', 'unknown')}/{state.get('SubState', '?')}"
    return (
        f"{text} (result {state.get('Result', '?')}, exit status {state.get('ExecMainStatus', '?')}, "
        f"{state.get('NRestarts', '0')} automatic restarts)"
    )
