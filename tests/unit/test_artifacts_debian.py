"""The source `debian` with the real apt, dpkg and make, on an archive made here; only the Go compiler is a script."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from debian_archive import Archive, write_lock

from kubewright import apt_sources, cache
from kubewright.artifacts import Settings, debian, ensure, heartbeat, kubernetes_build, lock, relock
from kubewright.artifacts.lock import KUBERNETES
from kubewright.artifacts.scratch import Scratch
from kubewright.errors import UserError

_CLI = """
import sys
from pathlib import Path
from kubewright.artifacts import cli, debian
debian._HOST_SOURCES = Path(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""


class Host:
    """A machine with an archive, a lock file and a cache."""

    def __init__(self, root: Path) -> None:
        self.archive = Archive(root)
        self.journal = root / "journal"
        self.lock_file = root / "artifacts.lock.yml"
        self.cache = root / "cache"

    def lock(self, kubernetes: dict[str, Any], **artifacts: dict[str, Any]) -> None:
        write_lock(self.lock_file, kubernetes, artifacts)

    def settings(self) -> Settings:
        return Settings("debian", self.lock_file, cache=self.cache)

    def start(self, command: str, *names: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _CLI, self.archive.sources, command, "--lock-file", self.lock_file, *names],
            env={**os.environ, "KUBEWRIGHT_CACHE": str(self.cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *names: str) -> tuple[int, str, str]:
        process = self.start(command, *names)
        out, error = process.communicate(timeout=60)
        return process.returncode, out, error

    def built(self) -> list[str]:
        """Commands that the compiler was asked for, in order."""
        return self.journal.read_text().split() if self.journal.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(debian, "_HOST_SOURCES", made.archive.sources)
    return made


def etcd(host: Host, version: str = "3.4.23-4") -> dict[str, Any]:
    package = host.archive.package("etcd-server", version, {"usr/bin/etcd": f"\x7fELF etcd {version}"})
    return {"version": "3.4.23", "debian": {**package, "member": "usr/bin/etcd"}}


def until(seconds: float, condition: Any) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


EVERYTHING = [f"./cmd/{name}" for name in KUBERNETES]


def test_a_file_out_of_a_package(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    found = ensure(["etcd"], host.settings(), lambda _: None)["etcd"]
    assert found.path.read_text() == "\x7fELF etcd 3.4.23-4"
    assert (found.kind, found.size) == ("binary", 18)
    assert list((host.cache / "tmp").glob("[!.]*")) == []


def test_what_was_downloaded_needs_no_archive(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    found = ensure(["etcd"], host.settings(), lambda _: None)["etcd"]
    found.path.unlink()
    (host.archive.sources / "sources.list").unlink()
    assert ensure(["etcd"], host.settings(), lambda _: None)["etcd"] == found


def test_a_damaged_download_is_got_again(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    found = ensure(["etcd"], host.settings(), lambda _: None)["etcd"]
    found.path.unlink()
    [deb] = (host.cache / "apt" / "download").glob("*.deb")
    deb.write_bytes(deb.read_bytes()[:-1])
    assert ensure(["etcd"], host.settings(), lambda _: None)["etcd"] == found


def test_what_is_gone_from_the_archive_is_named_at_once_with_the_cure(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    host.archive.withdraw("etcd*")
    host.archive.withdraw("kubernetes*")
    etcd(host, "3.4.23-4+deb12u1")
    host.archive.source("kubernetes", "1.20.2+deb12u1", {"Makefile": "x"})
    with pytest.raises(UserError) as raised:
        ensure(["etcd"], host.settings(), lambda _: None)
    assert str(raised.value) == (
        "etcd-server 3.4.23-4 is no longer in the archive (it has 3.4.23-4+deb12u1); "
        "run python -m kubewright.artifacts lock"
    )
    with pytest.raises(UserError) as raised:
        ensure(["etcd", "kubelet"], host.settings(), lambda _: None)
    assert str(raised.value) == (
        "etcd-server 3.4.23-4 is no longer in the archive (it has 3.4.23-4+deb12u1),\n"
        "kubernetes 1.20.2 is no longer in the archive (it has 1.20.2+deb12u1); "
        "run python -m kubewright.artifacts lock"
    )
    assert not list((host.cache / "build").glob("*"))


def test_the_cure_cures(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    before = host.lock_file.read_text()
    assert host.run("lock") == (0, f"{host.lock_file}: nothing has changed\n", "")
    assert host.lock_file.read_text() == before
    host.archive.withdraw("etcd*")
    etcd(host, "3.4.23-4+deb12u1")
    status, _, error = host.run("fetch", "etcd")
    assert (status, "run python -m kubewright.artifacts lock" in error) == (1, True)
    said = f"etcd: 3.4.23-4 -> 3.4.23-4+deb12u1\n{host.lock_file}: rewritten\n"
    assert host.run("lock") == (0, said, "")
    assert yaml.safe_load(host.lock_file.read_text())["artifacts"]["etcd"]["debian"]["version"] == "3.4.23-4+deb12u1"
    assert host.run("fetch", "etcd")[0] == 0


def test_the_newest_of_several_source_packages_is_locked(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal))
    for version in ("1.20.2+deb12u9", "1.20.2+deb12u10", "1.20.2~rc1"):
        host.archive.source("kubernetes", version, {"Makefile": "x"})
    assert host.run("lock") == (0, f"kubernetes: 1.20.2 -> 1.20.2+deb12u10\n{host.lock_file}: rewritten\n", "")
    files = yaml.safe_load(host.lock_file.read_text())["kubernetes"]["debian"]["files"]
    assert sorted(files) == ["kubernetes_1.20.2+deb12u10.dsc", "kubernetes_1.20.2+deb12u10.tar.xz"]


def test_other_software_is_for_a_person_to_lock(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    before = host.lock_file.read_text()
    etcd(host, "3.5.1-1")
    status, out, error = host.run("lock")
    assert (status, out) == (1, "")
    assert "moved on to other versions of the software: etcd from 3.4.23 to 3.5.1" in error
    assert host.lock_file.read_text() == before
    assert sorted(p.name for p in host.lock_file.parent.glob("*lock*")) == ["artifacts.lock.yml"]


def test_what_no_archive_has(host: Host) -> None:
    entry = etcd(host)
    host.lock(host.archive.kubernetes(host.journal), etcd=entry)
    host.archive.withdraw("etcd*")
    before = host.lock_file.read_text()
    for command in ("fetch", "lock"):
        status, _, error = host.run(command, *(["etcd"] if command == "fetch" else []))
        assert (status, "have no etcd-server" in error) == (1, True), error
        assert "Traceback" not in error
    assert host.lock_file.read_text() == before


def test_an_archive_out_of_reach(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_RETRIES", 0)
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    (host.archive.sources / "sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/debian ./\n")
    with pytest.raises(UserError, match=r"have no etcd-server\n.*Failed to fetch http://127\.0\.0\.1:9"):
        ensure(["etcd"], host.settings(), lambda _: None)
    (host.archive.sources / "sources.list").write_text("deb [trusted=yes] file:/nowhere ./\n")
    with pytest.raises(UserError, match=r"apt-get update.*file:/nowhere") as raised:
        ensure(["etcd"], host.settings(), lambda _: None)
    assert "until apt-get update works" in raised.value.hint


def test_content_that_was_not_locked(host: Host) -> None:
    entry = etcd(host)
    entry["debian"]["sha256"] = "0" * 64
    host.lock(host.archive.kubernetes(host.journal), etcd=entry)
    with pytest.raises(UserError, match="expected 0000"):
        ensure(["etcd"], host.settings(), lambda _: None)
    assert not list((host.cache / "apt" / "download").glob("*.deb"))
    assert not list((host.cache / "artifacts").glob("sha256/*/*"))


def test_a_build_happens_once_for_all_checkouts(host: Host) -> None:
    go_on = host.lock_file.with_name("go-on")
    host.lock(host.archive.kubernetes(host.journal, before=f"while [ ! -e {go_on} ]; do sleep 0.02; done"))
    first = host.start("fetch", *KUBERNETES)
    until(20, host.built)
    second = host.start("fetch", "kubelet")
    assert second.stdout
    assert f"process {first.pid} is building Kubernetes already: waiting for it" in second.stdout.readline()
    go_on.touch()
    assert first.communicate(timeout=60)[1] == ""
    assert second.communicate(timeout=60)[1] == ""
    assert (first.returncode, second.returncode) == (0, 0)
    assert host.built() == EVERYTHING


def test_a_build_of_another_name_shares_the_sources(host: Host) -> None:
    kubernetes = host.archive.kubernetes(host.journal)
    host.lock(kubernetes)
    first = ensure(["kubelet"], host.settings(), lambda _: None)["kubelet"]
    host.archive.withdraw("kubernetes*")
    host.lock({**kubernetes, "build": "kw2"})
    said: list[str] = []
    second = ensure(["kubelet"], host.settings(), said.append)["kubelet"]
    assert (first.version, second.version) == ("1.20.2", "1.20.2+kw2")
    # Nothing is unpacked or generated anew: only linked.
    assert host.built() == EVERYTHING * 2
    assert [line for line in said if "unpacking" in line or "generating" in line] == []
    assert "kubernetes 1.20.2+kw2: building kubelet (4 of 6)" in said
    # Asked for by release, as the inventory does, it is still this build.
    settings = replace(host.settings(), kubernetes_version="1.20.2")
    assert ensure(["kubelet"], settings, lambda _: None)["kubelet"] == second


def test_a_lock_file_that_extends_another(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    other = host.lock_file.with_name("other.yml")
    newer = host.archive.package("etcd-server", "3.5.16-4", {"usr/bin/etcd": "\x7fELF 3.5"})
    entry = {"version": "3.5.16", "debian": {**newer, "member": "usr/bin/etcd"}}
    data = {"extends": host.lock_file.name, "kubernetes": {"build": "x"}, "artifacts": {"etcd": entry}}
    other.write_text(yaml.safe_dump(data))
    whole = lock.load(other)
    assert (whole.entry("etcd").version, whole.kubernetes_version) == ("3.5.16", "1.20.2+x")
    host.archive.withdraw("etcd*")
    rebuilt = host.archive.package("etcd-server", "3.5.16-4+deb13u1", {"usr/bin/etcd": "\x7fELF 3.5"})
    assert relock.rewrite(other, debian.Apt(host.cache / "apt", lambda _: None)) == [
        "etcd: 3.5.16-4 -> 3.5.16-4+deb13u1"
    ]
    after = yaml.safe_load(other.read_text())
    assert (after["artifacts"]["etcd"]["debian"]["sha256"], after["extends"]) == (rebuilt["sha256"], data["extends"])


def test_further_suites_are_of_the_same_archive() -> None:
    found = [
        apt_sources.Source(("deb",), ("http://a.example/debian",), ("bookworm", "bookworm-updates"), ("main",)),
        apt_sources.Source(("deb",), ("http://b.example/security",), ("bookworm-security",), ("main",)),
    ]
    text = debian.with_sources(found, ["trixie"])
    assert text.count("Suites: trixie\n") == 1
    assert "URIs: http://a.example/debian\nSuites: trixie\n" in text
    assert "trixie" not in debian.with_sources(found)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("build", "kw 2", "kubernetes.build is 'kw 2', which is no name of letters"),
        ("suites", "trixie", "suites is 'trixie', which is no list of Debian's suites"),
        ("extends", "nowhere.yml", "which cannot be read"),
    ],
)
def test_wrong_sets(host: Host, key: str, value: str, said: str) -> None:
    host.lock(host.archive.kubernetes(host.journal))
    data = yaml.safe_load(host.lock_file.read_text())
    (data["kubernetes"] if key == "build" else data)[key] = value
    host.lock_file.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=re.escape(said)):
        lock.load(host.lock_file)


def test_a_killed_build_goes_on_where_it_stopped(host: Host) -> None:
    go_on = host.lock_file.with_name("go-on")
    wait = f'[ "$3" != ./cmd/kube-scheduler ] || while [ ! -e {go_on} ]; do sleep 0.02; done'
    host.lock(host.archive.kubernetes(host.journal, before=wait))
    first = host.start("fetch", "kubectl")
    until(20, lambda: "./cmd/kube-scheduler" in host.built())
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = host.start("fetch", "kubectl")
    assert second.stdout
    # The compiler of the dead process still runs, and writes where the next one would.
    assert "building Kubernetes already: waiting for it" in second.stdout.readline()
    go_on.touch()
    assert second.communicate(timeout=60)[1] == ""
    assert second.returncode == 0
    assert host.built() == [*EVERYTHING[:3], *EVERYTHING[2:]]


def test_a_build_that_fails_shows_why_and_goes_on_later(host: Host) -> None:
    repaired = host.lock_file.with_name("repaired")
    fail = f'[ "$3" != ./cmd/kubelet ] || [ -e {repaired} ] || {{ echo "kubelet.go:7: no such thing"; exit 3; }}'
    host.lock(host.archive.kubernetes(host.journal, before=fail))
    status, _, error = host.run("fetch", "kubectl")
    assert status == 1
    assert (
        "kubernetes 1.20.2: building kubelet (4 of 6) failed with status 3:\n    kubelet.go:7: no such thing" in error
    )
    assert "running again goes on where it stopped" in error
    repaired.touch()
    assert host.run("fetch", "kubectl")[0] == 0
    assert host.built() == [*EVERYTHING[:4], *EVERYTHING[3:]]


@pytest.mark.parametrize("output", ["", "\\177ELF", "not found"])
def test_what_is_no_program_is_not_taken_for_a_result(host: Host, output: str) -> None:
    repaired = host.lock_file.with_name("repaired")
    bad = f'mkdir -p "${{2%/*}}"; printf "{output}" > "$2"; exit 0'
    fail = f'[ "$3" != ./cmd/kubelet ] || [ -e {repaired} ] || {{ {bad}; }}'
    host.lock(host.archive.kubernetes(host.journal, before=fail))
    with pytest.raises(UserError, match=r"kubelet: Go succeeded, and this is no program for amd64 \(\d bytes\)"):
        ensure(["kubectl"], host.settings(), lambda _: None)
    repaired.touch()
    assert ensure(["kubectl"], host.settings(), lambda _: None)["kubectl"].size > 0
    assert host.built() == [*EVERYTHING[:4], *EVERYTHING[3:]]


def interrupted(host: Host) -> Path:
    """The work directory of a build that ended at kubelet."""
    stop = host.lock_file.with_name("go-on")
    fail = f'echo kept > "$GOCACHE-$(basename "$3")"; mkdir -p "$GOCACHE"; echo x > "$GOCACHE/x"; [ -e {stop} ] || '
    host.lock(host.archive.kubernetes(host.journal, before=f'{fail} [ "$3" != ./cmd/kubelet ] || exit 3'))
    with pytest.raises(UserError, match="failed with status 3"):
        ensure(["kubectl"], host.settings(), lambda _: None)
    stop.touch()
    [work] = (host.cache / "build").glob("work-*")
    assert (work / "gocache" / "x").exists()
    return work


def test_a_result_that_a_power_loss_emptied_is_built_again(host: Host) -> None:
    work = interrupted(host)
    [scheduler] = work.glob("out-*/kube-scheduler")
    scheduler.write_bytes(b"")
    ensure(["kubectl"], host.settings(), lambda _: None)
    assert host.built() == [*EVERYTHING[:4], EVERYTHING[2], *EVERYTHING[3:]]


def test_nothing_counts_as_done_before_it_is_on_the_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[tuple[int, int]] = []

    def settle(path: Path) -> None:
        cache.settle(path)
        build = host.cache / "build"
        settled.append((len(list(build.glob("work-*/.*.done"))), len(list(build.glob("kubernetes-*")))))

    monkeypatch.setattr(kubernetes_build, "settle", settle)
    host.lock(host.archive.kubernetes(host.journal))
    ensure(["kubectl"], host.settings(), lambda _: None)
    steps = 3 + len(KUBERNETES)
    assert settled == [*((done, 0) for done in range(steps)), (steps, 0)]


@pytest.mark.parametrize("booted", [False, True])
def test_what_a_compiler_left_before_a_boot_is_not_trusted(
    host: Host, booted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = interrupted(host)
    if booted:
        (work / "boot").write_text("another")
        (work / ".generated.done").unlink()
        (work / "gopath/src/k8s.io/kubernetes/half").touch()
    (work / "tmp" / "left").touch()
    seen = []
    run = kubernetes_build.Builder._command

    def look(builder: kubernetes_build.Builder, number: int, command: str) -> None:
        tree = work / "gopath/src/k8s.io/kubernetes"
        assert (tree / "generated").exists()
        seen.append([path.exists() for path in (work / "gocache", work / "tmp" / "left", tree / "half")])
        run(builder, number, command)

    monkeypatch.setattr(kubernetes_build.Builder, "_command", look)
    ensure(["kubectl"], host.settings(), lambda _: None)
    assert seen[0] == [not booted, False, False]
    assert host.built() == [*EVERYTHING[:4], *EVERYTHING[3:]]


def test_what_takes_long_does_not_fall_silent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE_SECONDS", 0.2)
    host.lock(host.archive.kubernetes(host.journal, before='[ "$3" != ./cmd/kubelet ] || sleep 1.8'))
    said: list[str] = []
    ensure(["kubelet"], host.settings(), said.append)
    assert said.count("kubernetes 1.20.2: building kubelet (4 of 6), 0 min 00 s") >= 2
    assert "kubernetes 1.20.2: building kubelet (4 of 6), 0 min 01 s" in said
    over = len(said)
    time.sleep(0.3)
    assert len(said) == over


def test_a_damaged_build_is_thrown_away(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal))
    ensure(["kubectl"], host.settings(), lambda _: None)
    [binary] = (host.cache / "build").glob("kubernetes-*/kubelet")
    binary.write_bytes(b"?" * binary.stat().st_size)
    with pytest.raises(UserError, match="damaged build was thrown away: run again"):
        ensure(["kubelet"], host.settings(), lambda _: None)
    assert ensure(["kubelet"], host.settings(), lambda _: None)["kubelet"].size > 0


def test_a_build_needs_room_and_programs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.lock(host.archive.kubernetes(host.journal))
    monkeypatch.setattr(kubernetes_build, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"build has \d+ MiB free, building Kubernetes takes \d+ MiB"):
        ensure(["kubelet"], host.settings(), lambda _: None)
    monkeypatch.setenv("PATH", str(host.cache))
    apt = debian.Apt(host.cache / "apt", lambda _: None)
    builder = kubernetes_build.Builder(
        host.cache / "b", lock.load(host.lock_file), apt, Scratch(host.cache / "tmp"), lambda _: None
    )
    with pytest.raises(UserError, match=r"rsync.*dpkg-dev") as raised:
        builder.build()
    assert "apt-get install make rsync dpkg-dev" in raised.value.hint
    with pytest.raises(UserError, match="this machine has no apt-get"):
        apt.candidate("etcd-server")


@pytest.mark.parametrize(
    ("version", "software"),
    [
        ("3.4.23-4+b4", "3.4.23"),
        ("1.6.20~ds1-1+deb12u3", "1.6.20"),
        ("1.20.5+really1.20.2-1.1+deb12u1", "1.20.2"),
        ("1:1.35.0-4+deb12u1+b1", "1.35.0"),
        ("20.10.24+dfsg1-1+deb12u1+b6", "20.10.24"),
        ("0.19.0", "0.19.0"),
    ],
)
def test_the_software_in_a_debian_version(version: str, software: str) -> None:
    assert relock.upstream_version(version) == software


def test_questions_to_apt_cost_little(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    ensure(["etcd"], host.settings(), lambda _: None)
    # Not so by itself on hosts that are images of containers.
    assert (host.cache / "apt" / "cache" / "pkgcache.bin").stat().st_size


def test_a_line_with_tabs_is_a_source(host: Host) -> None:
    host.lock(host.archive.kubernetes(host.journal), etcd=etcd(host))
    (host.archive.sources / "sources.list").write_text(f"deb\t[ trusted=yes ]\tfile:{host.archive.pool}\t./\n")
    assert ensure(["etcd", "kubelet"], host.settings(), lambda _: None)["etcd"].version == "3.4.23"
