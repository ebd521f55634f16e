"""A backup: the snapshot is taken on a machine, everything else happens on the controller."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

from kubewright import backup, backup_archive, backup_store
from kubewright.errors import UserError
from kubewright.machine import etcd_snapshot, etcd_status


class ActionModule(ActionBase):
    """Runs once, on any machine with a client certificate of etcd; logic in src/kubewright/backup*.py."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the backup; every failure a user can cause is a message."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._args = self._task.args
        try:
            return self._run()
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        except OSError as error:
            return {"failed": True, "msg": f"on the controller: {error}"}

    def _ask(self, step: str, **arguments: Any) -> Any:
        reply = self._execute_module(
            module_name="kubewright_etcd", module_args={"step": step, "arguments": arguments}, task_vars=self._vars
        )
        if reply.get("failed") or reply.get("unreachable"):
            raise UserError(str(reply.get("msg") or reply))
        return reply["result"]

    def _variable(self, name: str) -> str:
        return str(self._templar.template(self._vars.get(name)) or "")

    def _run(self) -> dict[str, Any]:
        begin = time.monotonic()
        args = self._args
        backup_store.unpacking(Path(constants.DEFAULT_LOCAL_TMP), os.getppid())
        secret = backup.passphrase(
            self._variable("etcd_backup_passphrase"),
            self._variable("etcd_backup_passphrase_file"),
            os.environ.get("KUBEWRIGHT_BACKUP_PASSPHRASE", ""),
        )
        directory, pki, secrets = (Path(str(args[name])) for name in ("directory", "pki", "secrets"))
        for place in (pki, secrets):
            backup_store.clear(place.parent)
        problems = backup_store.target_problems(args.get("targets") or [])
        problems += [
            f"{path} is not there, and a backup without it is of no use; run this where the cluster was made"
            for path in (pki / "etcd-ca-key.pem", secrets / "encryption_key")
            if not path.is_file()
        ]
        seen = self._ask("survey", members=args["members"], tls=args["tls"], directory=args["staging"])
        chosen = etcd_status.of_choice(seen["members"], self._vars["inventory_hostname"])
        if not chosen:
            reasons = "; ".join(f"{one['name']}: {one['reason']}" for one in seen["members"])
            problems.append(f"no etcd member is healthy, so no snapshot can be taken: {reasons}")
        if problems:
            raise UserError("\n  ".join(["no backup has been taken:", *problems]))
        size, name = (chosen["db_size"], chosen["name"]) if chosen else (0, "")
        lacks = etcd_snapshot.lack(str(args["staging"]), seen["free"], size, f"a snapshot of {name}")
        if lacks:
            raise UserError(f"{self._vars['inventory_hostname']}: {lacks}: nothing has been done", "make room there")
        # The snapshot and the archive beside each other.
        backup_store.need_room(directory, 2 * size, "the snapshot and the backup")
        if self._task.check_mode:
            return {"changed": True, "path": "", "lines": [f"would take a snapshot of {name} into {directory}"]}
        return self._take(directory, secret, {"pki": pki, "secrets": secrets}, begin)

    def _take(self, directory: Path, secret: str, trees: dict[str, Path], begin: float) -> dict[str, Any]:
        args = self._args
        cluster = str(self._vars["ansible_facts"]["cluster"]["name"])
        with backup_store.workplace(directory) as work:
            snapshot = work / "snapshot.db"
            taken = self._ask(
                "snapshot",
                members=args["members"],
                tls=args["tls"],
                directory=args["staging"],
                near=self._vars["inventory_hostname"],
                owner=self._get_remote_user() or "root",
            )
            try:
                self._connection.fetch_file(taken["path"], str(snapshot))
            finally:
                self._ask("discard", directory=args["staging"])
            snapshot.chmod(0o600)
            if backup_archive.digest(snapshot) != taken["sha256"]:
                raise UserError("the snapshot was damaged on its way to the controller", "run again")
            moment = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
            etcd = {key: taken[key] for key in ("member", "cluster", "version", "revision", "hash", "keys", "size")}
            cas = backup.cas(trees["pki"])
            facts = {"cluster": cluster, "created": moment.isoformat(), "etcd": etcd, "cas": cas}
            draft = work / backup_store.name_of(cluster, moment, taken["revision"])
            manifest = backup_archive.write(draft, secret, facts, snapshot, trees)
            # A backup that cannot be read is none: before any older one goes.
            if backup_archive.read(draft, secret, None) != manifest:
                raise UserError(f"{draft.name} cannot be read back as it was written", "is the disk failing?")
            final = directory / draft.name
            draft.replace(final)
        lines = [
            f"{final} ({etcd_status.megabytes(final.stat().st_size)}, {time.monotonic() - begin:.1f} s)",
            f"etcd: member {taken['member']}, version {taken['version']}, revision {taken['revision']}, "
            f"{taken['keys']} keys, hash {taken['hash']:08x}, {etcd_status.megabytes(taken['size'])}",
            f"with {', '.join(trees)}: {len(manifest['parts']) - 1} files",
        ]
        done, failed = backup_store.deliver_all(final, args.get("targets") or [], cluster, int(args["keep"]))
        removed = backup_store.prune(directory, cluster, int(args["keep"]))
        if failed:
            raise UserError("\n  ".join([f"the backup {final} was taken, and is not everywhere:", *failed]))
        lines += done
        lines += [f"removed, because {args['keep']} are kept: {', '.join(removed)}"] if removed else []
        return {"changed": True, "path": str(final), "lines": lines}
