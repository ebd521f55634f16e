"""A full disk: a small tmpfs in a mount namespace of its own, with the real programs on it."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import Archive, write_lock
from release_site import Site, good

_BODY = os.urandom(3 << 20)
# Runs a command with a small disk mounted at $0, and then lists the files on it.
_WITH_DISK = """
mount -t tmpfs -o "size=$1" tmpfs "$0" && shift && "$@" >&2
status=$?
find "$0" -type f ! -name .lock
exit $status
"""
_CLI = """
import sys
from pathlib import Path
from kubewright.artifacts import cli, debian
debian._HOST_SOURCES = Path(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""
# A build of small things, twice.
_BUILD = """
import sys
from pathlib import Path
from kubewright.artifacts import cli, debian, kubernetes_build
debian._HOST_SOURCES = Path(sys.argv[1])
kubernetes_build._NEEDED_BYTES, kubernetes_build._END_BYTES = 30 << 20, 2 << 20
for _ in range(2):
    status = cli.main(sys.argv[2:])
sys.exit(status)
"""
_NOTHING = {
    "version": "1.20.2",
    "commit": "0" * 40,
    "upstream": "http://127.0.0.1:9",
    "debian": {"package": "kubernetes", "version": "1", "files": {}, "toolchain": []},
}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk")
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def run(
    disk: Path, size: str, *argv: str | Path, sources: Path = Path("/nowhere"), script: str = _CLI
) -> tuple[int, str, list[str]]:
    """(exit status, what was said, files on the disk afterwards) of a command of kubewright.artifacts."""
    reply = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _WITH_DISK, disk, size, sys.executable, "-c", script, sources, *argv],
        env={**os.environ, "KUBEWRIGHT_CACHE": str(disk / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    return reply.returncode, reply.stderr, [line.removeprefix(f"{disk}/") for line in reply.stdout.splitlines()]


def test_the_store(disk: Path, tmp_path: Path) -> None:
    lock = write_lock(tmp_path / "lock.yml", _NOTHING, {"etcd": {"version": "3.4.23"}})
    (tmp_path / "etcd").write_bytes(_BODY)
    fetch = ["fetch", "--lock-file", lock, "--source", "local", "--dir", tmp_path, "etcd"]
    status, said, left = run(disk, "1m", *fetch)
    assert (status, left) == (1, [])
    assert f"{disk}/cache/artifacts: No space left on device (" in said
    assert "free some space, or set KUBEWRIGHT_CACHE to a directory on a larger disk" in said
    status, said, left = run(disk, "8m", *fetch)
    assert (status, len(left)) == (0, 2), said


def test_a_download(disk: Path, tmp_path: Path) -> None:
    lock = write_lock(tmp_path / "lock.yml", _NOTHING, {})
    with Site() as site:
        site.answers = {"/kubelet": [good(_BODY)], "/kubelet.sha256": [good(b"0" * 64)]}
        fetch = ["fetch", "--lock-file", lock, "--source", "mirror", "--mirror-url", site.url, "kubelet"]
        status, said, left = run(disk, "1m", *fetch)
    assert (status, left) == (1, [])
    assert "No space left on device" in said
    assert "tries" not in said
    assert site.count("/kubelet") == 1


@pytest.fixture(params=["file", "http"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """apt treats archives on a disk and those on a network each in its own way."""
    made = Archive(tmp_path)
    if request.param == "file":
        yield made
        return
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=made.pool)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02]).start()
        port = server.server_address[1]
        (made.sources / "sources.list").write_text(f"deb [trusted=yes] http://127.0.0.1:{port}/ ./\n")
        yield made
        server.shutdown()


def test_packages(disk: Path, tmp_path: Path, archive: Archive) -> None:
    package = archive.package("etcd-server", "3.4.23-4", {"usr/bin/etcd": "\x7fELF" + "etcd" * (4 << 20)})
    entry = {"version": "3.4.23", "debian": {**package, "member": "usr/bin/etcd"}}
    lock = write_lock(tmp_path / "lock.yml", _NOTHING, {"etcd": entry})
    # Of one size the download does not fit, of the other what is in it; apt itself takes a few MiB.
    for size in ("12m", "28m"):
        status, said, left = run(disk, size, "fetch", "--lock-file", lock, "etcd", sources=archive.sources)
        assert status == 1, said
        assert "No space left on device" in said, said
        assert "free some space, or set KUBEWRIGHT_CACHE to a directory on a larger disk" in said
        assert {path.split("/")[1] for path in left} == {"apt"}
        debs = [path for path in left if path.endswith(".deb")]
        assert len(debs) == (1 if size == "28m" else 0)


def build(disk: Path, tmp_path: Path, before: str) -> tuple[int, str]:
    """Exit status, and what was said, of two runs of a build on a disk of 40 MiB; `before`: what Go does at first."""
    archive = Archive(tmp_path)
    go = f'[ "$3" != ./cmd/kubelet ] || [ -e {tmp_path}/second ] || {{ touch {tmp_path}/second; {before}; }}'
    lock = write_lock(tmp_path / "lock.yml", archive.kubernetes(tmp_path / "journal", before=go), {})
    status, said, _ = run(disk, "40m", "fetch", "--lock-file", lock, "kubelet", sources=archive.sources, script=_BUILD)
    return status, said


def test_what_a_build_has_on_the_disk_already_counts(disk: Path, tmp_path: Path) -> None:
    status, said = build(disk, tmp_path, 'mkdir -p "$GOCACHE"; head -c 20M /dev/zero > "$GOCACHE/x"; exit 3')
    assert "failed with status 3" in said
    assert (status, "MiB free" in said) == (0, False), said


@pytest.mark.parametrize("quiet", ["", "2>/dev/null"])
def test_a_build_that_fills_the_disk(disk: Path, tmp_path: Path, quiet: str) -> None:
    status, said = build(disk, tmp_path, f'head -c 60M /dev/zero > "$TMPDIR/x" {quiet} || exit 2')
    assert (
        f"kubernetes 1.20.2: building kubelet (4 of 6): the disk of {disk}/cache/build is full (0 MiB free)\n" in said
    )
    assert "the rest takes about 2 MiB: free as much there and run again, it goes on where it stopped; or set" in said
    # What the compiler had left in its temporary directory went before the room was looked for.
    assert status == 0, said


def test_the_lock_file(disk: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    kubernetes = archive.kubernetes(tmp_path / "journal")
    package = archive.package("etcd-server", "3.4.23-4", {"usr/bin/etcd": "etcd"})
    entry = {"version": "3.4.23", "debian": {**package, "member": "usr/bin/etcd"}}
    original = write_lock(tmp_path / "lock.yml", kubernetes, {"etcd": entry})
    archive.package("etcd-server", "3.4.23-5", {"usr/bin/etcd": "etcd"})
    script = (
        'cp "$1" "$2/lock.yml" && { dd if=/dev/zero of="$2/full" 2>/dev/null; '
        'KUBEWRIGHT_CACHE="$3" "$4" -c "$5" "$6" lock --lock-file "$2/lock.yml"; s=$?; '
        'cmp "$1" "$2/lock.yml" && ls -A "$2"; exit $s; }'
    )
    reply = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$2" && sh -c "$0" sh "$@"', script]
        + [str(word) for word in (original, disk, tmp_path / "cache", sys.executable, _CLI, archive.sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert reply.returncode == 1
    assert f"{disk}/lock.yml: cannot be written: No space left on device\n  the old one is still there" in reply.stderr
    assert reply.stdout.split() == ["full", "lock.yml"]


# $0: the disk, $1: a directory with specifications, $2: Python
_KUBEPKI = """
mount -t tmpfs -o size=64k,mode=755 tmpfs "$0"
look() { (cd "$0" && find . -type f | sort | xargs sha256sum); }
"$2" -m kubepki apply "$1/small.yml" -C "$0/pki" || exit 9
look > "$1/before"
"$2" -m kubepki apply "$1/large.yml" -C "$0/pki" && exit 8
mount -o remount,ro "$0"
"$2" -m kubepki apply "$1/changed.yml" -C "$0/pki" && exit 7
"$2" -m kubepki plan "$1/small.yml" -C "$0/pki" || exit 6
look > "$1/after"
"""


def test_keys_and_certificates(disk: Path, tmp_path: Path) -> None:
    def specification(name: str, *names: str) -> None:
        leaves = "".join(f"  - {{name: {one}, ca: k, cn: {name}, profile: client}}\n" for one in names)
        (tmp_path / f"{name}.yml").write_text(f"cas: {{k: {{cn: k}}}}\ncertificates:\n{leaves}")

    specification("small", "a")
    specification("changed", "a")
    # Also the one that is there would be replaced.
    specification("large", "a", *(f"b{number}" for number in range(20)))
    reply = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _KUBEPKI, disk, tmp_path, sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert reply.returncode == 0, reply
    full, read_only = reply.stderr.split("kubepki: ")[1:]
    assert full.startswith(f"{disk}/pki/b")
    assert "cannot be written: No space left on device\n  mend that and run again; the files that are" in full
    assert read_only.startswith(f"{disk}/pki: cannot be written: Read-only file system\n")
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text() != ""
