"""Waits for scheduled snapshots: `scheduled.py INVENTORY COUNT MACHINE...`; ends with 1 when they do not come."""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> int:
    """Look until COUNT snapshots were seen; two on one machine for longer than it takes to remove one is bad."""
    inventory, count, *machines = sys.argv[1:]
    lab = [sys.executable, "-m", "kubewright.lab", "-i", inventory, "exec"]
    seen: set[str] = set()
    crowded: dict[str, list[str]] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for machine in machines:
            listing = "ls /var/lib/etcd-snapshots; systemctl is-failed etcd-snapshot.service"
            reply = subprocess.run(
                [*lab, machine, "--", "sh", "-c", listing], capture_output=True, text=True, check=False
            )
            lines = reply.stdout.split()
            names = [f"{machine}:{line}" for line in lines if line.startswith("etcd-")]
            # A new one is there before an old one goes; the same two at the next look are one too many.
            if "failed" in lines or (len(names) > 1 and names == crowded.get(machine)):
                sys.stdout.write(f"{machine}: {lines}\n")
                return 1
            crowded[machine] = names
            seen |= set(names)
        if len(seen) >= int(count):
            sys.stdout.write(f"{sorted(seen)}\n")
            return 0
        time.sleep(0.5)
    sys.stdout.write(f"only {sorted(seen)} within a minute\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
