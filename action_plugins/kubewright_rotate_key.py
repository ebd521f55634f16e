"""A step of the rotation of a key that the masters share, or of the bootstrap token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from kubepki import spec
from kubepki.errors import KubepkiError
from kubewright import keyring
from kubewright.errors import UserError
from kubewright.files import write_file
from kubewright.journals import Journal

# Before a step is taken, what the one before it made has been handed out to every master.
_STEPS = {
    "service-account": ("trust", "sign", "renew", "drop"),
    "encryption": ("add", "promote", "rewrite", "drop"),
    "bootstrap-token": ("make", "revoke"),
}
_TOKEN_FILES = ("bootstrap_token_id", "bootstrap_token_secret")
_ARGUMENTS: dict[str, dict[str, Any]] = {
    # The name of a kind, not a secret.
    "key": {"type": "str", "choices": list(_STEPS), "required": True, "no_log": False},
    "step": {"type": "str", "required": True},
    "pki": {"type": "path", "required": True},
    # Where secrets are, not what they are.
    "secrets": {"type": "path", "required": True, "no_log": False},
    "grace_minutes": {"type": "int", "default": 0},
}


class ActionModule(ActionBase):
    """Runs once; where the API has to be asked, on a master. `begin`, a step, or `end`."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `lines` for people."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        _, arguments = self.validate_argument_spec(_ARGUMENTS)
        self._pki, self._secrets = Path(arguments["pki"]), Path(arguments["secrets"])
        self._grace = timedelta(minutes=arguments["grace_minutes"])
        self._lines: list[str] = []
        try:
            self._cluster = self._vars["ansible_facts"]["cluster"]
            steps = _STEPS[arguments["key"]]
            self._journal = Journal(self._secrets / "rotations", arguments["key"], steps)
            self._require_whole()
            self._require_masters()
            changed = self._take(arguments["key"], arguments["step"], steps)
            return {"changed": changed, "lines": self._lines}
        except (UserError, KubepkiError, OSError) as error:
            return {"failed": True, "msg": str(error)}

    def _take(self, key: str, step: str, steps: tuple[str, ...]) -> bool:
        if step == "begin":
            self._look(key)
            self._lines.append(f"the step in hand: {self._journal.step or steps[0]}")
            return False
        if self._task.check_mode:
            self._lines.append("a look ahead: nothing was changed")
            return False
        if step == "end":
            return self._end(key)
        before = steps[steps.index(step) - 1] if step != steps[0] else ""
        if self._journal.step not in (before, step):
            return False
        if before:
            self._require_taken_over()
        if self._journal.step != step:
            self._journal.write(step)
        work = getattr(self, f"_{key}_{step}".replace("-", "_"))
        return bool(work())

    def _require_whole(self) -> None:
        """UserError when a part of the run was chosen: what hands a key out would be left out."""
        if keyring.is_partial(self._vars["ansible_run_tags"], self._vars["ansible_skip_tags"]):
            raise UserError(
                "a rotation of a key takes all of its steps, and what is between them",
                "run the same command without --tags and --skip-tags: it goes on where it was",
            )

    def _absent(self, part: str) -> list[str]:
        """Machines with this part (is_master, is_node) that are not in the run, or failed in it."""
        here = self._vars["ansible_play_hosts"]
        return [name for name, machine in self._cluster["machines"].items() if machine[part] and name not in here]

    def _require_taken_over(self) -> None:
        """UserError unless every master runs with what the step before has made."""
        masters = [name for name, machine in self._cluster["machines"].items() if machine["is_master"]]
        running = {name: self._vars["hostvars"][name].get("master_running") or {} for name in masters}
        behind = keyring.behind(running)
        if behind:
            listed = "".join(f"\n  - {name}: {reason}" for name, reason in behind.items())
            raise UserError(
                f"not every master runs with what the step before has made, so the next one has to wait:{listed}",
                "run the same command again: it hands that out, and goes on from here",
            )

    def _require_masters(self) -> None:
        """UserError unless every master takes part: one that does not know a new key refuses what it made."""
        absent = self._absent("is_master")
        if absent:
            raise UserError(
                f"{', '.join(absent)}: not part of this run, or failed in it; keys that masters share can only be "
                "rotated on all of them",
                "bring it back, or take it out of the inventory, and run the same command again without --limit",
            )

    def _look(self, key: str) -> None:
        """UserError for what is not there."""
        needed = {
            "service-account": [self._pki / "service-account.key", self._pki / "service-account.pub"],
            "encryption": [self._secrets / "encryption_key"],
            "bootstrap-token": [self._secrets / name for name in _TOKEN_FILES],
        }
        missing = [str(path) for path in needed[key] if not path.is_file()]
        if missing:
            raise UserError(f"{', '.join(missing)}: there is none to rotate", "site.yml makes it")
        if key == "encryption":
            keyring.parse((self._secrets / "encryption_key").read_text())

    def _end(self, key: str) -> bool:
        if self._journal.step:
            self._require_taken_over()
        if key == "service-account" and keyring.pair(self._pki, "-previous").public.exists():
            self._lines.append(
                f"the new key signs, and {self._journal['count']} tokens in Secrets were signed anew; the old key is "
                f"trusted until the same command runs after {self._until():%Y-%m-%d %H:%M} UTC"
            )
            return False
        count = self._journal["count"]
        words = {
            "service-account": "the new key signs tokens, and the old one is trusted no more",
            "encryption": f"{count} Secrets were encrypted anew, and the old key is in secrets/retired alone",
            "bootstrap-token": "kubelets have the new token, and the old one is worth nothing any more",
        }
        self._lines.append(words[key])
        if key == "bootstrap-token" and self._absent("is_node"):
            left = ", ".join(self._absent("is_node"))
            self._lines.append(f"not in this run, and without the new token until the next site.yml: {left}")
        self._journal.end()
        return True

    # The key pair of service accounts.

    def _service_account_trust(self) -> bool:
        keyring.pair_made(self._pki, spec.parse(self._cluster["pki_spec"]).keypairs["service-account"])
        return True

    def _service_account_sign(self) -> bool:
        keyring.pair_promoted(self._pki)
        return True

    def _service_account_renew(self) -> bool:
        wanted = keyring.key_id(keyring.pair(self._pki).public.read_bytes())
        count = int(self._ask("kubewright_tokens", step="sign", key_id=wanted)["count"])
        self._journal.write("renew", count=count + int(self._journal["count"] or 0))
        return True

    def _until(self) -> datetime:
        return datetime.fromisoformat(self._journal["signed"]) + self._grace

    def _service_account_drop(self) -> bool:
        if not self._journal["signed"]:
            self._journal.write("drop", signed=datetime.now(UTC).isoformat())
        if datetime.now(UTC) < self._until():
            return False
        keyring.pair_dropped(self._pki)
        return True

    # The key that Secrets are encrypted with.

    def _rewritten(self, text: str) -> bool:
        path = self._secrets / "encryption_key"
        if path.read_text() == text:
            return False
        write_file(path, text, 0o600)
        return True

    def _encryption_add(self) -> bool:
        text = (self._secrets / "encryption_key").read_text()
        if not self._journal["name"]:
            self._journal.write("add", name=keyring.encryption_next(text))
        return self._rewritten(keyring.encryption_added(text, self._journal["name"]))

    def _encryption_promote(self) -> bool:
        text = (self._secrets / "encryption_key").read_text()
        return self._rewritten(keyring.encryption_promoted(text, self._journal["name"]))

    def _encryption_rewrite(self) -> bool:
        count = int(self._ask("kubewright_tokens", step="rewrite")["count"])
        self._journal.write("rewrite", count=count)
        return True

    def _encryption_drop(self) -> bool:
        path = self._secrets / "encryption_key"
        wanted = keyring.encryption_dropped(path.read_text(), self._journal["name"])
        if wanted != path.read_text():
            # Snapshots of etcd from before need it.
            keyring.keep(path, f"encryption_key-until-{datetime.now(UTC):%Y-%m-%d}")
        return self._rewritten(wanted)

    # The token that kubelets introduce themselves with.

    def _bootstrap_token_make(self) -> bool:
        if not self._journal["new"]:
            old = (self._secrets / _TOKEN_FILES[0]).read_text().strip()
            self._journal.write("make", old=old, new=list(keyring.token()))
        # The journal has both halves, so that an end in between mixes no two tokens.
        for name, value in zip(_TOKEN_FILES, self._journal["new"], strict=True):
            write_file(self._secrets / name, f"{value}\n", 0o600)
        return True

    def _bootstrap_token_revoke(self) -> bool:
        path = f"/api/v1/namespaces/kube-system/secrets/bootstrap-token-{self._journal['old']}"
        [reply] = self._ask("kubewright_api", requests=[{"method": "DELETE", "path": path}])["replies"]
        if reply["status"] not in (200, 404):
            raise UserError(
                f"DELETE {path}: {reply['status']} {reply['body'].get('message')}", "run the same command again"
            )
        return bool(reply["status"] == 200)

    def _ask(self, module: str, **more: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self._execute_module(
            module_name=module, module_args={**self._cluster["api_access"], **more}, task_vars=self._vars
        )
        if reply.get("failed") or reply.get("unreachable"):
            raise UserError(str(reply.get("msg")), "the same command again goes on with this step")
        return reply
