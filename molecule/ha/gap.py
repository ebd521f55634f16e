#!/usr/bin/env python3
"""Breaks something, and tells for how long the API was away: the longest time between two answers.

gap.py INVENTORY read|write SECONDS -- COMMAND...   asks the server of the administrator's kubeconfig, on a new
connection each time, for /livez or with a ConfigMap to write. Ends SECONDS after the command, when
it answers again.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from kubewright.lab.inventory import read_lab
from kubewright.lab.load_ping import enter_network

_PATIENCE = 60.0
_PATH = "/api/v1/namespaces/default/configmaps/gap?fieldManager=gap&force=true"
_BODY = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gap"}}


class Probe(threading.Thread):
    """Asks for ever; `gap` is the longest time between two answers, in seconds."""

    def __init__(self, kubeconfig: Path, kind: str) -> None:
        super().__init__(daemon=True)
        content = yaml.safe_load(kubeconfig.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        self._url = urlsplit(cluster["server"])
        self._tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]))
            pair.write(base64.b64decode(user["client-key-data"]))
            pair.flush()
            self._tls.load_cert_chain(pair.name)
        self._kind = kind
        self.answers, self.gap, self.last = 0, 0.0, time.monotonic()

    def run(self) -> None:
        """Ask until the process ends."""
        while True:
            try:
                good = self._ask()
            except (OSError, http.client.HTTPException):
                good = False
            now = time.monotonic()
            if good:
                self.gap, self.last = max(self.gap, now - self.last), now
                self.answers += 1
            time.sleep(0.05)

    def _ask(self) -> bool:
        connection = http.client.HTTPSConnection(str(self._url.hostname), self._url.port, timeout=1, context=self._tls)
        try:
            if self._kind == "write":
                body = json.dumps({**_BODY, "data": {"n": str(self.answers)}})
                connection.request("PATCH", _PATH, body, {"Content-Type": "application/apply-patch+yaml"})
            else:
                connection.request("GET", "/livez")
            reply = connection.getresponse()
            reply.read()
        finally:
            connection.close()
        return reply.status in (200, 201)


def main() -> int:
    """Status of the command, or 1 when the API did not come back."""
    inventory, kind, seconds, command = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[5:]
    # It waits on the host; what begins after the next step is in the lab's network.
    waiting = ["sh", "-c", 'read -r _; exec "$@"', "sh", *command]
    breaking = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=sys.stderr, text=True)
    enter_network(read_lab(inventory).namespace_path)
    probe = Probe(inventory / "secrets/admin.kubeconfig", kind)
    probe.start()
    begin = time.monotonic()
    while probe.answers < 5 and time.monotonic() - begin < _PATIENCE:
        time.sleep(0.05)
    probe.gap = 0.0
    breaking.communicate("go\n")
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end or (now - probe.last > 1 and now < end + _PATIENCE):
        time.sleep(0.05)
    back = time.monotonic() - probe.last <= 1
    sys.stdout.write(json.dumps({"longest_gap_seconds": round(probe.gap, 2), "answers": probe.answers}) + "\n")
    return breaking.returncode or (0 if back else 1)


if __name__ == "__main__":
    sys.exit(main())
