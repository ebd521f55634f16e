"""Backups as files: what goes in comes out, and nothing else does."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kubewright import backup, backup_archive, backup_store, envelope
from kubewright.errors import UserError

SECRET = "correct horse battery"
BLOCK = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


@pytest.fixture(autouse=True)
def _cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "_COST", 2**4)


def sealed(content: bytes, path: Path) -> Path:
    with path.open("wb") as stream:
        writer = envelope.Writer(stream, SECRET)
        for begin in range(0, len(content), 70000):
            writer.write(content[begin : begin + 70000])
        writer.finish()
    return path


def opened(path: Path, secret: str = SECRET) -> bytes:
    with path.open("rb") as stream:
        return io.BufferedReader(envelope.Reader(stream, secret, str(path))).read()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_an_envelope_gives_back_what_was_put_in(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = sealed(content, tmp_path / "x")
    assert opened(path) == content
    assert size < 16 or content[:64] not in path.read_bytes()


def test_another_passphrase_is_told_from_damage(tmp_path: Path) -> None:
    path = sealed(b"x" * 10, tmp_path / "x")
    with pytest.raises(UserError, match="the passphrase is not that of"):
        opened(path, SECRET + "!")
    (tmp_path / "y").write_bytes(b"PK\3\4")
    with pytest.raises(envelope.DamagedError, match="is not a backup of kubewright"):
        opened(tmp_path / "y")


def test_every_altered_byte_and_every_cut_is_damage(tmp_path: Path) -> None:
    path = sealed(b"a" * (BLOCK + 100), tmp_path / "x")
    content = path.read_bytes()
    header = len(content) - (BLOCK + 100 + 2 * 20)
    for place in (header, header + 3, header + 4, header + 5000, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(envelope.DamagedError):
            opened(path)
    for size in (header, header + 2, header + 4 + BLOCK + 16, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(envelope.DamagedError):
            opened(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(envelope.DamagedError):
        opened(path)


def test_blocks_cannot_be_swapped(tmp_path: Path) -> None:
    path = sealed(b"a" * BLOCK + b"b" * BLOCK + b"c", tmp_path / "x")
    content = path.read_bytes()
    block = 4 + BLOCK + 16
    header = len(content) - 2 * block - (4 + 1 + 16)
    first, second = content[header : header + block], content[header + block : header + 2 * block]
    path.write_bytes(content[:header] + second + first + content[header + 2 * block :])
    with pytest.raises(envelope.DamagedError):
        opened(path)


def certificate(name: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n"


def snapshot(path: Path, content: bytes = b"page" * 1024) -> Path:
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


class Controller:
    def __init__(self, home: Path, name: str = "lab", ca: str = "one") -> None:
        self.home, self.name = home, name
        self.pki, self.secrets, self.backups = home / "pki", home / "secrets", home / "backups"
        for directory in (self.pki, self.secrets):
            directory.mkdir(parents=True)
        (self.pki / "etcd-ca.pem").write_text(certificate(f"{ca}etcd"))
        (self.pki / "kubernetes-ca.pem").write_text(certificate(f"{ca}kube"))
        (self.pki / "etcd-ca-key.pem").write_text("key")
        (self.pki / "etcd-ca-key.pem").chmod(0o600)
        (self.secrets / "encryption_key").write_text(f"{ca}secret")

    def back_up(self, content: bytes = b"page" * 1024, hour: int = 1) -> Path:
        self.backups.mkdir(exist_ok=True)
        moment = datetime.datetime(2026, 1, 1, hour, tzinfo=datetime.UTC)
        path = self.backups / backup_store.name_of(self.name, moment, 7)
        facts: dict[str, Any] = {
            "cluster": self.name,
            "created": moment.isoformat(),
            "etcd": {"revision": 7, "version": "3.4.0"},
        }
        facts["cas"] = backup.cas(self.pki)
        source = snapshot(self.home / "snapshot.db", content)
        backup_archive.write(path, SECRET, facts, source, {"pki": self.pki, "secrets": self.secrets})
        return path


@pytest.fixture
def ours(tmp_path: Path) -> Controller:
    return Controller(tmp_path / "ours")


def test_a_backup_holds_everything_and_shows_nothing(ours: Controller, tmp_path: Path) -> None:
    path = ours.back_up()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = backup_archive.opened(path, SECRET, tmp_path / "out")
    assert found.manifest["cluster"] == "lab"
    assert backup_archive.read(path, SECRET, tmp_path / "out", ("pki/", "secrets/")) == found.manifest
    assert set(found.manifest["parts"]) == {
        backup_archive.SNAPSHOT,
        "pki/etcd-ca.pem",
        "pki/etcd-ca-key.pem",
        "pki/kubernetes-ca.pem",
        "secrets/encryption_key",
    }
    assert (tmp_path / "out/secrets/encryption_key").read_text() == "onesecret"
    assert found.snapshot.read_bytes() == (ours.home / "snapshot.db").read_bytes()
    assert not [one for one in (tmp_path / "out").rglob("*") if one.is_file() and one.stat().st_mode & 0o033]
    for word in (b"onesecret", b"CERTIFICATE", b"manifest", b"page"):
        assert word not in path.read_bytes()


def test_a_snapshot_without_its_own_checksum_is_corrupt(ours: Controller, tmp_path: Path) -> None:
    path = ours.backups / "bad.kwbackup"
    ours.backups.mkdir()
    source = ours.home / "bad.db"
    source.write_bytes(b"page" * 1024 + b"0" * 32)
    backup_archive.write(
        path, SECRET, {"cluster": "lab", "created": "", "etcd": {}}, source, {"pki": ours.pki, "secrets": ours.secrets}
    )
    with pytest.raises(UserError, match="is corrupt"):
        backup_archive.opened(path, SECRET, tmp_path / "out")


def test_whose_backup_it_is(ours: Controller, tmp_path: Path) -> None:
    manifest = backup_archive.read(ours.back_up(), SECRET, None)
    assert backup.foreign(manifest, "lab", backup.cas(ours.pki)) == ""
    assert "one of the cluster lab, this is prod" in backup.foreign(manifest, "prod", backup.cas(ours.pki))
    other = Controller(tmp_path / "other", ca="two")
    assert "none of its CAs is ours" in backup.foreign(manifest, "lab", backup.cas(other.pki))
    # A controller without CAs has nothing to compare with; one that rotates its CA has the old one in the bundle.
    assert backup.foreign(manifest, "lab", []) == ""
    (other.pki / "etcd-ca-bundle.pem").write_text(certificate("two") + certificate("oneetcd"))
    assert backup.foreign(manifest, "lab", backup.cas(other.pki)) == ""


def test_custody_is_taken_where_there_is_none_only(ours: Controller, tmp_path: Path) -> None:
    out = tmp_path / "out"
    backup_archive.read(ours.back_up(), SECRET, out, ("pki/",))
    assert names(out) == ["pki"]
    pki = tmp_path / "new/pki"
    pki.parent.mkdir()
    assert "restored from the backup" in backup.custody(out, "pki", pki, "NOW", replace=False)
    assert stat.S_IMODE(pki.stat().st_mode) == 0o700
    assert stat.S_IMODE((pki / "etcd-ca-key.pem").stat().st_mode) == 0o600
    (pki / "mine").write_text("x")
    assert backup.custody(out, "pki", pki, "NOW", replace=False) == ""
    assert "pki.before-NOW" in backup.custody(out, "pki", pki, "NOW", replace=True)
    assert (tmp_path / "new/pki.before-NOW/mine").exists()
    assert not (pki / "mine").exists()


def action(ours: Controller, work: Path, **variables: Any) -> Any:
    spec = importlib.util.spec_from_file_location("restore_action", ROOT / "action_plugins/kubewright_restore.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    made = object.__new__(module.ActionModule)
    made._args = {"source": "latest", "name": "lab", "directory": str(ours.backups), "data": "/var/lib/etcd"}
    made._args |= {"pki": str(ours.pki), "secrets": str(ours.secrets), "plan": {"moment": "NOW"}, "tls": {}}
    made._args["members"] = [{"name": "m1", "url": ""}]
    made._vars = {"groups": {"etcd": ["m1"], "all": ["m1"]}, "etcd_backup_passphrase": SECRET, **variables}
    made._vars["ansible_facts"] = {"cluster": {"name": "lab", "machines": {"m1": {"name": "m1", "is_master": False}}}}
    made._templar = SimpleNamespace(template=lambda value: value)
    made._task = SimpleNamespace(check_mode=False)
    made._work = work
    seen = {"name": "m1", "healthy": True, "answers": True, "revision": 9}
    made._ask = lambda _, **__: {"members": [seen]}
    return made


def machine(free: int = 1 << 30, **cas: list[str]) -> dict[str, Any]:
    """What a machine said in a run."""
    way = {"path": "/tmp/way", "free": free, "same": True}  # noqa: S108
    left = {"data": True, "interrupted": False, "lacks": "", "size": 5000, "free": free, "revision": 9, "transfer": way}
    return {"etcd_remains": {"result": left}, "preflight_machine": {"facts": {"cas": cas}}}


def test_nothing_is_replaced_before_everything_that_may_refuse(ours: Controller) -> None:
    ours.back_up()
    (ours.secrets / "encryption_key").write_text("rotated")
    (ours.home / "work").mkdir()
    step = action(ours, ours.home / "work/x", etcd_restore_secrets="replace", hostvars={"m1": machine(free=1 << 20)})
    assert step._custody() == {"changed": False, "lines": []}
    with pytest.raises(UserError, match="m1: /var/lib/etcd has 1 MiB free"):
        step._open()
    assert (ours.secrets / "encryption_key").read_text() == "rotated"
    assert names(ours.home) == ["backups", "pki", "secrets", "snapshot.db", "work"]
    step._vars["hostvars"] = {"m1": machine()}
    assert f"{ours.pki} and {ours.secrets}, which become those of the backup" in step._open()["doing"]
    assert not [path for path in (ours.home / "work").rglob("*") if path.name.startswith("encryption_key")]
    assert step._exchange()["lines"] == [
        f"{ours.secrets} restored from the backup, the one before is {ours.secrets}.before-NOW"
    ]
    assert (ours.secrets / "encryption_key").read_text() == "onesecret"
    assert (ours.home / "secrets.before-NOW/encryption_key").read_text() == "rotated"
    assert step._exchange() == {"changed": False, "lines": []}


def test_what_is_not_asked_for_is_not_replaced(ours: Controller, tmp_path: Path) -> None:
    ours.back_up()
    for source, secrets in (("latest", "keep"), ("", "replace"), ("m1", "replace")):
        step = action(ours, tmp_path / "work", etcd_restore_secrets=secrets)
        step._args["source"] = source
        assert step._exchange() == {"changed": False, "lines": []}
    # One of the two is gone: the other one stays.
    shutil.rmtree(ours.pki)
    (ours.secrets / "encryption_key").write_text("rotated")
    action(ours, tmp_path / "work", etcd_restore_secrets="replace")._custody()
    assert (ours.secrets / "encryption_key").read_text() == "rotated"
    assert (ours.pki / "etcd-ca-key.pem").exists()


def test_machines_are_not_cut_off_by_the_cas_of_a_backup(ours: Controller, tmp_path: Path) -> None:
    ours.back_up()
    path = "/opt/etcd/ssl/ca.pem"
    own = backup.certificates((ours.pki / "etcd-ca.pem").read_text())
    (tmp_path / "work").mkdir()
    for digests, refused in ((own, False), (["of another"], True)):
        step = action(
            ours, tmp_path / "work/x", etcd_restore_secrets="replace", hostvars={"m1": machine(**{path: digests})}
        )
        if refused:
            with pytest.raises(UserError, match="m1: trust other CAs than those in its pki/"):
                step._open()
        else:
            step._open()
    assert not list((tmp_path / "work").rglob("*-key.pem"))


def test_the_controllers_disk_is_asked_before_the_data_of_a_machine_is_fetched(
    ours: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = action(ours, tmp_path / "work", hostvars={"m1": machine()})
    step._args["source"] = "m1"
    assert step._open()["plan"]["machine"] == "m1"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    with pytest.raises(UserError, match=r"are needed for the data of m1: nothing has been done") as caught:
        step._open()
    assert "local_tmp" in str(caught.value)
    assert "etcd_backup_directory" not in str(caught.value)


def test_keys_that_a_killed_run_left_go_with_the_next_whatever_it_does(ours: Controller, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"{ended.pid}-x", f"{ended.pid}-pki", "old", f"{os.getpid()}-x"):
        (ours.home / f".partial-{name}").mkdir()
        (ours.home / f".partial-{name}/encryption_key").write_text("plain")
    action(ours, tmp_path / "work")._custody()
    # Another run may be at it: the cluster's lock is only taken after this.
    assert [one for one in names(ours.home) if one.startswith(".")] == [f".partial-{os.getpid()}-x"]


ONE, TWO = "1" * 32, "2" * 32


@pytest.mark.parametrize("own", [ONE, f"{ONE}\n", f"key1:{ONE}", f"key2:{TWO}\nkey1:{ONE}\n"])
def test_a_key_that_is_there_is_found_wherever_it_stands(ours: Controller, tmp_path: Path, own: str) -> None:
    (ours.secrets / "encryption_key").write_text(ONE)
    found = backup_archive.opened(ours.back_up(), SECRET, tmp_path / "out", ["secrets/encryption_key"])
    # Nothing but this and the snapshot was unpacked.
    assert sorted(one.name for one in found.directory.rglob("*") if one.is_file()) == ["encryption_key", "snapshot.db"]
    (ours.secrets / "encryption_key").write_text(own)
    assert backup.differing(found.directory, ours.secrets) == ""


def test_another_encryption_key_is_seen_and_both_ways_are_named(ours: Controller, tmp_path: Path) -> None:
    (ours.secrets / "encryption_key").write_text(ONE)
    backup_archive.read(ours.back_up(), SECRET, tmp_path / "out")
    (ours.secrets / "encryption_key").write_text(f"key2:{TWO}")
    said = backup.differing(tmp_path / "out", ours.secrets)
    assert said.startswith("its Secrets are encrypted with a key, key1, that ")
    assert said.index("add the line key1:KEY") < said.index("etcd_restore_secrets=")
    assert ONE not in said + TWO
    specs = yaml.safe_load((ROOT / "roles/etcd/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    value = re.findall(r"-e etcd_restore_secrets=(\w+)", said)
    assert value[0] in specs["options"]["etcd_restore_secrets"]["choices"]
    # Of two with one name, the API server would take the wrong one.
    (ours.secrets / "encryption_key").write_text(TWO)
    assert "add the line" not in backup.differing(tmp_path / "out", ours.secrets)


def test_a_key_that_is_a_link_is_taken_along(ours: Controller, tmp_path: Path) -> None:
    safe = tmp_path / "safe"
    (ours.secrets / "encryption_key").rename(safe)
    (ours.secrets / "encryption_key").symlink_to(safe)
    backup_archive.read(ours.back_up(), SECRET, tmp_path / "out")
    assert (tmp_path / "out/secrets/encryption_key").read_text() == "onesecret"
    safe.unlink()
    with pytest.raises(UserError, match="encryption_key is a link to what is no file"):
        ours.back_up(hour=2)


def test_a_disk_of_the_controller_that_is_full_is_not_a_bad_backup(ours: Controller, tmp_path: Path) -> None:
    path = ours.back_up()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/etcd").write_text("no directory")
    with pytest.raises(UserError, match=r"out/etcd/snapshot\.db cannot be written"):
        backup_archive.opened(path, SECRET, tmp_path / "out")


def test_what_killed_runs_unpacked_goes_with_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for number in (ended.pid, os.getpid()):
        place = tmp_path / f"ansible-local-{number}" / f"kubewright-restore-{number}"
        place.mkdir(parents=True)
        (place / "snapshot.db").write_text("x")
    place = backup_store.unpacking(tmp_path / "ansible-local-1", 1)
    assert place.parent == tmp_path / "ansible-local-1"
    assert [path.parent.parent.name for path in tmp_path.rglob("snapshot.db")] == [f"ansible-local-{os.getpid()}"]


def test_runs_beside_come_and_go_while_it_is_looked_what_killed_ones_left(tmp_path: Path) -> None:
    over = threading.Event()

    def others() -> None:
        while not over.is_set():
            for number in range(50):
                (tmp_path / f"ansible-local-{number}").mkdir()
            for number in range(50):
                (tmp_path / f"ansible-local-{number}").rmdir()

    beside = threading.Thread(target=others)
    beside.start()
    try:
        for _ in range(300):
            backup_store.unpacking(tmp_path / "ansible-local-own", 1)
    finally:
        over.set()
        beside.join()


def test_retention_keeps_the_newest_whatever_it_is_told(ours: Controller) -> None:
    paths = [ours.back_up(hour=hour) for hour in range(5)]
    (ours.backups / "notes.txt").write_text("mine")
    (ours.backups / "lab2-20260101T000000Z-r7.kwbackup").write_text("of another cluster")
    assert backup_store.prune(ours.backups, "lab", 3) == [paths[1].name, paths[0].name]
    assert backup_store.prune(ours.backups, "lab", 0) == [paths[3].name, paths[2].name]
    assert backup_store.find("latest", ours.backups, "lab") == paths[4]
    assert len(list(ours.backups.iterdir())) == 3


def test_a_backup_that_is_not_there_names_those_that_are(ours: Controller) -> None:
    path = ours.back_up()
    assert backup_store.find(path.name, ours.backups, "lab") == path
    with pytest.raises(UserError, match="no such backup") as caught:
        backup_store.find("lab-x", ours.backups, "lab")
    assert path.name in str(caught.value)
    with pytest.raises(UserError, match="holds no backup of prod"):
        backup_store.find("latest", ours.backups, "prod")


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import os,sys,pathlib\nfrom kubewright import backup_store\n"
        "with backup_store.workplace(pathlib.Path(sys.argv[1])) as work:\n"
        "    (work / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "backups")], check=False)
    assert list((tmp_path / "backups").rglob("half"))
    with backup_store.workplace(tmp_path / "backups") as work:
        assert not list((tmp_path / "backups").rglob("half"))
        assert stat.S_IMODE(work.stat().st_mode) == 0o700
    assert list((tmp_path / "backups").iterdir()) == []


def test_targets(ours: Controller, tmp_path: Path) -> None:
    path = ours.back_up()
    share = tmp_path / "share"
    missing: list[dict[str, Any]] = [{"directory": str(share)}, {"command": ["no-such-program"]}, {"path": "/x"}]
    assert len(backup_store.target_problems(missing)) == 3
    assert "is it mounted?" in backup_store.target_problems(missing)[0]
    share.mkdir()
    assert backup_store.deliver(path, {"directory": str(share)}) == str(share / path.name)
    assert (share / path.name).read_bytes() == path.read_bytes()
    command = {"command": ["cp", "{}", str(tmp_path / "copy")]}
    assert backup_store.target_problems([command]) == []
    backup_store.deliver(path, command)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    backup_store.deliver(path, {"command": ["test", "-f"]})
    with pytest.raises(UserError, match=r"cp ended with 1: .*no/dir"):
        backup_store.deliver(path, {"command": ["cp", "{}", str(tmp_path / "no/dir")]})


def test_a_target_that_fails_stops_no_other(ours: Controller, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / f".partial-{ours.back_up().name}").write_text("of a run that was killed")
    targets: list[dict[str, Any]] = [{"command": ["false"]}, {"directory": str(share)}]
    for hour in (2, 3, 4):
        done, failed = backup_store.deliver_all(ours.back_up(hour=hour), targets, "lab", 2)
        assert failed[0].startswith("false ended with 1")
    assert len(failed) == 1
    assert done[1].startswith(f"removed from {share}: lab-20260101T02")
    assert [name[:15] for name in names(share)] == ["lab-20260101T03", "lab-20260101T04"]


def test_passphrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passphrase"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    assert backup.passphrase("", str(file), "") == SECRET
    assert backup.passphrase("from the vault", str(file), "") == "from the vault"
    assert backup.passphrase("", "", "of the environment") == "of the environment"
    file.write_text(f"{SECRET}\r\n\n")
    assert backup.passphrase("", str(file), "") == SECRET
    file.write_text(f"{SECRET}\nkeep this safe\n")
    with pytest.raises(UserError, match="more than one line"):
        backup.passphrase("", str(file), "")
    file.write_text(SECRET)
    file.chmod(0o644)
    for arguments, words in (
        (("", str(file), ""), "others may read it"),
        (("", str(tmp_path / "none"), ""), "cannot be read"),
        (("", "", ""), "there is no passphrase"),
        (("short", "", ""), "has 5 characters"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            backup.passphrase(*arguments)
        assert SECRET not in str(caught.value)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    with pytest.raises(UserError, match="has 1 MiB free, 164 MiB are needed"):
        backup_store.need_room(tmp_path / "not/yet", 100 << 20, "the backup")


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "evil"
    with path.open("wb") as stream:
        writer = envelope.Writer(stream, SECRET)
        with gzip.GzipFile(fileobj=writer, mode="wb") as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
            content = json.dumps({"format": 1, "parts": {}}).encode()
            for name in ("manifest.json", "../outside"):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        writer.finish()
    with pytest.raises(UserError, match="is damaged"):
        backup_archive.read(path, SECRET, tmp_path / "out")
    assert not (tmp_path / "outside").exists()
