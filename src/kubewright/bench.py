"""Measures what the project promises: a first run, a run that changes nothing, and how both grow with the machines.

Every round starts from bare machines of a lab of its own. Figures are medians of the rounds, written to
docs/benchmarks.md between its marks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubewright import journal, matrix

_BEGIN, _END = "<!-- figures: make bench -->", "<!-- end of figures -->"
_UNITS = (
    "etcd",
    "docker",
    "flanneld",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
_PING_SECONDS = 0.2
# Longer than any run again; a ping that nobody stops must not stay.
_PING_LIMIT = 600
_NAMESPACE = "bench"
_KUBECTL = (
    *("exec", "master01", "--", "kubectl", "--kubeconfig=/opt/kubernetes/cfg/admin.kubeconfig"),
    f"--namespace={_NAMESPACE}",
)
_SHOWN_TASKS = 8


@dataclass(frozen=True)
class Round:
    """One first run and one re-run on `workers` workers: both from the journal, units restarted, pings lost of sent.

    `up`: seconds of `lab up` from the cached image until every machine answered SSH.
    """

    workers: int
    up: float
    first: Mapping[str, Any]
    again: Mapping[str, Any]
    restarted: tuple[str, ...]
    lost: int
    sent: int


def inventory_with(hosts: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """The lab's inventory with this many workers; further ones get the following addresses."""
    data: dict[str, Any] = json.loads(json.dumps(hosts))
    machines, nodes = data["all"]["hosts"], data["all"]["children"]["kube_node"]["hosts"]
    last = list(machines.values())[-1]["ansible_host"]
    prefix, _, final = last.rpartition(".")
    for number in range(len(nodes) + 1, workers + 1):
        name = f"node{number:02}"
        machines[name] = {"ansible_host": f"{prefix}.{int(final) + number - 2}"}
        nodes[name] = None
    return data


def report(rounds: Sequence[Round]) -> str:
    """Markdown of all figures."""
    lines = [
        "| workers | rounds | machines up | first run | run again | changed | units restarted | pings lost "
        "| most tasks on a host |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workers in sorted({r.workers for r in rounds}):
        of = [r for r in rounds if r.workers == workers]
        up = statistics.median(r.up for r in of)
        first = statistics.median(r.first["seconds"] for r in of)
        again = statistics.median(r.again["seconds"] for r in of)
        changed = sum(h["changed"] for r in of for h in r.again["hosts"].values())
        tasks = max(h["ok"] for r in of for h in r.first["hosts"].values())
        restarted = sum(len(r.restarted) for r in of)
        lost, sent = sum(r.lost for r in of), sum(r.sent for r in of)
        seconds = [f"{value:.1f} s" for value in (up, first, again)]
        figures = [workers, len(of), *seconds, changed, restarted, f"{lost} of {sent}", tasks]
        lines.append(f"| {' | '.join(map(str, figures))} |")
    lines += ["", "Seconds per stage (medians):", ""]
    counts = sorted({r.workers for r in rounds})
    lines.append("| stage | " + " | ".join(f"first, {w} workers | again, {w} workers" for w in counts) + " |")
    lines.append("|---|" + "---|---|" * len(counts))
    for stage in rounds[0].first["stages"]:
        cells = []
        for workers in counts:
            of = [r for r in rounds if r.workers == workers]
            cells += [
                f"{statistics.median(getattr(r, part)['stages'].get(stage, 0.0) for r in of):.1f}"
                for part in ("first", "again")
            ]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_slowest(rounds)])


def _slowest(rounds: Sequence[Round]) -> list[str]:
    """Markdown lines: the tasks in which a first run spends its time, with the fewest workers measured."""
    of = [r for r in rounds if r.workers == min(other.workers for other in rounds)]
    seconds: dict[tuple[str, str], list[float]] = {}
    for one in of:
        for task in one.first["tasks"]:
            seconds.setdefault((task["stage"], task["task"]), []).append(task["seconds"])
    medians = sorted(((statistics.median(values), *key) for key, values in seconds.items()), reverse=True)
    rest = sum(median for median, _, _ in medians[_SHOWN_TASKS:])
    return [
        f"The {_SHOWN_TASKS} slowest of {len(medians)} tasks in the first run, {of[0].workers} workers (medians):",
        "",
        "| stage | task | seconds |",
        "|---|---|---|",
        *(f"| {stage} | {task} | {median:.1f} |" for median, stage, task in medians[:_SHOWN_TASKS]),
        f"| | all others | {rest:.1f} |",
    ]


def pings(output: str) -> tuple[int, int]:
    """(sent, received) of busybox's `ping -q`; RuntimeError when it did not run, which is not the same as none lost."""
    counted = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
    if not counted or int(counted[1]) == 0:
        raise RuntimeError(f"no ping was sent during the second run: {output.strip()}")
    return int(counted[1]), int(counted[2])


def typed(arguments: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["-i", arguments.inventory, "--rounds", arguments.rounds, "--workers", *arguments.workers]
    return " ".join(["python -m kubewright.bench", *map(str, words)])


class Bench:
    """Runs rounds on a lab of its own, whose inventory is in `directory`."""

    def __init__(self, root: Path, source: Path, directory: Path) -> None:
        self._root = root
        self._source = source
        self._inventory = directory

    def _run(self, *argv: str, given: str = "") -> str:
        reply = subprocess.run(argv, cwd=self._root, input=given, capture_output=True, text=True, check=False)
        if reply.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {reply.stdout[-2000:]}{reply.stderr[-1000:]}")
        return reply.stdout

    def _lab(self, *argv: str, given: str = "") -> str:
        return self._run(sys.executable, "-m", "kubewright.lab", "-i", str(self._inventory), *argv, given=given)

    def _site(self) -> dict[str, Any]:
        self._run(str(Path(sys.executable).with_name("ansible-playbook")), "site.yml", "-i", str(self._inventory))
        result = journal.last_of(journal.directory(self._inventory), "site.yml")
        if not result:
            raise RuntimeError(f"the run of site.yml is not in the journal of {self._inventory}")
        return result

    def _invocations(self, machines: Sequence[str]) -> dict[str, str]:
        found = {}
        for machine in machines:
            text = self._lab("exec", machine, "--", "systemctl", "show", "-p", "Id,InvocationID", *_UNITS)
            for identity, invocation in re.findall(r"Id=(\S+)\r?\n(?:.*\n)*?InvocationID=(\S*)", text) + [
                (i, v) for v, i in re.findall(r"InvocationID=(\S*)\r?\nId=(\S+)", text)
            ]:
                found[f"{machine} {identity}"] = invocation
        if not any(found.values()):
            raise RuntimeError("systemd named no running unit: nothing could be compared")
        return found

    def _test_pods(self) -> tuple[str, str]:
        """A pod on the first worker, by name, and the address of one on the second."""
        image = yaml.safe_load((self._root / "roles/verify/defaults/main.yml").read_text())["verify_image"]
        objects = {"apiVersion": "v1", "kind": "List", "items": matrix.manifests(_NAMESPACE, image)}
        self._lab(*_KUBECTL, "apply", "-f", "-", given=json.dumps(objects))
        self._lab(*_KUBECTL, "rollout", "status", "daemonset/probe", "--timeout=120s")
        items = json.loads(self._lab(*_KUBECTL, "get", "pods", "-o", "json"))["items"]
        pods = {pod["spec"]["nodeName"]: pod for pod in items}
        return pods["node01"]["metadata"]["name"], pods["node02"]["status"]["podIP"]

    def _site_while_pinging(self, source: str, target: str) -> tuple[dict[str, Any], str]:
        """The journal of a run and the output of a ping from the pod `source` meanwhile."""
        ping = ["exec", source, "--", "ping", "-q", "-i", str(_PING_SECONDS), "-w", str(_PING_LIMIT), target]
        command = [sys.executable, "-m", "kubewright.lab", "-i", str(self._inventory), *_KUBECTL, *ping]
        with subprocess.Popen(command, cwd=self._root, stdout=subprocess.PIPE, text=True) as process:
            try:
                time.sleep(1)
                again = self._site()
                self._lab("exec", "node01", "--", "pkill", "-INT", "-x", "ping")
                output, _ = process.communicate(timeout=30)
            finally:
                # Leaving the block waits for it, also after a failure. The one in the pod ends at its limit.
                process.kill()
        return again, output

    def round(self, workers: int) -> Round:
        """Bare machines, a first run, a re-run while a pod on one worker pings a pod on another."""
        self._lab("down")
        for part in ("pki", "secrets"):
            shutil.rmtree(self._inventory / part, ignore_errors=True)
        data = inventory_with(yaml.safe_load((self._source / "hosts.yml").read_text()), workers)
        (self._inventory / "hosts.yml").write_text(yaml.safe_dump(data))
        machines = list(data["all"]["hosts"])
        begin = time.monotonic()
        self._lab("up")
        up = time.monotonic() - begin
        first = self._site()
        before = self._invocations(machines)
        source, target = self._test_pods()
        again, output = self._site_while_pinging(source, target)
        sent, received = pings(output)
        after = self._invocations(machines)
        restarted = tuple(key for key in before if before[key] != after.get(key))
        return Round(workers, up, first, again, restarted, sent - received, sent)

    def open(self) -> None:
        """Make the inventory; the lab of a bench that was killed goes first."""
        self.close()
        shutil.copytree(self._source / "group_vars", self._inventory / "group_vars")
        shutil.copy(self._source / "hosts.yml", self._inventory)

    def close(self) -> None:
        """Take the lab down and remove its inventory."""
        if (self._inventory / "hosts.yml").exists():
            self._lab("down")
        shutil.rmtree(self._inventory, ignore_errors=True)


def main() -> int:
    """Measure, print, write; 1 when a round failed."""
    parser = argparse.ArgumentParser(prog="kubewright.bench", description=__doc__)
    parser.add_argument("-i", "--inventory", type=Path, default=Path("inventories/lab"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 6])
    arguments = parser.parse_args()
    root = Path.cwd()
    rounds: list[Round] = []
    # Always the same place: the lab of a bench that was killed can be found again.
    bench = Bench(root, arguments.inventory, root / "build" / "bench")
    try:
        bench.open()
        # Rounds alternate, so that a noisy minute of a shared machine falls on all alike.
        for number in range(arguments.rounds):
            for workers in arguments.workers:
                done = bench.round(workers)
                rounds.append(done)
                sys.stdout.write(
                    f"round {number + 1}, {workers} workers: up {done.up:.1f} s, first {done.first['seconds']} s, "
                    f"again {done.again['seconds']} s\n"
                )
                sys.stdout.flush()
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        bench.close()
    text = report(rounds)
    sys.stdout.write(text + "\n")
    page = root / "docs" / "benchmarks.md"
    content = page.read_text()
    head, tail = content.partition(_BEGIN)[0], content.partition(_END)[2]
    stamp = f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, `{typed(arguments)}`"
    page.write_text(f"{head}{_BEGIN}\n\n{stamp}\n\n{text}\n\n{_END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
