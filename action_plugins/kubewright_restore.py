"""A restore, seen from the controller: what is taken from where, whether it may be, and the way to the machines."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

from kubewright import backup, backup_archive, backup_store, custody, explain, restore
from kubewright.errors import UserError

_OTHER_TEMPORARY = "make room there, or set Ansible's local_tmp (ANSIBLE_LOCAL_TEMP) to another place"
# Nothing secret but what is compared, and removed at once.
_COMPARED = [f"secrets/{custody.ENCRYPTION_KEY}"]
_COMPARED += [f"pki/{name[:-4]}{suffix}.pem" for name in custody.CAS for suffix in ("", "-bundle")]


class ActionModule(ActionBase):
    """Steps of a restore; logic in src/kubewright/{backup*,restore}.py and src/kubewright/machine/etcd_*.py."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take one step; every failure a user can cause is a message."""
        super().run(tmp, task_vars)
        self._vars = task_vars or {}
        self._args = self._task.args
        # Made by Ansible for this run, 0700, removed at its end.
        self._work = backup_store.unpacking(Path(constants.DEFAULT_LOCAL_TMP), os.getppid())
        try:
            found: dict[str, Any] = getattr(self, f"_{self._args['step']}")()
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        except OSError as error:
            return {"failed": True, "msg": f"on the controller: {error}"}
        return found

    def _ask(self, step: str, **arguments: Any) -> Any:
        reply = self._execute_module(
            module_name="kubewright_etcd", module_args={"step": step, "arguments": arguments}, task_vars=self._vars
        )
        if reply.get("failed") or reply.get("unreachable"):
            raise UserError(str(reply.get("msg") or reply))
        return reply["result"]

    def _variable(self, name: str) -> str:
        return str(self._templar.template(self._vars.get(name)) or "")

    def _secret(self) -> str:
        return backup.passphrase(
            self._variable("etcd_backup_passphrase"),
            self._variable("etcd_backup_passphrase_file"),
            os.environ.get("KUBEWRIGHT_BACKUP_PASSPHRASE", ""),
        )

    def _path(self, name: str) -> Path:
        return Path(str(self._args[name]))

    def _opened(self, cluster: str, directory: Path, wanted: Sequence[str]) -> backup_archive.Opened:
        path = backup_store.find(str(self._args["source"]), self._path("directory"), cluster)
        # The archive is compressed: of how much is only known afterwards.
        hint = _OTHER_TEMPORARY if directory == self._work else "make room there"
        backup_store.need_room(directory.parent, 4 * path.stat().st_size, "the contents of the backup", hint)
        directory.mkdir(mode=0o700, exist_ok=True)
        opened = backup_archive.opened(path, self._secret(), Path(tempfile.mkdtemp(dir=directory)), wanted)
        self._refuse_foreign(opened, cluster, backup.cas(self._path("pki")))
        return opened

    def _replaces(self) -> bool:
        """Whether pki/ and secrets/ of the controller become those of the backup."""
        machines = self._vars["groups"].get("etcd", [])
        return self._variable("etcd_restore_secrets") == "replace" and self._args["source"] not in ["", *machines]

    def _custody(self) -> dict[str, Any]:
        """Before the preflight, which refuses a controller without the cluster's CAs: what the controller has stays."""
        source = str(self._args["source"])
        places = [self._path("pki"), self._path("secrets")]
        for place in places:
            backup_store.clear(place.parent)
        full = [place.is_dir() and any(place.iterdir()) for place in places]
        if not source or source in self._vars["groups"].get("etcd", []) or all(full):
            return {"changed": False, "lines": []}
        return self._taken(str(self._args["name"]), restore.moment(), replace=False)

    def _exchange(self) -> dict[str, Any]:
        """With the cluster's lock, and when nothing is left that could refuse the restore."""
        if not self._replaces():
            return {"changed": False, "lines": []}
        cluster = str(self._vars["ansible_facts"]["cluster"]["name"])
        return self._taken(cluster, str(self._args["plan"]["moment"]), replace=True)

    def _taken(self, cluster: str, moment: str, *, replace: bool) -> dict[str, Any]:
        places = {"pki": self._path("pki"), "secrets": self._path("secrets")}
        # Keys lie in plain beside where they belong, and only as long as this takes.
        with backup_store.workplace(places["secrets"].parent) as work:
            opened = self._opened(cluster, work, [f"{prefix}/" for prefix in places])
            if self._task.check_mode:
                return {"changed": True, "lines": [f"would restore {prefix}" for prefix in places]}
            told = [backup.custody(opened.directory, p, t, moment, replace=replace) for p, t in places.items()]
        return {"changed": any(told), "lines": [line for line in told if line]}

    def _refuse_foreign(self, opened: backup_archive.Opened, cluster: str, own: list[str]) -> None:
        reason = backup.foreign(opened.manifest, cluster, own)
        if reason and self._variable("etcd_restore_foreign") != "allow":
            raise UserError(
                f"{opened.path} is not a backup of this cluster: {reason}; nothing has been done",
                "is this the right inventory, the right file? -e etcd_restore_foreign=allow takes it all the same",
            )

    def _open(self) -> dict[str, Any]:
        cluster = str(self._vars["ansible_facts"]["cluster"]["name"])
        machines = self._vars["ansible_facts"]["cluster"]["machines"]
        source, rehearsal = str(self._args["source"]), bool(self._args.get("rehearsal"))
        members = self._args["members"]
        names = [one["name"] for one in members]
        seen = self._ask("survey", members=members, tls=self._args["tls"], directory=self._args["data"])["members"]
        remains = {}
        if not rehearsal:
            replies = {name: self._vars["hostvars"][name].get("etcd_remains") for name in names}
            remains = {name: reply["result"] for name, reply in replies.items() if reply and reply.get("result")}
        there = backup_store.listed(self._path("directory"), cluster)
        lines = [*restore.states(seen, remains), *restore.backups(there)]
        if not source:
            raise UserError(
                "\n  ".join(["etcd_restore_from says nothing: what should be restored? There are", *lines]),
                "-e etcd_restore_from=latest, a file, or the name of the machine whose data is to be kept",
            )
        plan: dict[str, Any] = {"moment": restore.moment(), "machine": "", "revision": 0}
        problems = []
        if source in names:
            left = remains.get(source)
            if not left or not left["data"]:
                raise UserError("\n  ".join([f"{source} has no data to restore from; there are", *lines]))
            if left["lacks"]:
                raise UserError(f"{source}: {left['lacks']}")
            size, plan["machine"] = int(left["size"]), source
            # It comes here when nothing runs any more.
            backup_store.need_room(self._work.parent, size, f"the data of {source}", _OTHER_TEMPORARY)
            what = f"the data of {source}"
        else:
            opened = self._opened(cluster, self._work, [] if rehearsal else _COMPARED)
            reason = "" if rehearsal else self._keys_reason(opened.directory)
            if reason:
                raise UserError(f"{opened.path}: {reason}")
            known = opened.manifest["etcd"]
            size, plan["revision"] = opened.snapshot.stat().st_size, int(known["revision"])
            plan["snapshot"] = str(opened.snapshot)
            age = backup_store.age(datetime.datetime.fromisoformat(opened.manifest["created"]).timestamp())
            what = f"{opened.path}, {age} old, revision {known['revision']} of etcd {known['version']}"
            newest = restore.newest(seen, remains)
            what += f" (the members are at {newest})" if newest else ""
            if not rehearsal:
                facts = {name: self._vars["hostvars"][name].get("ansible_facts") or {} for name in names}
                etcd = {name: one["artifacts"]["etcd"]["version"] for name, one in facts.items() if "artifacts" in one}
                problems = restore.too_old(etcd, str(known["version"]))
        if not rehearsal:
            away = [one["name"] for one in machines.values() if one["is_master"] and not self._asked(one["name"])]
            problems += restore.problems(names, remains, size, str(self._args["data"]), away)
        if problems:
            raise UserError("\n  ".join(["nothing has been done:", *problems]))
        doing = self._question(
            what, names, sum(one["healthy"] for one in seen), replaces=not rehearsal and self._replaces()
        )
        return {"changed": False, "plan": plan, "doing": doing, "lines": [*lines, f"restoring: {what}"], "what": what}

    def _question(self, what: str, names: list[str], healthy: int, *, replaces: bool) -> str:
        cluster = self._vars["ansible_facts"]["cluster"]["name"]
        doing = (
            f"stops the API, and makes {what}, the data of all etcd members of {cluster} ({', '.join(names)}; "
            f"{healthy} of {len(names)} are healthy now). What was written since is lost; their data is moved aside"
        )
        if replaces:
            doing += f", as are {self._path('pki')} and {self._path('secrets')}, which become those of the backup"
        return doing

    def _keys_reason(self, directory: Path) -> str:
        """Why what a backup was made with and what the cluster has do not go together; empty when they do."""
        try:
            if not self._replaces():
                return backup.differing(directory, self._path("secrets"))
        finally:
            (directory / _COMPARED[0]).unlink(missing_ok=True)
        hostvars = self._vars["hostvars"]
        answers = {name: hostvars[name].get("preflight_machine") or {} for name in self._vars["groups"]["all"]}
        lost = backup.cut_off(directory / "pki", {n: one["facts"] for n, one in answers.items() if "facts" in one})
        if not lost:
            return ""
        return (
            f"{', '.join(lost)}: trust other CAs than those in its pki/, so they would be cut off: nothing has been "
            "done\n  without etcd_restore_secrets=replace the controller keeps its own"
        )

    def _asked(self, machine: str) -> bool:
        """Whether a machine is in this run and answered the preflight."""
        return "facts" in (self._vars["hostvars"][machine].get("preflight_machine") or {})

    def _remains(self) -> dict[str, Any]:
        args = self._args
        directory = self._make_tmp_path()
        self._connection._shell.tmpdir = directory
        # Through which the snapshot would come.
        transfer = str(Path(directory).parent)
        try:
            found = self._ask("remains", data=args["data"], url=args["url"], staging=args["staging"], transfer=transfer)
        finally:
            self._remove_tmp_path(directory)
        return {"changed": False, "result": found}

    def _member(self) -> dict[str, Any]:
        """Run on another machine than the one whose member is to be replaced."""
        name, members = str(self._args["machine"]), self._args["members"]
        names = [one["name"] for one in members]
        hint = "-e etcd_restore_member=NAME of the machine whose member lost its data"
        if name not in names:
            raise UserError(f"etcd_restore_member: {name!r} is none of the etcd machines {', '.join(names)}", hint)
        if len(names) == 1:
            raise UserError(f"{name} is the only member, there is nobody to get data from", "restore.yml restores it")
        if name not in self._vars["ansible_play_hosts"]:
            raise UserError(
                f"{name} is not in this run, or cannot be reached", "its member cannot be started from here"
            )
        standing = self._ask("standing", members=members, tls=self._args["tls"], name=name)
        if standing["refusal"]:
            raise UserError(f"{standing['refusal']}; nothing has been done", "without a quorum: restore.yml")
        state = standing["state"]
        told = {
            "healthy": f"{name} is healthy: nothing to do",
            "replace": f"{name} was taken out of the cluster and came back with the data of the others",
            "join": f"{name} came back with the data of the others",
            "resume": f"{name} goes on where it was",
        }
        return {"changed": False, "state": state, "lines": [told[state]]}

    def _snapshot(self) -> Path:
        return Path(str(self._args["plan"].get("snapshot") or self._work / "salvaged.db"))

    def _salvage(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": True}
        args = self._args
        owner = self._get_remote_user() or "root"
        taken = self._ask("salvage", data=args["data"], directory=args["staging"], tls=args["tls"], owner=owner)
        self._work.mkdir(mode=0o700, exist_ok=True)
        try:
            self._connection.fetch_file(taken["path"], str(self._work / "salvaged.db"))
        finally:
            self._ask("discard", directory=args["staging"])
        if backup_archive.digest(self._work / "salvaged.db") != taken["sha256"]:
            raise UserError("the snapshot was damaged on its way to the controller", "run again")
        return {"changed": True, "lines": [f"revision {taken['revision']}, {taken['keys']} keys"]}

    def _staged(self) -> str:
        directory = self._make_tmp_path()
        self._connection._shell.tmpdir = directory
        self._ask("room", path=directory, wanted=self._snapshot().stat().st_size, what="the snapshot on its way")
        path = str(self._connection._shell.join_path(directory, "snapshot.db"))
        self._transfer_file(str(self._snapshot()), path)
        return path

    def _place(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": True}
        cluster, host = self._vars["ansible_facts"]["cluster"], self._vars["inventory_hostname"]
        plan = self._args["plan"]
        identity = {
            "name": host,
            "peer": f"https://{cluster['machines'][host]['address']}:2380",
            "cluster": cluster["etcd_initial_cluster"],
            "token": f"etcd-{cluster['name']}-{plan['moment']}",
        }
        path = self._staged()
        digest = backup_archive.digest(self._snapshot())
        try:
            done = self._ask(
                "place",
                snapshot=path,
                sha256=digest,
                data=self._args["data"],
                identity=identity,
                moment=plan["moment"],
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        moved = f"; what it had is in {done['moved']}" if done["moved"] else ""
        return {"changed": True, "lines": [f"{host}: restored in {done['seconds']:.1f} s{moved}"]}

    def _rehearse(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": False, "lines": ["would be restored into a member of its own"]}
        begin = time.monotonic()
        path = self._staged()
        try:
            done = self._ask(
                "rehearse",
                snapshot=path,
                parent=self._args["staging"],
                tls=self._args["tls"],
                flannel_config=self._args["flannel_config"],
                revision=self._args["plan"]["revision"],
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        lines = [
            f"a member of its own on {self._vars['inventory_hostname']} had {done['keys']} keys at revision "
            f"{done['revision']}: {', '.join(done['samples']) or 'none of them is known'}",
            f"{done['seconds']:.1f} s on the machine, {time.monotonic() - begin:.1f} s in all; it is gone again",
        ]
        return {"changed": False, "lines": lines}

    def _restart(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": True}
        done = self._ask("restart", services=self._args["services"])
        if done["failure"]:
            raise UserError(explain.failure(self._vars["inventory_hostname"], done["failure"]))
        return {"changed": bool(done["restarted"]), "restarted": done["restarted"]}

    def _check(self) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": False, "lines": []}
        nodes = []
        for one in self._vars["ansible_facts"]["cluster"]["machines"].values():
            known = self._vars["hostvars"][one["name"]].get("preflight_machine") or {}
            if one["is_node"] and "kubelet" in (known.get("facts") or {}).get("components", []):
                nodes.append(one["node_name"])
        begin = time.monotonic()
        counts = self._ask("restored", access=self._args["access"], nodes=nodes, timeout=self._args["timeout"])
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines = [
            f"the API server of {self._vars['inventory_hostname']} has {told}; "
            f"all kubelets wrote to it within {time.monotonic() - begin:.1f} s"
        ]
        return {"changed": False, "lines": lines}
