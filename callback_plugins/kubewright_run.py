"""What a run has around its tasks: the lock, seconds per stage, the closing words, the journal."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ansible import __version__, constants, context
from ansible.plugins.callback import CallbackBase

from kubewright import journal, runlock, window

DOCUMENTATION = """
name: kubewright_run
type: aggregate
short_description: The lock, the seconds, the closing words and the journal of a run
description:
  - Takes the lock beside the inventory before the machines are asked (C(kubewright_machine), or C(kubewright_reset)
    where there is no preflight).
  - Prints one line per stage at the end of the run, and names the machines that failed or could not be reached.
  - Writes C(journal/) below the inventory. A playbook without a preflight gets neither lock nor journal, one with
    C(preflight_reads_only) no lock.
requirements: []
"""

_ROOT = Path(__file__).resolve().parent.parent
_ASKS = ("kubewright_machine", "kubewright_reset")
_LOST = "this run stops, for its lock was taken over by "
_CHECKS, _OBTAINS = "kubewright_preflight", "kubewright_artifacts"


def _rescued(task: Any) -> bool:
    """Whether a block around the task has a rescue for its failure."""
    inner, around = task, task._parent  # noqa: SLF001 -- there is no other way
    while around is not None:
        inside = {one._uuid for one in getattr(around, "block", ())}  # noqa: SLF001
        if getattr(around, "rescue", None) and inner._uuid in inside:  # noqa: SLF001
            return True
        # Of what was imported, the block has the tasks and not the import.
        inner = inner if getattr(around, "statically_loaded", False) else around
        around = around._parent  # noqa: SLF001
    return False


def _name(task: Any) -> str:
    return str(task.get_name()).rpartition(" : ")[2]


class CallbackModule(CallbackBase):
    """Times plays and tasks on the controller's clock, and remembers how they ended."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kubewright_run"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        window.is_watched = True
        self._begin = time.monotonic()
        self._began = time.time()
        self._playbooks: list[str] = []
        self._stages: dict[str, float] = {}
        self._tasks: list[dict[str, Any]] = []
        self._play: tuple[str, float] | None = None
        self._fatal = self._paced = False
        self._ended_by = ""
        self._not_begun: list[str] = []
        self._task: tuple[str, float] | None = None
        self._hosts: dict[str, dict[str, int]] = {}
        self._versions = {"ansible": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
        self._changed: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        self._left_out: list[dict[str, str]] = []
        self._inventory: Path | None = None
        self._manager: Any = None
        self._reads_only = False
        self._keep = 100
        self._concluded = True
        self._process = os.getpid()
        self._interrupted = False
        self._before = signal.getsignal(signal.SIGINT)
        if callable(self._before):
            signal.signal(signal.SIGINT, self._noted)
        atexit.register(self._leave)

    def _noted(self, number: int, frame: Any) -> None:
        self._interrupted = True
        if callable(self._before):
            self._before(number, frame)

    def _close_task(self) -> None:
        # Where machines go at their own pace, the next task of one does not end that of another.
        if self._task and self._play and not self._paced:
            name, begin = self._task
            seconds = round(time.monotonic() - begin, 3)
            self._tasks.append({"stage": self._play[0], "task": name, "seconds": seconds})
        self._task = None

    def _close_play(self) -> None:
        self._close_task()
        if self._play:
            name, begin = self._play
            self._stages[name] = self._stages.get(name, 0.0) + time.monotonic() - begin
        self._play = None

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Several playbooks of one command are one run."""
        path = Path(playbook._file_name).resolve()  # noqa: SLF001 -- there is no other way
        self._playbooks.append(str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else str(path))
        self._concluded = False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play is a stage. After one that ends the run has failed, none has tasks any more.

        Ansible only ends a run when all machines of the play have failed just now, and goes on with the next play when
        one of them was lost before.
        """
        self._close_play()
        if self._ended_by:
            self._not_begun.append(play.get_name())
            play.pre_tasks, play.roles, play.tasks, play.post_tasks, play.handlers = [], [], [], [], []
            return
        self._paced = str(play.strategy).rpartition(".")[2] in ("free", "host_pinned")
        # Where they do, Ansible knows no errors that are fatal for the others.
        self._fatal = bool(play.any_errors_fatal or play.vars.get("failure_ends_run"))
        self._manager = play.get_variable_manager()
        self._reads_only = bool(play.vars.get("preflight_reads_only"))
        self._play = (play.get_name(), time.monotonic())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task ends where the next begins. Before machines are asked for the first time, the lock is taken."""
        del is_conditional
        self._close_task()
        self._task = (task.get_name(), time.monotonic())
        self._stop_without_lock(task.get_name())
        if task.action in _ASKS and not self._inventory:
            self._open()

    def _stop_without_lock(self, task: str) -> None:
        taker = runlock.current.lost_to() if runlock.current else ""
        if taker:
            self._interrupted = True
            self._failed.append({"host": "this run", "task": task, "reason": _LOST + taker})
            self._display.error(_LOST + taker)
            # Nothing that is not for the process as a whole gets out of a callback.
            raise SystemExit(1)

    def _open(self) -> None:
        inventory = self._manager._inventory  # noqa: SLF001 -- a play has no other way to it
        where = next((host.vars["inventory_dir"] for host in inventory.get_hosts() if host.vars["inventory_dir"]), "")
        if not where:
            return
        self._inventory = Path(where)
        path = journal.directory(self._inventory)
        if context.CLIARGS.get("check") or self._reads_only:
            return
        run = runlock.current = runlock.Run(path, journal.command_line(sys.argv), time.time())
        if run.trouble:
            self._display.warning(f"this run has no lock beside the inventory: {run.trouble}")
        if run.killed:
            told = runlock.described(run.killed, time.time())
            self._display.warning(f"a run was killed; this one takes over: {told}")
            self._guarded(lambda: journal.killed(path, run.killed))

    def v2_runner_on_ok(self, result: Any) -> None:
        """What changed, and what this run is about."""
        found = result.result
        if result.task.action in (_CHECKS, _OBTAINS):
            facts = found.get("ansible_facts", {})
            if "cluster" in facts:
                self._versions["kubernetes"] = str(facts["cluster"]["kube_version"])
                self._keep = int(found.get("journal_runs", self._keep))
            for name, artifact in facts.get("artifacts", {}).items():
                self._versions.setdefault(str(name), str(artifact["version"]))
        if found.get("changed"):
            items = [f"{d['kind']} {d['path']}" for d in found.get("differences") or []]
            items += [f"restart {unit}" for unit in found.get("restarted") or []]
            self._changed.append({"host": result.host.get_name(), "task": _name(result.task), "items": items})

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Which machine failed, in which task, why."""
        if not ignore_errors:
            self._failed.append(self._told(result))
            if not _rescued(result.task):
                self._lost(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Which machine is left out from here on."""
        if not result.task.ignore_unreachable:
            self._left_out.append(self._told(result))
            # No rescue is for this.
            self._lost(result)

    def _lost(self, result: Any) -> None:
        """A machine has no more tasks in this run. Those that wait until it is done learn it here."""
        if self._fatal and self._play:
            self._ended_by = self._play[0]
        window.lose(Path(constants.DEFAULT_LOCAL_TMP), result.host.get_name())

    def _told(self, result: Any) -> dict[str, str]:
        return {
            "host": result.host.get_name(),
            "task": _name(result.task),
            "reason": journal.reason(result.result),
        }

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print and write."""
        self._close_play()
        self._hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        # What was rescued is no failure of the run.
        self._failed = [entry for entry in self._failed if self._hosts.get(entry["host"], {}).get("failures")]
        self._conclude("failed" if self._failed or self._left_out else "ok")

    def _record(self, result: str) -> dict[str, Any]:
        chosen = context.CLIARGS
        run = runlock.current
        return {
            "id": run.me["id"] if run else runlock.identity(self._began, os.getpid()),
            "who": run.me["who"] if run else runlock.caller(),
            "pid": os.getpid(),
            "command": journal.command_line(sys.argv),
            "playbooks": self._playbooks,
            "tags": list(chosen.get("tags") or ()),
            "skip_tags": list(chosen.get("skip_tags") or ()),
            "limit": chosen.get("subset") or "",
            "check": bool(chosen.get("check")),
            "versions": self._versions,
            "began": self._began,
            "ended": time.time(),
            "seconds": round(time.monotonic() - self._begin, 2),
            "result": result,
            "stages": {name: round(seconds, 2) for name, seconds in self._stages.items()},
            "tasks": self._tasks,
            "hosts": self._hosts,
            "changed": self._changed,
            "failed": self._failed,
            "left_out": self._left_out,
            "not_begun": self._not_begun,
        }

    def _conclude(self, result: str) -> None:
        self._concluded = True
        record = self._record(result)
        width = max([len(name) for name in self._stages] + [5])
        for name, seconds in self._stages.items():
            self._display.display(f"{name.ljust(width)}  {seconds:6.1f} s")
        self._display.display(f"{'total'.ljust(width)}  {record['seconds']:6.1f} s")
        if self._not_begun:
            what = ", ".join(dict.fromkeys(self._not_begun))
            self._display.display(f"not begun, because {self._ended_by} failed: {what}", color="bright red")
        if not self._inventory:
            return
        for line in journal.closing(record):
            self._display.display(line, color="bright red")
        path = journal.directory(self._inventory)
        self._guarded(lambda: journal.write(path, record, self._keep))

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            self._display.warning(f"the journal of this run is not kept: {error.filename}: {error.strerror}")

    def _leave(self) -> None:
        """At the end of the process, however it ends but by a kill."""
        if os.getpid() != self._process:
            return
        if not self._concluded:
            self._close_play()
            # Ansible tells nobody of an error that is no machine's.
            self._conclude("interrupted" if self._interrupted else "failed")
        if runlock.current:
            runlock.current.end()
