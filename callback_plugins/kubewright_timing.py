"""Seconds per stage and per task, printed at the end, those of site.yml also written to build/run.json."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from kubewright.files import write_file

DOCUMENTATION = """
name: kubewright_timing
type: aggregate
short_description: Seconds per stage and per task
description:
  - Prints one line per stage at the end of the run. A run of C(site.yml) also writes all to C(build/run.json).
requirements: []
"""

_ROOT = Path(__file__).resolve().parent.parent


class CallbackModule(CallbackBase):
    """Times plays and tasks on the controller's clock."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kubewright_timing"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._begin = time.monotonic()
        self._began = time.time()
        self._is_site = False
        self._stages: dict[str, float] = {}
        self._tasks: list[dict[str, Any]] = []
        self._play: tuple[str, float] | None = None
        self._task: tuple[str, float] | None = None

    def _close_task(self) -> None:
        if self._task and self._play:
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
        """The report is about site.yml: other playbooks leave its result alone."""
        self._is_site = Path(playbook._file_name).resolve() == _ROOT / "site.yml"  # noqa: SLF001 -- there is no other way

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play is a stage."""
        self._close_play()
        self._play = (play.get_name(), time.monotonic())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task ends where the next begins."""
        del is_conditional
        self._close_task()
        self._task = (task.get_name(), time.monotonic())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print and write."""
        self._close_play()
        total = time.monotonic() - self._begin
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        report = {
            "inventory": [str(Path(source).resolve()) for source in context.CLIARGS.get("inventory") or ()],
            "began": self._began,
            "ended": time.time(),
            "seconds": round(total, 2),
            "stages": {name: round(seconds, 2) for name, seconds in self._stages.items()},
            "tasks": self._tasks,
            "hosts": hosts,
        }
        if self._is_site:
            try:
                write_file(_ROOT / "build" / "run.json", json.dumps(report, indent=1))
            except OSError as error:
                self._display.warning(f"the times of this run are not kept: {error.filename}: {error.strerror}")
        width = max([len(name) for name in self._stages] + [5])
        for name, seconds in self._stages.items():
            self._display.display(f"{name.ljust(width)}  {seconds:6.1f} s")
        self._display.display(f"{'total'.ljust(width)}  {total:6.1f} s")
