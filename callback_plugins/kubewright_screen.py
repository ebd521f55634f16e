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
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""


class CallbackModule(Default):  # type: ignore[misc]
    """The default callback without the second copy."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "kubewright_screen"

    def _handle_exception(self, result: Any, use_stderr: bool = False) -> None:
        unforeseen = str(result.get("msg", "")).startswith("Task failed") and not result.get("unreachable")
        if self._display.verbosity or unforeseen:
            super()._handle_exception(result, use_stderr)
        else:
            result.pop("exception", None)
