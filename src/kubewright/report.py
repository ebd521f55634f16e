"""The closing page of `make lab`: machines, versions, the ping matrix, seconds per stage, what to type next."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubewright import journal, matrix
from kubewright.errors import UserError
from kubewright.lab.inventory import hosts_of
from kubewright.lab.model import lab_id

_ADMIN = "/opt/kubernetes/cfg/admin.kubeconfig"
_DEFAULT = "inventories/lab"
_AGAIN = "run ansible-playbook site.yml first, with this inventory"
# File systems stamp with the time of the last tick, up to 10 ms ago.
_CLOCK_TICK = 0.01


def summary(run: Mapping[str, Any], verify: Mapping[str, Any], inventory: str, master: str) -> str:
    """Text of the page. `run`: of the journal, `verify`: build/verify.json; `master`: one to run kubectl on."""
    probes = [matrix.Result(**entry) for entry in verify["results"]]
    lost = sum(not r.ok for r in probes)
    width = max(len(name) for name in run["stages"])
    stages = [f"  {name.ljust(width)}  {seconds:6.1f} s" for name, seconds in run["stages"].items()]
    hosts = [
        f"  {name}: {counts['ok']} tasks, {counts['changed']} changed, {counts['failures']} failed"
        for name, counts in run["hosts"].items()
    ]
    directory = Path(inventory).parent if Path(inventory).is_file() else Path(inventory)
    network = f"kw-{lab_id(directory)}"
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
            f"reachability ({len(probes)} probes, {lost} lost)",
            *(f"  {line}" for line in matrix.table(probes).splitlines()),
            "",
            f"kubeconfig: {directory}/secrets/admin.kubeconfig",
            f"  (the API's address is in the network of the lab: nsenter --net=/run/netns/{network} COMMAND)",
            "next:",
            "  . .venv/bin/activate",
            f"  python -m kubewright.lab -i {inventory} exec {master} -- kubectl --kubeconfig {_ADMIN} get nodes",
            f"  ansible-playbook site.yml -i {inventory}          (again: nothing changes)",
            f"  ansible-playbook site.yml -i {inventory} --tags verify",
            "  make down" + ("" if inventory == _DEFAULT else f" INVENTORY={inventory}"),
        ]
    )


def results(build: Path, inventory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the journal's last run of site.yml and the verify.json of the same run.

    Raises a UserError when there are none, or when that run verified nothing.
    """
    path = journal.directory(inventory)
    run = journal.last_of(path, "site.yml")
    if not run:
        raise UserError(f"no result of a run of site.yml in {path}", _AGAIN)
    began, ended = run["began"], run["ended"]
    try:
        written = (build / "verify.json").stat().st_mtime
        verify = json.loads((build / "verify.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no result of a verification in {build}: {error}", _AGAIN) from None
    if not began - _CLOCK_TICK <= written <= ended:
        raise UserError("the last run of site.yml did not get to the verification, or another came after it", _AGAIN)
    return run, verify


def main() -> int:
    """Print the page; 1 when a run or its verification has left no result, or pods do not reach each other."""
    parser = argparse.ArgumentParser(prog="kubewright.report", description=__doc__)
    parser.add_argument("-i", "--inventory", default=_DEFAULT)
    arguments = parser.parse_args()
    try:
        run, verify = results(Path("build"), Path(arguments.inventory))
        masters = hosts_of(Path(arguments.inventory), "kube_master")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(summary(run, verify, arguments.inventory, next(iter(masters), "MASTER")) + "\n")
    return 0 if verify["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
