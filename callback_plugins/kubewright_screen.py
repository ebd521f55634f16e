"""Ansible's own screen, which shows a failure once."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: kubewright_screen
type: stdout
short_description: The screen of Ansible, on which a failure is shown once
description:
  - Ansible shows the message of a failed task twice, as an error with its place in the playbook and as the result of
    the machine. A message that a task means to give is shown once, as the result.
  - Errors that are no task's own words keep their place. C(-v) shows all.
  - A stage is named when its first task begins.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""


class CallbackModule(Default):  # type: ignore[misc]
    """The default callback without the second copy."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "kubewright_screen"

    def __init__(self) -> None:
        super().__init__()
        self._unnamed: Any = None

    def _name_play(self) -> None:
        if self._unnamed is not None:
            play, self._unnamed = self._unnamed, None
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Name it later: after a failure that ends the run, no play has tasks."""
        self._play = self._unnamed = play

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """A play without machines is named."""
        self._name_play()
        super().v2_playbook_on_no_hosts_matched()

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        self._name_play()
        super()._task_start(task, prefix)

    def _handle_exception(self, result: Any, use_stderr: bool = False) -> None:
        unforeseen = str(result.get("msg", "")).startswith("Task failed") and not result.get("unreachable")
        if self._display.verbosity or unforeseen:
            super()._handle_exception(result, use_stderr)
        else:
            result.pop("exception", None)
