"""The udp backend as a daemon drives it, for a namespace: python udp_node.py ADDRESS SUBNET [SETTINGS] [plain].

Standard input takes a JSON list a line: ["leases", {subnet: address}], ["follow", address, mtu], ["trouble"], ["end"];
each is answered by a line. Device, address and route are made as `desired` says, also when they were lost.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import select
import subprocess
import sys

from flanneld.backend.base import Underlay
from flanneld.backend.udp import UdpBackend
from flanneld.errors import FlanneldError
from flanneld.subnet.config import parse_config
from flanneld.subnet.lease import Attributes, Lease


def lease(subnet: str, address: str) -> Lease:
    return Lease((ipaddress.IPv4Network(subnet),), Attributes(address))


def program(backend: UdpBackend, own: Lease) -> None:
    desired = backend.desired(own, [])
    for device in desired.devices:
        subprocess.run(["ip", "link", "set", device.name, "mtu", str(device.mtu), "up"], check=False)
        for address in desired.addresses[device.name]:
            subprocess.run(["ip", "addr", "add", address, "dev", device.name], check=False, stderr=subprocess.DEVNULL)
        for route in desired.routes.values():
            subprocess.run(
                ["ip", "route", "replace", route.destination, "dev", route.device, "scope", "global"], check=False
            )


def say(answer: str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(address: str, subnet: str, settings: str = "{}", *words: str) -> None:
    logging.basicConfig(level=logging.DEBUG)
    config = parse_config(json.dumps({"Network": "10.9.0.0/16", "Backend": {"Type": "udp", **json.loads(settings)}}))
    if "plain" in words:
        UdpBackend.program = UdpBackend.program.replace("sys.argv[2])", "sys.argv[2]), gather=False")
    backend = UdpBackend(config, Underlay("eth0", 1500, {4: address}))
    own = lease(subnet, address)
    try:
        backend.start(own)
        program(backend, own)
        say("ready")
        while True:
            if not select.select([sys.stdin], [], [], 0.2)[0]:
                program(backend, own)
                continue
            command, *arguments = json.loads(sys.stdin.readline() or '["end"]')
            answer = ""
            if command == "leases":
                backend.update([lease(*item) for item in arguments[0].items()])
            elif command == "follow":
                backend.follow(config, Underlay("eth0", arguments[1], {4: arguments[0]}))
                program(backend, own)
            elif command == "trouble":
                answer = backend.trouble()
            elif command == "end":
                break
            say(answer)
    except FlanneldError as error:
        say(str(error))
    finally:
        backend.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
