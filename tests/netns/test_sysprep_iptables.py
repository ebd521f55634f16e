"""sysprep_flush_iptables with real iptables, on a machine that must not shut its operator out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flannel_lab import Tools, run

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = f"kwsp{os.getpid()}"
PAST = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OLD - [0:0]
-A INPUT -p icmp -j ACCEPT
-A INPUT -p tcp --dport 22 -j ACCEPT
-A FORWARD -j OLD
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:OLDNAT - [0:0]
-A POSTROUTING -j OLDNAT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:OLDMANGLE - [0:0]
COMMIT
"""


@pytest.fixture(params=["nft", "legacy"])
def machine(request: pytest.FixtureRequest, tools: Tools) -> Iterator[dict[str, str]]:
    """A namespace that pings itself; yields the environment for commands."""
    if tools.env["PATH"] != os.environ["PATH"]:
        tools.use_iptables(request.param)
    run("ip", "netns", "add", NAME)
    try:
        run("ip", "-n", NAME, "link", "set", "lo", "up")
        yield dict(tools.env)
    finally:
        run("ip", "netns", "del", NAME)


def iptables(environment: dict[str, str], check: bool) -> list[dict[str, str]]:
    code = (
        "import json, sys; from kubewright.machine import component, sysprep;"
        "component.RECORDS = '/nonexistent';"
        "print(json.dumps(sysprep.iptables({'flush': True}, sys.argv[1] == 'check')))"
    )
    done = subprocess.run(
        ["ip", "netns", "exec", NAME, sys.executable, "-c", code, "check" if check else "apply"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_the_past_is_gone_and_nobody_is_shut_out(machine: dict[str, str]) -> None:
    def here(*command: str, **options: Any) -> str:
        return run("ip", "netns", "exec", NAME, *command, env=machine, **options)

    subprocess.run(
        ["ip", "netns", "exec", NAME, "iptables-restore"], input=PAST, text=True, check=True, timeout=30, env=machine
    )
    assert " 0% packet loss" in here("ping", "-c", "1", "-W", "1", "127.0.0.1")
    before = here("iptables-save")
    [foreseen] = iptables(machine, check=True)
    assert ":INPUT DROP" in foreseen["before"]
    assert "-A FORWARD -j OLD" in foreseen["before"]
    assert [line for line in here("iptables-save").splitlines() if line.startswith("-")] == [
        line for line in before.splitlines() if line.startswith("-")
    ]

    assert len(iptables(machine, check=False)) == 1
    # With the policy DROP and no rules this got no answer.
    assert " 0% packet loss" in here("ping", "-c", "1", "-W", "1", "127.0.0.1", check=False)
    after = here("iptables-save")
    assert "-A " not in after
    assert "DROP" not in after
    assert "OLD" not in after
    assert iptables(machine, check=False) == []
