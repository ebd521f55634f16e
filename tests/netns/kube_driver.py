"""Does with a KubeSubnetManager what the daemon does, and says what comes of it (JSON lines). Runs on 3.9, too."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flanneld.errors import FlanneldError
from flanneld.kube import kubeconfig
from flanneld.subnet import kube
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Lease

_LOCK = threading.Lock()


def say(what: str, **more: Any) -> None:
    with _LOCK:
        sys.stdout.write(json.dumps({"what": what, **more}) + "\n")
        sys.stdout.flush()


def shown(leases: Any) -> dict[str, Any]:
    return {name: lease_shown(lease) for name, lease in leases.items()}


def lease_shown(lease: Lease) -> Any:
    return {"subnets": [str(one) for one in lease.subnets], **lease.attributes._asdict()}


def insist(action: Any) -> Any:
    """The result of an action that is tried again until it succeeds; what it complained about is said once."""
    told = ""
    while True:
        try:
            return action()
        except FlanneldError as error:
            if str(error) != told:
                told = str(error)
                say("error", kind=type(error).__name__, text=told)
        time.sleep(0.1)


def main() -> None:
    asked = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    kube.GRACE, kube.CONFIG_EVERY, kube.OUTAGE = asked["grace"], asked["config_every"], asked["outage"]
    kube._PAUSE = (0.2, 3.0)
    if "service_account" in asked:
        kubeconfig.SERVICE_ACCOUNT = Path(asked["service_account"])
    options = dict(asked["options"], net_config_path=Path(asked["options"]["net_config_path"]))
    try:
        manager = kube.KubeSubnetManager(kube.KubeOptions(**options), asked["environ"])
    except FlanneldError as error:
        say("refused", kind=type(error).__name__, text=str(error))
        return
    attributes = Attributes(**asked["attributes"])
    config = insist(lambda: parse_config(manager.config_text()))
    overrides = insist(manager.overrides)
    say("overrides", own=overrides.own, announced=overrides.announced)
    say("leases", leases=shown(insist(manager.leases)))
    holding = insist(lambda: manager.acquire(config, attributes, ()))
    say("acquired", lease=lease_shown(holding.lease), expires=holding.expires)
    manager.changed = lambda: say(
        "picture",
        leases=shown(manager.picture.leases if manager.picture else {}),
        config=manager.picture.config if manager.picture else "",
    )
    manager.lost = lambda reason: say("lost", text=reason)
    manager.start(holding)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "ready":
            manager.ready()
        elif order["do"] == "announce":
            manager.announce(attributes._replace(**order["attributes"]))
        elif order["do"] == "trouble":
            say("trouble", text=manager.trouble)
        elif order["do"] == "overrides":
            overrides = manager.overrides()
            say("overrides", own=overrides.own, announced=overrides.announced)


main()
