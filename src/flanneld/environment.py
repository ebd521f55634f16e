"""What programs that the daemon starts get of its environment, in which there are passwords and systemd's socket."""

from __future__ import annotations

from typing import Dict, Mapping

_HIDDEN = ("FLANNELD_", "ACCESS_KEY_", "NOTIFY_SOCKET")
_NEEDED = ("PATH", "LD_", "LANG", "LC_", "XTABLES_", "IPTABLES_", "IP6TABLES_")


def for_commands(daemon: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment of a user's commands: all but the daemon's secrets and systemd's socket.

    What else is there a unit file may have set for them.
    """
    return {name: value for name, value in daemon.items() if not name.startswith(_HIDDEN)}


def for_programs(daemon: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment of the daemon's own programs: what finds them, their libraries and their files."""
    return {name: value for name, value in daemon.items() if name.startswith(_NEEDED)}
