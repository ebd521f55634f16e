"""What the daemon tells the world: the files that others wait for, a socket, and systemd."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Mapping, Optional

from flanneld.errors import FlanneldError, UsageError
from flanneld.health import Routes, Server, serve
from flanneld.log import Repeated, logger
from flanneld.notify import notify
from flanneld.outputs import SubnetFile, cni_conflist, subnet_env, write_atomically

_AGAIN = 1.0  # seconds between attempts to write a file


class StatusSocket:
    """The socket that `flanneld status` asks; made again when its path is gone."""

    def __init__(self, path: Path, routes: Routes) -> None:
        self._path = path
        self._routes = routes
        self._server: Optional[Server] = None
        self._repeated = Repeated()

    def open(self) -> None:
        """Listen. Raises UsageError when another flanneld does so there; other failures are logged."""
        try:
            self._server = serve(self._path, self._routes)
        except UsageError:
            raise
        except FlanneldError as error:
            self._repeated.warn(f"`flanneld status` will not work: {error}")

    def ensure(self) -> None:
        """Listen again when the path is gone; a failure is logged."""
        if self._server is not None and self._path.exists():
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        try:
            self.open()
        except UsageError as error:
            self._repeated.warn(f"`flanneld status` will not work: {error}")


class Publisher:
    """Keeps the files as they should be, and says so. `trouble` is empty once they are there."""

    def __init__(self, subnet_file: Path, cni_conf: Optional[Path], environ: Mapping[str, str]) -> None:
        self._subnet_file = subnet_file
        self._cni_conf = cni_conf
        self._environ = environ
        self._unwritten = Repeated()
        self._content: Optional[SubnetFile] = None
        self._said = ""
        self.at = float("inf")
        """Monotonic time of the next attempt, while one has failed."""
        self.trouble = f"{subnet_file} is not written"

    def say(self, status: str, *lines: str) -> None:
        """Tell systemd how things stand, when that has changed or there is more to tell."""
        if status != self._said or lines:
            self._said = status
            notify(self._environ, *lines, f"STATUS={status}")

    def write(self, content: SubnetFile, *, look: bool) -> bool:
        """Write the files when their content has changed, with `look` also when they differ; False when it fails."""
        if content == self._content and not look and not self.trouble:
            return True
        try:
            written = []
            if self._cni_conf is not None and write_atomically(self._cni_conf, cni_conflist(content)):
                written.append(self._cni_conf)
            if write_atomically(self._subnet_file, subnet_env(content)):
                written.append(self._subnet_file)
        except FlanneldError as error:
            self._unwritten.warn(str(error))
            self.trouble, self.at = str(error), time.monotonic() + _AGAIN
            return False
        for path in written:
            logger.info("wrote %s", path)
        self._unwritten.clear()
        self._content, self.trouble, self.at = content, "", float("inf")
        return True

    def show(self, trouble: str, subnets: str) -> None:
        """Say in systemd's status whether the daemon is ready."""
        self.say(f"subnet {subnets}" if not trouble else f"subnet {subnets}, not ready: {trouble}")
