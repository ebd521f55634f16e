"""`python -m kubewright.lab.load`: a cluster of the lab under load, to see what an operation costs its users.

`start` returns when a client has begun to write to the API and pods on all nodes to ping each other; `stop` ends them
and prints the figures as JSON. The client is in the lab's network, beside the machines.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from kubewright.errors import UserError
from kubewright.files import write_file
from kubewright.lab.inventory import read_lab
from kubewright.lab.load_api import NAMESPACE, Api, Writer, objects, patiently, wait_until_gone
from kubewright.lab.load_ping import Pinger, enter_network, pods, wait_for_pods
from kubewright.lab.model import LabSpec
from kubewright.lab.state import mark_of, read_mark, write_mark

_LONGEST = 1800.0
"""Seconds after which a load that nobody stops ends by itself."""
_PODS_SECONDS = 90.0
_DEFAULTS = Path(__file__).resolve().parents[3] / "roles/verify/defaults/main.yml"


def _directory(spec: LabSpec) -> Path:
    return spec.access / "load"


def _run(spec: LabSpec, options: argparse.Namespace) -> int:
    """Be the load until SIGTERM."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit = threading.Timer(_LONGEST, ending.set)
    limit.daemon = True
    limit.start()
    # What is asked for pods is on the host; threads that begin later inherit the lab's network.
    enter_network(spec.namespace_path)
    api = Api(spec.inventory / "secrets/admin.kubeconfig", options.server)
    token = secrets.token_hex(8)
    image = str(yaml.safe_load(_DEFAULTS.read_text())["verify_image"])
    # The load before may still be on its way out.
    wait_until_gone(api, f"/api/v1/namespaces/{NAMESPACE}", _PODS_SECONDS)
    for path, manifest in objects(token, image, with_pods=options.pings):
        patiently(api, "PATCH", f"{path}?fieldManager=kubewright-load&force=true", manifest)
    pinger = Pinger(lambda: pods(token))
    writer = Writer(api)
    try:
        if options.pings:
            _, nodes = patiently(api, "GET", "/api/v1/nodes")
            ready = [node for node in nodes["items"] if _is_ready(node)]
            wait_for_pods(token, len(ready), _PODS_SECONDS)
            pinger.start()
        write_file(_directory(spec) / "ready", "")
        writer.run(ending)
        result: dict[str, Any] = writer.tally.figures()
        if options.pings:
            result["pings"] = pinger.stop()
        result["lost_objects"] = writer.lost()
    finally:
        patiently(api, "DELETE", f"/api/v1/namespaces/{NAMESPACE}", good=(200, 202, 404, 409))
    write_file(_directory(spec) / "result.json", json.dumps(result, indent=1))
    return 0


def _is_ready(node: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"]["conditions"])


def _start(spec: LabSpec, options: argparse.Namespace) -> int:
    directory = _directory(spec)
    directory.mkdir(parents=True, exist_ok=True)
    mark = read_mark(directory / "process.json")
    if mark is not None and mark.alive():
        raise UserError(f"process {mark.pid} is the load of this lab already", "stop it first")
    for name in ("ready", "result.json"):
        (directory / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "kubewright.lab.load", "-i", str(spec.inventory), "run"]
    command += [f"--server={url}" for url in options.server] + ([] if options.pings else ["--no-pings"])
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    write_mark(directory / "process.json", mark_of(process.pid))
    while not (directory / "ready").exists():
        if process.poll() is not None:
            raise UserError(f"the load does not begin: {(directory / 'log').read_text().strip()}")
        time.sleep(0.1)
    return 0


def _stop(spec: LabSpec, _options: argparse.Namespace) -> int:
    directory = _directory(spec)
    mark = read_mark(directory / "process.json")
    if mark is None:
        raise UserError("there is no load to stop", "python -m kubewright.lab.load start")
    if mark.alive():
        os.kill(mark.pid, signal.SIGTERM)
    end = time.monotonic() + 120
    while mark.alive() and time.monotonic() < end:
        time.sleep(0.1)
    (directory / "process.json").unlink(missing_ok=True)
    try:
        sys.stdout.write((directory / "result.json").read_text() + "\n")
    except FileNotFoundError:
        raise UserError(f"the load has no result: {(directory / 'log').read_text().strip()}") from None
    return 0


def main() -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kubewright.lab.load", description=__doc__)
    parser.add_argument("-i", "--inventory", type=Path, default=Path("inventories/lab"))
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "run"):
        command = commands.add_parser(name)
        command.add_argument("--server", action="append", default=[], help="URL of an API server; may be repeated")
        command.add_argument("--no-pings", dest="pings", action="store_false")
    options = parser.parse_args()
    try:
        return {"start": _start, "stop": _stop, "run": _run}[options.command](read_lab(options.inventory), options)
    except UserError as error:
        sys.stderr.write(f"load: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
