"""A step of the rotation of CAs: kubepki's state machine, fed with what the machines show."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from kubepki import reconcile, rotation, spec
from kubepki.errors import KubepkiError, RotationError
from kubewright import ca_rotation
from kubewright.errors import UserError
from kubewright.journals import Journal

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "step": {"type": "str", "choices": ["begin", "trust", "trusted", "issue", "issued", "drop", "end"]},
    "ca": {"type": "str", "default": ""},
    "directory": {"type": "path", "required": True},
    "journals": {"type": "path", "required": True},
    "old_pods": {"type": "str", "default": "stop"},
    # Where the password is, not the password.
    "old_password": {"type": "str", "default": "", "no_log": False},
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
            self._states = {name: rotation.state(self._spec, self._directory, name) for name in names}
            self._steps = {name: self._in_hand(name) for name in names}
            step = self._arguments["step"]
            if step == "begin":
                return self._begin()
            if self._task.check_mode:
                return {"changed": False}
            return {"changed": getattr(self, f"_{step}")(), **self._told()}
        except (UserError, KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}

    def _told(self) -> dict[str, Any]:
        return {"steps": self._steps, "lines": [f"{name}: {_WORDS[step]}" for name, step in self._steps.items()]}

    def _in_hand(self, name: str) -> str:
        journal, state = self._journals[name], self._states[name]
        is_new = journal["new"] in (None, rotation.fingerprint(state.old))
        return ca_rotation.in_hand(state.phase, journal.step, is_new=is_new)

    def _take(self, name: str, step: str, **more: Any) -> None:
        self._journals[name].write(step, **more)
        self._steps[name] = step

    def _in_phase(self, phase: str) -> list[str]:
        """CAs in a phase of which no step was cut short: consumers are confirmed whatever the journal says."""
        return [name for name, state in self._states.items() if state.phase == phase and not state.unfinished]

    def _at(self, step: str) -> list[str]:
        """The CAs with this step in hand. UserError when one is not that far."""
        order = ("", *ca_rotation.STEPS)
        early = [name for name, known in self._steps.items() if order.index(known) < order.index(step)]
        if early:
            first = self._steps[early[0]] or "trust"
            raise UserError(
                f"{', '.join(early)}: the step {first} is not done yet",
                f"run this with --tags {first}, or without tags",
            )
        return [name for name, known in self._steps.items() if known == step]

    def _begin(self) -> dict[str, Any]:
        if not any(state.unfinished for state in self._states.values()):
            # What cannot issue at all, such as a CA without its key, is found out before anything is changed.
            reconcile.plan(self._spec, self._directory, self._now, self._arguments["old_password"])
        lines = [f"{name}: {self._states[name].phase}, next: {step or 'trust'}" for name, step in self._steps.items()]
        result = {"changed": False, "steps": self._steps, "lines": lines}
        return {**result, "diff": {"prepared": "".join(f"{line}\n" for line in lines)}} if self._task.diff else result

    def _trust(self) -> bool:
        names = [name for name, step in self._steps.items() if step in ("", "trust")]
        for name in names:
            secret = self._arguments["old_password"]
            made = rotation.trust(self._spec, self._directory, name, self._now, old_password=secret)
            self._take(name, "trust", new=rotation.fingerprint(made.new) if made.new else None)
        return bool(names)

    def _trusted(self) -> bool:
        names = self._in_phase(rotation.TRUST_BOTH)
        self._confirm(names)
        for name in names:
            if self._steps[name] != "trust":
                continue
            if name == _OF_PODS:
                # From here on every pod that starts knows both CAs.
                self._ask_tokens("published", timeout=_PUBLISHED_SECONDS)
            self._take(name, "issue", published=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
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
            secret = self._arguments["old_password"]
            rotation.issue(self._spec, self._directory, name, self._now, old_password=secret)
        return bool(names)

    def _issued(self) -> bool:
        names = self._in_phase(rotation.ISSUE_FROM_NEW)
        self._confirm(names)
        for name in names:
            self._take(name, "drop")
        return bool(names)

    def _drop(self) -> bool:
        names = self._at("drop")
        for name in names:
            rotation.drop(self._spec, self._directory, name, self._now)
        return bool(names)

    def _end(self) -> bool:
        names = [name for name, step in self._steps.items() if step == "drop"]
        for name in names:
            self._journals[name].end()
            self._steps[name] = ""
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
                if not (one.trusts or presents):
                    continue
                about = (self._spec, self._directory, name, one.consumer, self._now)
                try:
                    rotation.confirm(*about, trusts=one.trusts, presents=presents)
                except RotationError as error:
                    problems.append(error.message)
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
