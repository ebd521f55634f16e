"""A step of the rotation of CAs: kubepki's state machine, fed with what the machines show."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from kubepki import reconcile, rotation, spec
from kubepki.errors import KubepkiError
from kubewright import ca_rotation
from kubewright.errors import UserError
from kubewright.journals import Journal

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "step": {"type": "str", "choices": ["begin", "trust", "trusted", "issue", "issued", "drop", "end"]},
    "ca": {"type": "str", "default": ""},
    "directory": {"type": "path", "required": True},
    "journals": {"type": "path", "required": True},
    "old_pods": {"type": "str", "default": "stop"},
}
# What pods have, they have of this one.
_OF_PODS = "kubernetes"
_PUBLISHED_SECONDS = 90
_WORDS = {
    "": "the new CA issues, the old one is trusted no more; its files are in retired/ of the PKI directory",
    "trust": "not everybody trusts both CAs yet; next: --tags trust",
    "issue": "everybody trusts both CAs; next: --tags issue",
    "drop": "the new CA issues, and the old one is still trusted; next: --tags drop",
}
_PHASES = {rotation.SETTLED: "trust", rotation.TRUST_BOTH: "trust", rotation.ISSUE_FROM_NEW: "issue"}


class ActionModule(ActionBase):
    """Runs once; where the API has to be asked, on a master."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `steps`: CA -> the step in hand, and `lines` for people."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        _, self._arguments = self.validate_argument_spec(_ARGUMENTS)
        self._now = datetime.now(UTC)
        try:
            self._cluster = self._vars["ansible_facts"]["cluster"]
            self._spec = spec.parse(self._cluster["pki_spec"])
            names = ca_rotation.chosen(self._arguments["ca"], list(self._spec.authorities))
            self._directory = Path(self._arguments["directory"])
            journals = Path(self._arguments["journals"])
            self._journals = {name: Journal(journals, f"ca-{name}", ca_rotation.STEPS) for name in names}
            step = self._arguments["step"]
            if step == "begin":
                return self._begin()
            if self._task.check_mode:
                return {"changed": False}
            return {"changed": getattr(self, f"_{step}")(), **self._told()}
        except (UserError, KubepkiError) as error:
            return {"failed": True, "msg": str(error)}

    def _told(self) -> dict[str, Any]:
        steps = {name: journal.step for name, journal in self._journals.items()}
        lines = [f"{name}: {_WORDS[step]}" for name, step in steps.items()]
        return {"steps": steps, "lines": lines}

    def _at(self, step: str) -> list[str]:
        """The CAs with this step in hand. UserError when one is not that far."""
        early = [name for name, journal in self._journals.items() if not journal.step or journal.is_before(step)]
        if early:
            raise UserError(
                f"{', '.join(early)}: the step {self._journals[early[0]].step or 'trust'} is not done yet",
                f"run this with --tags {self._journals[early[0]].step or 'trust'}, or without tags",
            )
        return [name for name, journal in self._journals.items() if journal.step == step]

    def _begin(self) -> dict[str, Any]:
        states = {name: rotation.state(self._spec, self._directory, name) for name in self._journals}
        if not any(state.unfinished for state in states.values()):
            # What cannot issue at all, such as a CA without its key, is found out before anything is changed.
            reconcile.plan(self._spec, self._directory, self._now)
        lines = []
        for name, journal in self._journals.items():
            phase = states[name].phase
            if not journal.step and not self._task.check_mode:
                journal.write(_PHASES[phase])
            lines.append(f"{name}: {phase}, next: {journal.step or _PHASES[phase]}")
        result = {"changed": False, **self._told(), "lines": lines}
        return {**result, "diff": {"prepared": "".join(f"{line}\n" for line in lines)}} if self._task.diff else result

    def _trust(self) -> bool:
        names = [name for name, journal in self._journals.items() if journal.step == "trust"]
        for name in names:
            rotation.trust(self._spec, self._directory, name, self._now)
        return bool(names)

    def _trusted(self) -> bool:
        names = [name for name, journal in self._journals.items() if journal.step == "trust"]
        self._confirm(names)
        for name in names:
            if name == _OF_PODS:
                # From here on every pod that starts knows both CAs.
                self._ask_tokens("published", timeout=_PUBLISHED_SECONDS)
            self._journals[name].write("issue", published=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        return bool(names)

    def _issue(self) -> bool:
        names = self._at("issue")
        if _OF_PODS in names and self._arguments["old_pods"] == "stop":
            published = self._journals[_OF_PODS]["published"]
            pods = self._ask_tokens("pods", before=published)["pods"] if published else []
            if pods:
                more = f" and {len(pods) - 5} more" if len(pods) > 5 else ""
                raise UserError(
                    f"{len(pods)} pods with a token started before {published}, and may know the old CA alone: "
                    f"{', '.join(pods[:5])}{more}",
                    "restart them, for example with kubectl rollout restart, and run the same command again; where "
                    "none of them asks the API, add -e pki_rotation_old_pods=ignore",
                )
        for name in names:
            rotation.issue(self._spec, self._directory, name, self._now)
        return bool(names)

    def _issued(self) -> bool:
        names = [name for name, journal in self._journals.items() if journal.step == "issue"]
        self._confirm(names)
        for name in names:
            self._journals[name].write("drop")
        return bool(names)

    def _drop(self) -> bool:
        names = self._at("drop")
        for name in names:
            rotation.drop(self._spec, self._directory, name, self._now)
        return bool(names)

    def _end(self) -> bool:
        names = [name for name, journal in self._journals.items() if journal.step == "drop"]
        for name in names:
            self._journals[name].end()
        return bool(names)

    def _confirm(self, names: list[str]) -> None:
        seen = {
            host: self._vars["hostvars"][host]["pki_seen"]["seen"]
            for host in self._vars["ansible_play_hosts"]
            if (self._vars["hostvars"][host].get("pki_seen") or {}).get("seen")
        }
        problems = []
        for name in names:
            phase = rotation.state(self._spec, self._directory, name).phase
            for one in ca_rotation.shown(self._spec, name, self._cluster["pki_files"], seen):
                if one.problem:
                    problems.append(f"{name}: {one.consumer}: {one.problem}")
                    continue
                presents = one.presents if phase == rotation.ISSUE_FROM_NEW else ()
                if one.trusts or presents:
                    rotation.confirm(
                        self._spec,
                        self._directory,
                        name,
                        one.consumer,
                        self._now,
                        trusts=one.trusts,
                        presents=presents,
                    )
            missing = rotation.state(self._spec, self._directory, name).missing
            problems += [f"{name}: {one.who} {one.what}" for one in missing]
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
            raise UserError(
                f"not every consumer has taken it over, so the next step has to wait:{listed}",
                "mend that, and run the same command again: it goes on from here",
            )

    def _ask_tokens(self, step: str, **more: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._execute_module(
            module_name="kubewright_tokens",
            module_args={**self._cluster["api_access"], "step": step, **more},
            task_vars=self._vars,
        )
        if reply.get("failed") or reply.get("unreachable"):
            raise UserError(str(reply.get("msg")))
        return reply
