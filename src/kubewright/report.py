"""The closing page of `make lab`: machines, versions, the ping matrix, seconds per stage, what to type next."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubewright import matrix

_ADMIN = "/opt/kubernetes/cfg/admin.kubeconfig"


def summary(run: Mapping[str, Any], verify: Mapping[str, Any], inventory: str) -> str:
    """Text of the page. `run`: build/run.json, `verify`: build/verify.json."""
    results = [matrix.Result(**entry) for entry in verify["results"]]
    lost = sum(not r.ok for r in results)
    width = max(len(name) for name in run["stages"])
    stages = [f"  {name.ljust(width)}  {seconds:6.1f} s" for name, seconds in run["stages"].items()]
    hosts = [
        f"  {name}: {counts['ok']} tasks, {counts['changed']} changed, {counts['failures']} failed"
        for name, counts in run["hosts"].items()
    ]
    kubeconfig = f"{inventory}/secrets/admin.kubeconfig"
    first = next(iter(run["hosts"]))
    return "\n".join(
        [
            "machines",
            *hosts,
            "",
            "versions",
            *(f"  {line}" for line in verify["versions"]),
            "",
            f"stages ({run['seconds']:.1f} s in all)",
            *stages,
            "",
            f"reachability ({len(results)} probes, {lost} lost)",
            *(f"  {line}" for line in matrix.table(results).splitlines()),
            "",
            f"kubeconfig: {kubeconfig}",
            "next:",
            f"  python -m kubewright.lab -i {inventory} exec {first} -- kubectl --kubeconfig {_ADMIN} get nodes",
            f"  ansible-playbook site.yml -i {inventory}          (again: nothing changes)",
            f"  ansible-playbook site.yml -i {inventory} --tags verify",
            "  make down",
        ]
    )


def main() -> int:
    """Print the page; 1 when a run or its verification has left no result, or pods do not reach each other."""
    parser = argparse.ArgumentParser(prog="kubewright.report", description=__doc__)
    parser.add_argument("-i", "--inventory", default="inventories/lab")
    arguments = parser.parse_args()
    build = Path("build")
    try:
        run, verify = (json.loads((build / name).read_text()) for name in ("run.json", "verify.json"))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"no result of a run: {error}; run ansible-playbook site.yml first\n")
        return 1
    sys.stdout.write(summary(run, verify, arguments.inventory) + "\n")
    return 0 if verify["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
