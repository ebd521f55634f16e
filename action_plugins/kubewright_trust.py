"""First contact with all hosts of the play, in the controller's own process."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright.errors import UserError
from kubewright.files import write_file
from kubewright.trust import report
from kubewright.trust.contact import Contact, Plan, meet_all, record
from kubewright.trust.target import Settings

_SSH_CONNECTIONS = ("ssh", "smart", "ansible.builtin.ssh", "paramiko", "paramiko_ssh")


class ActionModule(ActionBase):
    """Runs once for all hosts, without a connection of Ansible's: nothing is trusted yet."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show the table, and fail once when any host failed, after everything was done for the others."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._asked = False
        try:
            return self._meet()
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def _meet(self) -> dict[str, Any]:
        check = self._task.check_mode
        plan = Plan(
            home=Path(pwd.getpwuid(os.getuid()).pw_dir),
            public_key=str(self._task.args.get("public_key") or ""),
            timeout=self._timeout(),
            check=check,
        )
        hosts = [settings for name in self._vars["ansible_play_hosts"] if (settings := self._settings(name))]
        contacts = meet_all(hosts, plan)
        contacts = self._again_with_password(hosts, contacts, plan)
        files = [] if check else record(contacts, write_file)
        failures = report.failures(contacts)
        self._show(report.table(contacts, check=check), "red" if failures else "green")
        if not self._asked:
            self._show(report.new_keys(contacts))
        self._show("\n".join(f"host keys recorded in {_relative(path)}" for path in files))
        self._show(report.next_steps(contacts, _relative(Path(str(self._vars["inventory_dir"]))), check=check))
        changed = any(c.changed or c.records for c in contacts)
        if failures:
            # Without the rest: Ansible would print all of it behind the message, and the table has told it.
            return {"failed": True, "changed": changed, "msg": failures}
        known = {c.host: _facts(c) for c in contacts}
        return {"changed": changed, "known_hosts": [str(path) for path in files], "hosts": known}

    def _timeout(self) -> float:
        value = self._task.args.get("timeout", 10)
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = 0.0
        if seconds <= 0:
            raise UserError(f"trust_timeout is {value!r}", "set it to a number of seconds greater than 0")
        return seconds

    def _show(self, text: str, color: str | None = None) -> None:
        if text:
            Display().display(f"\n{text}", color=color)

    def _again_with_password(self, hosts: list[Settings], contacts: list[Contact], plan: Plan) -> list[Contact]:
        """Ask for a password only when a host needs one, and only after the keys of new hosts have been shown."""
        wanting = [c for c in contacts if c.wants_password]
        if not wanting:
            return contacts
        names = ", ".join(f"{c.host} ({c.login})" for c in wanting)
        display = Display()
        new = report.new_keys(contacts)
        question = f"\n{new}\n\n" if new else ""
        question += f"Password for {names}; empty: none, Ctrl+C: stop, no host key is recorded yet (input is hidden):"
        self._asked = True
        try:
            password = display.prompt_until(question, private=True).decode(errors="surrogateescape")
        except AnsiblePromptNoninteractive:
            self._asked = False
            return contacts
        except AnsiblePromptInterrupt:
            installed = [] if plan.check else [c.host for c in contacts if c.changed]
            done = f"; the public key is on {', '.join(installed)} already" if installed else ""
            raise UserError(f"stopped at the question for a password; no host key was recorded{done}") from None
        if not password:
            return contacts
        chosen = {c.host for c in wanting}
        again = [replace(settings, password=password) for settings in hosts if settings.host in chosen]
        second = {c.host: c for c in meet_all(again, plan, contacts)}
        return [second.get(c.host, c) for c in contacts]

    def _settings(self, name: str) -> Settings | None:
        variables = self._vars["hostvars"][name]
        if str(variables.get("ansible_connection", "ssh")) not in _SSH_CONNECTIONS:
            return None

        def option(key: str, plugin: str = "ssh", kind: str = "connection") -> str:
            value = constants.config.get_config_value(key, plugin_type=kind, plugin_name=plugin, variables=variables)
            return "" if value is None else str(value)

        directory = variables.get("inventory_dir")
        if not directory:
            raise UserError(
                f"{name} comes from no inventory file", "write the machines into a file, and name it with -i"
            )
        interpreter = str(variables.get("ansible_python_interpreter") or "auto")
        # Of the host itself: in the variables of this task, which are those of one host, it could be another's.
        given = str(variables.get("trust_password") or "")
        return Settings(
            host=name,
            address=option("host") or name,
            inventory=Path(str(directory)),
            port=int(option("port")) if option("port") else None,
            user=option("remote_user"),
            first_arguments=option("ssh_args"),
            arguments=" ".join(option(key) for key in ("ssh_common_args", "ssh_extra_args")),
            private_key=option("private_key_file"),
            password=given or option("password") or str(self._play_context.password or ""),
            become=boolean(variables.get("ansible_become", self._play_context.become or False), strict=False),
            become_password=option("become_pass", "sudo", "become") or str(self._play_context.become_pass or ""),
            pythons=tuple(self._pythons(interpreter)),
        )

    def _pythons(self, interpreter: str) -> list[str]:
        if interpreter.startswith("auto"):
            return [str(name) for name in constants.config.get_config_value("INTERPRETER_PYTHON_FALLBACK")]
        return [interpreter]


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _facts(contact: Contact) -> dict[str, Any]:
    machine, key = contact.machine, contact.host_key
    return {
        "login": contact.login,
        "reachable": contact.reachable,
        "host_key": contact.verdict.state if contact.verdict else "",
        "fingerprint": f"{key.algorithm} {key.fingerprint}" if key else "",
        "authenticated": contact.means,
        "key_installed": contact.key,
        "root": contact.root,
        "python": machine.python if machine else "",
        "os": machine.os if machine else "",
        "architecture": machine.architecture if machine else "",
    }
