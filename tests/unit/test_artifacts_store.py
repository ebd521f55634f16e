"""The cache: what is kept, verified, removed, and what a user reads of it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from debian_archive import write_lock

from kubewright import cache
from kubewright.artifacts import cli, kubernetes_build, store, upkeep
from kubewright.artifacts.lock import KUBERNETES
from kubewright.artifacts.scratch import Scratch
from kubewright.errors import UserError

CONTENT = os.urandom(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()
DAY = 86400


def silent(_: str) -> None:
    return


def claim(sha256: str) -> store.Claim:
    return store.Claim(sha256, "a file", "get another")


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    assert kept.add("a/1", io.BytesIO(CONTENT), claim(SHA), {"x": "y"}) == SHA
    assert store.Store(tmp_path).find("a/1") == (SHA, {"x": "y"})
    assert kept.path_of(SHA).read_bytes() == CONTENT


def test_wrong_content_leaves_nothing(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    with pytest.raises(UserError, match=f"a file: the sha256 is {SHA}, expected 0000") as raised:
        kept.add("a/1", io.BytesIO(CONTENT), claim("0" * 64))
    assert raised.value.hint == "get another"
    assert kept.find("a/1") is None
    assert files(tmp_path) == []


def test_a_damaged_file_is_not_handed_out(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    kept.add("a/1", io.BytesIO(CONTENT))
    kept.path_of(SHA).write_bytes(CONTENT[:100])
    assert kept.find("a/1") is None
    kept.add("a/1", io.BytesIO(CONTENT))
    assert kept.find("a/1") == (SHA, {})


def test_content_under_two_keys_is_not_hashed_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.Store(tmp_path)
    kept.add("a", io.BytesIO(CONTENT))
    kept.add("b", io.BytesIO(CONTENT))
    assert kept.find("a") == (SHA, {})
    monkeypatch.delattr(store, "sha256_of")
    assert kept.find("a") == kept.find("b") == (SHA, {})


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    waiting = (
        "import sys, time\nfrom pathlib import Path\nfrom kubewright.artifacts.scratch import Scratch\n"
        "with Scratch(Path(sys.argv[1])).directory() as made:\n"
        "    (made / 'half').write_text('half')\n    print(made, flush=True)\n    time.sleep(60)\n"
    )
    root = tmp_path / "tmp"
    processes = [
        subprocess.Popen([sys.executable, "-c", waiting, root], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        dead, alive = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert (dead / "half").exists()
        store.Store(tmp_path)
        assert not dead.exists()
        assert (alive / "half").exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    store.Store(tmp_path)
    assert not alive.exists()


def test_what_does_not_belong_into_the_scratch_directory(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "file").touch()
    with pytest.raises(UserError, match=r"tmp/file: Not a directory\n.*move away"):
        Scratch(tmp_path / "tmp").clean()


def test_uses_are_remembered_by_the_day(tmp_path: Path) -> None:
    now = [1000.0 * DAY]
    kept = store.Store(tmp_path, lambda: now[0])
    kept.add("a", io.BytesIO(b"a"))
    kept.add("b", io.BytesIO(b"b"))
    before = (tmp_path / "artifacts" / "index.json").stat().st_mtime_ns
    now[0] += DAY / 2
    kept.use(["a", "nothing"])
    assert (tmp_path / "artifacts" / "index.json").stat().st_mtime_ns == before
    now[0] += DAY
    kept.use(["a", "nothing"])
    assert kept.last_uses() == {"a": 1001.5 * DAY, "b": 1000 * DAY}


def build(root: Path, name: str) -> Path:
    """What a build leaves."""
    result = root / "build" / name
    result.mkdir(parents=True)
    for command in KUBERNETES:
        (result / command).write_text(command)
    digests = {name: {"sha256": store.sha256_of(result / name), "size": len(name)} for name in KUBERNETES}
    (result / "manifest.json").write_text(str(digests).replace("'", '"'))
    return result


def test_damage_is_found_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEWRIGHT_CACHE", str(tmp_path))
    kept = store.Store(tmp_path)
    kept.add("good", io.BytesIO(CONTENT))
    bad = kept.path_of(kept.add("bad", io.BytesIO(b"bad")))
    whole, broken = build(tmp_path, "kubernetes-whole"), build(tmp_path, "kubernetes-broken")
    assert cli.main(["verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 4 verified, 3 MiB, 0 damaged\n"
    # The same size at the same time, as a failing disk does it.
    times = bad.stat()
    bad.write_bytes(b"dab")
    os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
    (broken / "kubelet").write_text("KUBELET")
    assert cli.main(["verify"]) == 1
    assert capsys.readouterr().out == (
        f"damaged, removed: bad ({bad})\n"
        f"damaged, removed: build of Kubernetes ({broken})\n"
        f"{tmp_path}: 4 verified, 3 MiB, 2 damaged\n"
        "python -m kubewright.artifacts fetch gets again what is needed\n"
    )
    assert (bad.exists(), broken.exists(), whole.exists()) == (False, False, True)
    assert kept.find("bad") is None
    assert cli.main(["verify"]) == 0


def recipe(version: str) -> dict[str, object]:
    return {
        "version": version,
        "commit": "0" * 40,
        "upstream": "http://127.0.0.1:9",
        "debian": {"package": "kubernetes", "version": version, "files": {}, "toolchain": []},
    }


def test_an_empty_file_is_no_artifact(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    nothing = store.Claim(hashlib.sha256(b"").hexdigest(), "http://mirror.example/kubelet", "run again")
    for claim, message in (
        (None, "local/kubelet: it is empty"),
        (nothing, "http://mirror.example/kubelet: it is empty"),
    ):
        with pytest.raises(UserError, match=message):
            kept.add("local/kubelet", io.BytesIO(b""), claim)
    assert (kept.find("local/kubelet"), kept.files()) == (None, [])


def test_nothing_goes_that_is_named_or_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    monkeypatch.setenv("KUBEWRIGHT_CACHE", str(root))
    named, other = recipe("1.20.2"), recipe("1.19.1")
    debian = {"package": "etcd-server", "version": "1", "sha256": "a" * 64, "member": "etcd"}
    lock = write_lock(tmp_path / "lock.yml", named, {"etcd": {"version": "3.4.23", "debian": debian}})
    # The files are made today; the clock of the test is ahead.
    now = time.time() + 40 * DAY
    today = datetime.now(UTC).date()
    kept = store.Store(root, lambda: now - 40 * DAY)
    kept.add(f"debian/etcd/3.4.23/{'a' * 64}", io.BytesIO(b"named"))
    kept.add("mirror/etcd/3.4.23/some-mirror", io.BytesIO(b"named, whatever the mirror"))
    old = kept.path_of(kept.add("debian/etcd/3.3.0/b", io.BytesIO(CONTENT)))
    shared = kept.path_of(kept.add("debian/runc/1/c", io.BytesIO(b"shared")))
    recent = store.Store(root, lambda: now - 20 * DAY)
    recent.add("local/runc/1/d", io.BytesIO(b"shared"))
    recent.add("upstream/kubelet/1.22.0/e", io.BytesIO(b"used by another checkout"))
    mine = build(root, f"kubernetes-{kubernetes_build.key(named)}")
    theirs = build(root, f"kubernetes-{kubernetes_build.key(other)}")
    begun = root / "build" / f"work-{kubernetes_build.key(other)}"
    begun.mkdir()
    (root / "download").mkdir()
    half = root / "download" / "x.part"
    half.write_bytes(b"half")
    keep = cli.catalog.keys_of(lock, root)

    found = {item.what for item in upkeep.unused(root, keep, 30, now)}
    stored = {"debian/etcd/3.3.0/b", "debian/runc/1/c"}
    assert found - stored == {f"build/{theirs.name}", f"build/{begun.name}", "download/x.part"}
    assert found >= stored
    assert {item.what for item in upkeep.unused(root, keep, 30, now - 15 * DAY)} & stored == set()

    monkeypatch.setattr(cli.time, "time", lambda: now)
    assert cli.main(["gc", "--lock-file", str(lock), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert dry.endswith(f"{root}: 5 would be removed, 3 MiB\n")
    assert f"     3 MiB  last used {today}  debian/etcd/3.3.0/b\n" in dry
    assert old.exists()
    assert theirs.exists()
    assert cli.main(["gc", "--lock-file", str(lock)]) == 0
    assert capsys.readouterr().out == dry.replace("would be removed", "removed")
    assert [p.exists() for p in (old, theirs, begun, half)] == [False] * 4
    assert [p.exists() for p in (shared, mine)] == [True, True]
    assert set(kept.last_uses()) == {
        f"debian/etcd/3.4.23/{'a' * 64}",
        "mirror/etcd/3.4.23/some-mirror",
        "local/runc/1/d",
        "upstream/kubelet/1.22.0/e",
    }
    assert cli.main(["gc", "--lock-file", str(lock)]) == 0
    assert capsys.readouterr().out == f"{root}: 0 removed, 0 MiB\n"
    assert cli.main(["gc", "--lock-file", str(lock), "--days", "-1"]) == 1
    assert "it cannot be negative" in capsys.readouterr().err


def test_what_came_again_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.Store(tmp_path, lambda: 0.0)
    path = kept.path_of(kept.add("old", io.BytesIO(CONTENT)))

    def unused(*arguments: object) -> list[upkeep.Garbage]:
        found = look(*arguments)
        store.Store(tmp_path).add("new", io.BytesIO(CONTENT))
        return found

    look = upkeep.unused
    monkeypatch.setattr(upkeep, "unused", unused)
    assert [item.what for item in upkeep.collect(tmp_path, [], 1, 10 * DAY, silent)] == ["old"]
    assert path.exists()
    assert kept.find("new") == (SHA, {})


def test_what_cannot_be_brought_to_the_disk_is_an_error(tmp_path: Path) -> None:
    cache.settle(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x: Not a directory"):
        cache.settle(tmp_path / "file" / "x")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBEWRIGHT_CACHE", raising=False)
    assert cache.cache_directory() == tmp_path / ".cache/kubewright"
    monkeypatch.setenv("KUBEWRIGHT_CACHE", "~/here")
    assert cache.cache_directory() == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBEWRIGHT_CACHE", "there/below")
    assert cache.cache_directory() == tmp_path / "there/below"
    monkeypatch.setenv("KUBEWRIGHT_CACHE", "~no-such-user/x")
    with pytest.raises(UserError, match="KUBEWRIGHT_CACHE: '~no-such-user/x'"):
        cache.cache_directory()


def test_the_command_line_with_a_relative_cache(tmp_path: Path) -> None:
    lock = Path(__file__).resolve().parent.parent.parent / "artifacts.lock.yml"
    argv = [sys.executable, "-m", "kubewright.artifacts", "fetch", "--lock-file", lock, "flanneld"]
    environment = {**os.environ, "KUBEWRIGHT_CACHE": "own"}
    said = subprocess.run(argv, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert said.startswith("flanneld ")
    assert "1 artifacts, 0 MiB, ready in" in said
    [path] = (tmp_path / "own" / "artifacts").glob("sha256/*/*")
    assert "-etcd-endpoints" in subprocess.run([path, "--help"], check=True, capture_output=True, text=True).stderr


@pytest.mark.parametrize("command", ["fetch", "list", "verify", "gc"])
def test_a_cache_that_cannot_be_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parent.parent.parent)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("KUBEWRIGHT_CACHE", str(tmp_path / "file"))
    assert cli.main([command]) == 1
    assert f"{tmp_path}/file/artifacts: Not a directory\n  move away what is there" in capsys.readouterr().err
    # Nobody may make a directory there, not even root.
    monkeypatch.setenv("KUBEWRIGHT_CACHE", "/sys/kubewright")
    assert cli.main([command]) == 1
    assert "make it writable for this user" in capsys.readouterr().err


def test_the_usage_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in ("fetch", "list", "lock", "verify", "gc"):
        assert sum(line.startswith(f"{name} ") for line in shown.splitlines()) == 1
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    lock = Path(__file__).resolve().parent.parent.parent / "artifacts.lock.yml"
    process = subprocess.Popen(
        [sys.executable, "-m", "kubewright.artifacts", "list", "--lock-file", lock],
        env={**os.environ, "KUBEWRIGHT_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
