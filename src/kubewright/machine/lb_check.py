#!/usr/bin/python3
"""Active health checks for nginx: asks every API server for /readyz, and keeps those that are ready in its list.

One file, because it is a service of its own on machines (kube-lb-check). nginx's own checks are passive: a server that
accepts connections and does nothing would go on getting its share of them.

BASE/upstreams.conf names all servers, one `server HOST:PORT ...;` a line; LIVE/upstreams.conf, which nginx reads, has
those that are ready, or all while none is. With --announce, LIVE/serving exists while an API server answers through
nginx, ready or not: keepalived gives the virtual address up where none does.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

# A server is out after so many failures in a row, and back after so many successes.
_FALL, _RISE = 2, 2
_TRY_SECONDS = 1.5
# nginx may pick a server that has just failed: the next try gets another one.
_THROUGH_TRIES = 3
# Without an anonymous user the API server asks who we are: alive, and more cannot be known.
_READY = (200, 401, 403)
_SERVER = re.compile(r"^\s*server\s+(\S+?):(\d+)[\s;]", re.MULTILINE)


def servers(text: str) -> list[tuple[str, int]]:
    """Host and port of every `server` line of a list of upstreams."""
    return [(host, int(port)) for host, port in _SERVER.findall(text)]


def chosen(base: str, ready: set[tuple[str, int]]) -> str:
    """The lines of `base` whose servers are ready; all of them while none is."""
    lines = base.splitlines(keepends=True)
    known = [(line, servers(line)) for line in lines]
    if not any(found[0] in ready for _, found in known if found):
        return base
    return "".join(line for line, found in known if not found or found[0] in ready)


class Memory:
    """What the answers of one server amount to: one that is new counts as its first answer says."""

    def __init__(self) -> None:
        self.ready: bool | None = None
        self._others = 0

    def learn(self, answered: bool) -> bool:
        """Take an answer in; whether the server counts as ready now."""
        if self.ready is None or answered == self.ready:
            self.ready, self._others = answered, 0
            return self.ready
        self._others += 1
        if self._others >= (_RISE if answered else _FALL):
            self.ready, self._others = answered, 0
        return self.ready


def ask(host: str, port: int, ca: str, timeout: float) -> tuple[int, str]:
    """Ask for /readyz once, on a new connection: status (0 without an answer), and why it is not ready, or nothing."""
    try:
        # Read every time: a CA that is rotated is another file from one moment to the next.
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        try:
            connection.request("GET", "/readyz")
            reply = connection.getresponse()
            reply.read(65536)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    return reply.status, "" if reply.status in _READY else f"answered {reply.status} {reply.reason}"


class Watcher(threading.Thread):
    """Asks one server for ever, so that a slow one delays no other."""

    def __init__(self, server: tuple[str, int], ca: str, interval: float, changed: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.memory = Memory()
        self.stopped = threading.Event()
        self._ca, self._interval, self._changed = ca, interval, changed

    def run(self) -> None:
        """Ask until `stopped` is set."""
        while not self.stopped.is_set():
            begin = time.monotonic()
            _, reason = ask(*self.server, self._ca, _TRY_SECONDS)
            before = self.memory.ready
            after = self.memory.learn(not reason)
            if after != before:
                say(f"{self.server[0]}:{self.server[1]} is {'ready' if after else 'out: ' + reason}")
                self._changed.set()
            self.stopped.wait(max(0.0, self._interval - (time.monotonic() - begin)))


def say(text: str) -> None:
    """A line for the journal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def read(path: str) -> str:
    """Content of a file, empty when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def replace(path: str, text: str) -> None:
    """Write a file so that a reader sees the old or the new one."""
    with open(f"{path}.new", "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(f"{path}.new", path)


def tell_systemd(message: str) -> None:
    """sd_notify(3), where systemd wants to hear it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(message.encode())


class Keeper:
    """Brings LIVE/upstreams.conf to what is ready."""

    def __init__(self, options: argparse.Namespace) -> None:
        # Some server is another one than at the last round.
        self.changed = threading.Event()
        self._options = options
        self._watchers: dict[tuple[str, int], Watcher] = {}
        self._base = f"{options.base}/upstreams.conf"
        self._live = f"{options.live}/upstreams.conf"
        self._refused = ""

    def watch(self) -> list[Watcher]:
        """One watcher for each server of the list as it is now."""
        wanted = servers(read(self._base))
        for server in [server for server in self._watchers if server not in wanted]:
            self._watchers.pop(server).stopped.set()
        for server in wanted:
            if server not in self._watchers:
                watcher = Watcher(server, self._options.ca, self._options.interval, self.changed)
                self._watchers[server] = watcher
                watcher.start()
        return list(self._watchers.values())

    def round(self) -> bool:
        """Compare and correct; whether every server has answered or failed once."""
        watchers = self.watch()
        known = [watcher for watcher in watchers if watcher.memory.ready is not None]
        if len(known) < len(watchers):
            return False
        text = chosen(read(self._base), {w.server for w in watchers if w.memory.ready})
        # Without a file nginx does not run; its start writes one.
        if text != read(self._live) and os.path.exists(self._live):
            self._bring(text)
        return True

    def _bring(self, text: str) -> None:
        before = read(self._live)
        replace(self._live, text)
        reason = self._nginx("-t", "-q") or self._nginx("-s", "reload")
        if reason:
            replace(self._live, before)
            if reason != self._refused:
                say(f"nginx refuses the new upstreams, the old ones stay: {reason}")
        elif servers(text) != servers(before):
            say("upstreams: " + ", ".join(f"{host}:{port}" for host, port in servers(text)))
        self._refused = reason

    def _nginx(self, *arguments: str) -> str:
        argv = [self._options.nginx, "-c", f"{self._options.live}/nginx.conf", *arguments]
        try:
            reply = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return " ".join(reply.stderr.split()) if reply.returncode else ""


class Announcer(threading.Thread):
    """Keeps the file `serving`, whatever upstreams do meanwhile."""

    def __init__(self, path: str, port: int, ca: str, interval: float) -> None:
        super().__init__(daemon=True)
        self._path, self._port, self._ca, self._interval = path, port, ca, interval

    def run(self) -> None:
        """Ask for ever."""
        while True:
            begin = time.monotonic()
            self.announce()
            time.sleep(max(0.05, self._interval - (time.monotonic() - begin)))

    def announce(self) -> None:
        """Ask through nginx, and say by the file whether anybody answered."""
        status, reason = 0, ""
        for _ in range(_THROUGH_TRIES):
            status, reason = ask("127.0.0.1", self._port, self._ca, _TRY_SECONDS)
            if status:
                break
        serving = bool(status)
        if serving == os.path.exists(self._path):
            return
        if serving:
            replace(self._path, "")
            say("serving")
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            say(f"not serving: {reason}")


def _end(failed: threading.ExceptHookArgs) -> None:
    """A part that fails in a way that nobody thought of takes the rest with it: systemd starts all anew."""
    threading.__excepthook__(failed)
    os._exit(1)


def main() -> None:
    """Run for ever."""
    threading.excepthook = _end
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="directory with the list of all servers")
    parser.add_argument("--live", required=True, help="directory that nginx reads")
    parser.add_argument("--nginx", required=True)
    parser.add_argument("--port", type=int, required=True, help="where nginx listens")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from one question to the next")
    parser.add_argument("--announce", action="store_true", help="tell keepalived whether nginx serves")
    options = parser.parse_args()
    keeper = Keeper(options)
    if options.announce:
        Announcer(f"{options.live}/serving", options.port, options.ca, options.interval).start()
    told = False
    while True:
        begin = time.monotonic()
        keeper.changed.clear()
        complete = keeper.round()
        tell_systemd("WATCHDOG=1" + ("\nREADY=1" if complete and not told else ""))
        told = told or complete
        keeper.changed.wait(max(0.05, (options.interval if complete else 0.1) - (time.monotonic() - begin)))


if __name__ == "__main__":
    main()
