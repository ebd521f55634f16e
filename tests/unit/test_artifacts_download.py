"""The sources `upstream` and `mirror`, against a real server on the loopback."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from debian_archive import write_lock
from release_site import Site, good, part, redirect, status

from kubepki import reconcile, spec
from kubewright.artifacts import Settings, download, ensure, heartbeat
from kubewright.errors import UserError

BODY = b"\x7fELF kubelet" + os.urandom(3 << 20)
SHA = hashlib.sha256(BODY).hexdigest()
SUM = f"{SHA}\n".encode()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", download.Patience(silence=0.3, tries=3, pause=0.01))
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"etcd-v3/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def release(url: str, member: str, **more: str) -> dict[str, Any]:
    return {"version": "3.4.23", "upstream": {"url": f"{url}/etcd.tar.gz", "member": f"etcd-v3/{member}", **more}}


def settings(tmp_path: Path, url: str, source: str = "upstream", **artifacts: Any) -> Settings:
    kubernetes = {
        "version": "1.20.2",
        "commit": "0" * 40,
        "upstream": f"{url}/v{{version}}/{{architecture}}",
        "debian": {"package": "kubernetes", "version": "1", "files": {}, "toolchain": []},
    }
    lock = write_lock(tmp_path / "artifacts.lock.yml", kubernetes, artifacts)
    return Settings(source, lock, mirror_url=url if source == "mirror" else "", cache=tmp_path / "cache")


def leftovers(chosen: Settings) -> list[str]:
    """Files of a cache besides its index and locks."""
    found = [path for path in chosen.cache.rglob("*") if path.is_file()]
    return sorted(str(p.relative_to(chosen.cache)) for p in found if p.name not in (".lock", "index.json"))


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def nothing(_: str) -> None:
    return


def test_a_release_of_any_version_with_its_published_checksum(site: Site, tmp_path: Path) -> None:
    site.answers = {"/v1.22.17/amd64/kubelet": [good(BODY)], "/v1.22.17/amd64/kubelet.sha256": [good(SUM)]}
    chosen = settings(tmp_path, site.url)
    chosen = Settings("upstream", chosen.lock_file, kubernetes_version="v1.22.17", cache=chosen.cache)
    found = ensure(["kubelet"], chosen, nothing)["kubelet"]
    assert (found.version, found.sha256, found.size) == ("1.22.17", SHA, len(BODY))
    assert found.path.read_bytes() == BODY
    assert leftovers(chosen) == [f"artifacts/sha256/{SHA[:2]}/{SHA}"]
    ensure(["kubelet"], chosen, nothing)
    assert len(site.seen) == 2


def test_an_archive_is_downloaded_once_for_all_its_members(site: Site, tmp_path: Path) -> None:
    whole = archive(etcd=b"the server", etcdctl=b"the client")
    sums = f"{'0' * 64}  etcd.zip\n{hashlib.sha256(whole).hexdigest()}  etcd.tar.gz\n"
    site.answers = {"/etcd.tar.gz": [good(whole)], "/SHA256SUMS": [good(sums.encode())]}
    checksum = f"{site.url}/SHA256SUMS"
    entries = {name: release(site.url, name, checksum=checksum) for name in ("etcd", "etcdctl")}
    found = ensure(["etcd", "etcdctl"], settings(tmp_path, site.url, **entries), nothing)
    assert found["etcd"].path.read_bytes() == b"the server"
    assert found["etcdctl"].path.read_bytes() == b"the client"
    assert site.count("/etcd.tar.gz") == 1


def test_an_archive_without_the_member(site: Site, tmp_path: Path) -> None:
    whole = archive(etcd=b"the server")
    site.answers = {"/etcd.tar.gz": [good(whole)]}
    entry = release(site.url, "etcdctl", sha256=hashlib.sha256(whole).hexdigest())
    with pytest.raises(UserError, match=r"etcd\.tar\.gz: no etcd-v3/etcdctl in it") as raised:
        ensure(["etcdctl"], settings(tmp_path, site.url, etcdctl=entry), nothing)
    assert raised.value.hint == f"correct {tmp_path}/artifacts.lock.yml"


def test_missing_checksums_are_named_before_a_download(site: Site, tmp_path: Path) -> None:
    chosen = settings(tmp_path, site.url, etcd=release(site.url, "etcd"))
    with pytest.raises(UserError, match=rf"no sha256 is published of {site.url}/etcd\.tar\.gz\n") as raised:
        ensure(["kubelet", "etcd"], chosen, nothing)
    assert str(chosen.lock_file) in raised.value.hint
    assert site.seen == []


def test_a_mirror_needs_nothing_but_itself(site: Site, tmp_path: Path) -> None:
    site.answers = {"/kubelet": [good(BODY)], "/kubelet.sha256": [good(f"{SHA}  ./kubelet\n".encode())]}
    chosen = settings(tmp_path, site.url, "mirror")
    assert ensure(["kubelet"], chosen, nothing)["kubelet"].sha256 == SHA


def test_a_slow_download_shows_how_far_it_is(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(download, "PATIENCE", download.Patience(silence=20, tries=1))
    said: list[str] = []
    shown = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if " MiB" in line:
            shown.set()

    def answer(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BODY)))
        request.end_headers()
        request.wfile.write(BODY[: 200 << 10])
        # Before what has come is shown, no more comes.
        if shown.wait(10):
            request.wfile.write(BODY[200 << 10 :])

    site.answers = {"/kubelet": [answer], "/kubelet.sha256": [good(SUM)]}
    ensure(["kubelet"], settings(tmp_path, site.url, "mirror"), say)
    assert said[0] == "kubelet 1.20.2 from mirror"
    assert said[-1] == "kubelet: 3.0 of 3.0 MiB"
    assert {"kubelet: 0.1 of 3.0 MiB", "kubelet: 0.2 of 3.0 MiB"} & set(said)


def test_a_silent_server_is_waited_for_aloud(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(download, "PATIENCE", download.Patience(silence=5, tries=1))

    def late(request: Any) -> None:
        time.sleep(1)
        good(BODY)(request)

    site.answers = {"/kubelet": [late], "/kubelet.sha256": [good(SUM)]}
    said: list[str] = []
    ensure(["kubelet"], settings(tmp_path, site.url, "mirror"), said.append)
    assert said.count("kubelet 1.20.2 from mirror, 0 min 00 s") >= 2


def test_what_came_from_a_wrong_mirror_is_not_taken_for_the_right_ones(site: Site, tmp_path: Path) -> None:
    other = b"\x7fELF of another version"
    site.answers = {"/kubelet": [good(BODY)], "/kubelet.sha256": [good(SUM)]}
    site.answers |= {"/right/kubelet": [good(other)]}
    site.answers |= {"/right/kubelet.sha256": [good(hashlib.sha256(other).hexdigest().encode())]}
    wrong = settings(tmp_path, site.url, "mirror")
    assert ensure(["kubelet"], wrong, nothing)["kubelet"].sha256 == SHA
    right = replace(wrong, mirror_url=f"{site.url}/right/")
    assert ensure(["kubelet"], right, nothing)["kubelet"].path.read_bytes() == other
    seen = len(site.seen)
    for again in (right, replace(right, mirror_url=f"{site.url}/right"), wrong):
        ensure(["kubelet"], again, nothing)
    assert len(site.seen) == seen


def test_a_locked_sha256_makes_all_mirrors_one(site: Site, tmp_path: Path) -> None:
    body = archive(etcd=BODY)
    site.answers = {"/etcd.tar.gz": [good(body)]}
    entry = release("http://127.0.0.1:9", "etcd", sha256=hashlib.sha256(body).hexdigest())
    chosen = settings(tmp_path, site.url, "mirror", etcd=entry)
    found = ensure(["etcd"], chosen, nothing)
    assert ensure(["etcd"], replace(chosen, mirror_url="http://127.0.0.1:9/down"), nothing) == found


def test_the_sha256_of_the_lock_file_counts_more_than_the_mirrors(site: Site, tmp_path: Path) -> None:
    locked, other = archive(etcd=b"locked"), archive(etcd=b"other")
    entry = release("http://127.0.0.1:9", "etcd", sha256=hashlib.sha256(locked).hexdigest())
    chosen = settings(tmp_path, site.url, "mirror", etcd=entry)
    sums = hashlib.sha256(other).hexdigest().encode()
    site.answers = {"/etcd.tar.gz": [good(other), good(locked)], "/etcd.tar.gz.sha256": [good(sums)]}
    with pytest.raises(UserError, match="expected"):
        ensure(["etcd"], chosen, nothing)
    assert leftovers(chosen) == []
    assert ensure(["etcd"], chosen, nothing)["etcd"].path.read_bytes() == b"locked"


def test_wrong_content_is_thrown_away(site: Site, tmp_path: Path) -> None:
    chosen = settings(tmp_path, site.url, "mirror")
    site.answers = {"/kubelet": [good(BODY[:-1] + b"?"), good(BODY)], "/kubelet.sha256": [good(SUM)]}
    with pytest.raises(UserError, match=rf"/kubelet: the sha256 is \w+, expected {SHA}\n.*thrown away"):
        ensure(["kubelet"], chosen, nothing)
    assert leftovers(chosen) == []
    assert ensure(["kubelet"], chosen, nothing)["kubelet"].sha256 == SHA


@pytest.mark.parametrize(
    ("checksum", "message"),
    [
        (
            status(404),
            r"answered 404 Not Found: there is no checksum of kubelet\n.*sha256sum kubelet > kubelet\.sha256",
        ),
        (good(b"<html>log in first</html>"), "publishes no sha256 of kubelet"),
        (good(f"{SHA}  another\n".encode()), "publishes no sha256 of kubelet"),
        (good(b""), "publishes no sha256 of kubelet"),
    ],
)
def test_a_checksum_that_is_none(site: Site, tmp_path: Path, checksum: Any, message: str) -> None:
    chosen = settings(tmp_path, site.url, "mirror")
    site.answers = {"/kubelet": [good(BODY)], "/kubelet.sha256": [checksum]}
    with pytest.raises(UserError, match=message):
        ensure(["kubelet"], chosen, nothing)
    assert site.count("/kubelet") == 0
    assert leftovers(chosen) == []


def test_a_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.answers = {"/x": [part(BODY, 1 << 20), good(BODY)]}
    said: list[str] = []
    download.fetch(f"{site.url}/x", tmp_path / "x", said.append)
    assert (tmp_path / "x").read_bytes() == BODY
    assert site.seen == [("/x", ""), ("/x", f"bytes={1 << 20}-")]
    assert said == [f"{site.url}/x: the connection ended after 1048576 of {len(BODY)} bytes; trying again in 0 s"]
    assert names(tmp_path) == ["x"]


def test_a_server_that_knows_no_ranges(site: Site, tmp_path: Path) -> None:
    site.answers = {"/x": [part(BODY, 1000), good(BODY, ranges=False)]}
    download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_file_that_became_shorter_is_begun_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"old" * 1000)
    site.answers = {"/x": [good(b"new")]}
    download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_body_that_is_always_truncated(site: Site, tmp_path: Path) -> None:
    site.answers = {"/x": [part(BODY, 1000)]}
    with pytest.raises(UserError, match=rf"ended after 1000 of {len(BODY)} bytes \(3 tries\)\n.*goes on where it stop"):
        download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert names(tmp_path) == ["x.part"]


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_errors_that_may_pass(site: Site, tmp_path: Path, code: int) -> None:
    site.answers = {"/x": [status(code), status(code), good(BODY)]}
    said: list[str] = []
    download.fetch(f"{site.url}/x", tmp_path / "x", said.append)
    assert (tmp_path / "x").read_bytes() == BODY
    assert [f"answered {code}" in line for line in said] == [True, True]
    site.answers = {"/y": [status(code)]}
    with pytest.raises(UserError, match=rf"answered {code} .*\(3 tries\)"):
        download.fetch(f"{site.url}/y", tmp_path / "y", nothing)
    assert site.count("/y") == 3


def test_the_pauses_grow(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", download.Patience(silence=0.3, tries=4, pause=0.05))
    site.answers = {"/x": [status(500)]}
    begin = time.monotonic()
    with pytest.raises(UserError):
        download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert time.monotonic() - begin > 0.05 + 0.1 + 0.2


@pytest.mark.parametrize(
    ("code", "advice"),
    [(401, "wants a password"), (403, "may this machine read it"), (404, "does this version exist"), (410, "address")],
)
def test_errors_that_stay(site: Site, tmp_path: Path, code: int, advice: str) -> None:
    site.answers = {"/x": [status(code)]}
    with pytest.raises(UserError, match=f"the server answered {code} ") as raised:
        download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert advice in raised.value.hint
    assert site.count("/x") == 1
    assert names(tmp_path) == []


def test_a_server_that_falls_silent(site: Site, tmp_path: Path) -> None:
    over = threading.Event()
    site.answers = {"/x": [part(BODY, 1000, over), good(BODY)], "/y": [part(BODY, 0, over)]}
    try:
        download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
        assert (tmp_path / "x").read_bytes() == BODY
        with pytest.raises(UserError, match=r"timed out \(3 tries\)"):
            download.fetch(f"{site.url}/y", tmp_path / "y", nothing)
    finally:
        over.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused.*3 tries"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", nothing)
    with pytest.raises(UserError, match=r"no-such-host\.invalid.*3 tries"):
        download.fetch("http://no-such-host.invalid/x", tmp_path / "x", nothing)


def test_redirections(site: Site, tmp_path: Path) -> None:
    site.answers = {
        "/x": [redirect(f"{site.url}/elsewhere")],
        "/elsewhere": [good(BODY)],
        "/file": [redirect("file:///etc/passwd")],
        "/round": [redirect(f"{site.url}/round")],
    }
    download.fetch(f"{site.url}/x", tmp_path / "x", nothing)
    assert (tmp_path / "x").read_bytes() == BODY
    for path in ("file", "round"):
        with pytest.raises(UserError, match="the server answered 302"):
            download.fetch(f"{site.url}/{path}", tmp_path / path, nothing)


def test_encryption_is_not_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {"name": "server", "ca": "web", "cn": "web", "profile": "server", "hosts": ["127.0.0.1"]}
    data = {"cas": {"web": {"cn": "web-ca"}}, "certificates": [usage]}
    reconcile.apply(spec.parse(data), tmp_path / "pki", datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pki/server.pem", tmp_path / "pki/server-key.pem")
    site.answers = {"/x": [good(BODY)]}
    with Site(context) as safe:
        safe.answers = {"/x": [good(BODY)], "/down": [redirect(f"{site.url}/x")]}
        with pytest.raises(UserError, match=r"CERTIFICATE_VERIFY_FAILED.*3 tries"):
            download.fetch(f"{safe.url}/x", tmp_path / "x", nothing)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pki/web-ca.pem"))
        download.fetch(f"{safe.url}/x", tmp_path / "x", nothing)
        with pytest.raises(UserError, match="without encryption"):
            download.fetch(f"{safe.url}/down", tmp_path / "y", nothing)


def test_the_proxy_of_the_environment(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers = {"http://mirror.invalid/x": [good(BODY)]}
    monkeypatch.setenv("http_proxy", site.url)
    download.fetch("http://mirror.invalid/x", tmp_path / "x", nothing)
    assert (tmp_path / "x").read_bytes() == BODY
    site.answers = {"http://mirror.invalid/y": [status(407)]}
    with pytest.raises(UserError, match="the proxy of http_proxy"):
        download.fetch("http://mirror.invalid/y", tmp_path / "y", nothing)
    site.answers = {"/z": [good(BODY)]}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    download.fetch(f"{site.url}/z", tmp_path / "z", nothing)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///srv/mirror", "for a directory use artifacts_source: local"),
        ("/srv/mirror", "only http and https"),
        ("ftp://mirror/x", "only http and https"),
        ("http://", "names no host"),
        ("http://a b/", "spaces"),
        ("http://host:port/", "is no URL"),
        ("", "artifacts_mirror_url is empty"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, url: str, message: str) -> None:
    chosen = Settings("mirror", settings(tmp_path, "http://127.0.0.1:9").lock_file, url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="artifacts_mirror_url") as raised:
        ensure(["kubelet"], chosen, nothing)
    assert message in str(raised.value)


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    url = "http://me:geheim@mirror.example/x"
    chosen = Settings("mirror", settings(tmp_path, "http://127.0.0.1:9").lock_file, url, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="user name or password") as raised:
        ensure(["kubelet"], chosen, nothing)
    assert "geheim" not in str(raised.value)


def start(chosen: Settings, *names: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, which can be interrupted even where this one ignores SIGINT (nohup)."""
    argv = ["fetch", "--source", "mirror", "--mirror-url", chosen.mirror_url, "--lock-file", str(chosen.lock_file)]
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "kubewright.artifacts", *argv, *names],
        env={**os.environ, "KUBEWRIGHT_CACHE": str(chosen.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def received(chosen: Settings) -> int:
    """How much of the file has come in."""
    return sum(path.stat().st_size for path in (chosen.cache / "download").glob("*kubelet.part"))


def wait(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not within 20 s")


def test_two_processes_download_once(site: Site, tmp_path: Path) -> None:
    over = threading.Event()
    chosen = settings(tmp_path, site.url, "mirror")

    def slow(request: Any) -> None:
        over.wait(20)
        good(BODY)(request)

    site.answers = {"/kubelet": [slow], "/kubelet.sha256": [good(SUM)]}
    try:
        first = start(chosen, "kubelet")
        wait(lambda: site.count("/kubelet"))
        second = start(chosen, "kubelet")
        assert second.stdout
        assert second.stdout.readline() == "kubelet 1.20.2 from mirror\n"
        assert second.stdout.readline() == f"process {first.pid} is downloading already: waiting for it\n"
    finally:
        over.set()
    for process in (first, second):
        out, error = process.communicate(timeout=20)
        assert (process.returncode, error) == (0, ""), out
    assert site.count("/kubelet") == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_process_leaves_nothing_bad(site: Site, tmp_path: Path, ending: signal.Signals) -> None:
    over = threading.Event()
    chosen = settings(tmp_path, site.url, "mirror")
    site.answers = {"/kubelet": [part(BODY, 2 << 20, over), good(BODY)], "/kubelet.sha256": [good(SUM)]}
    try:
        process = start(chosen, "kubelet")
        wait(lambda: received(chosen) >= 1 << 20)
        process.send_signal(ending)
        _, error = process.communicate(timeout=20)
    finally:
        over.set()
    if ending is signal.SIGINT:
        assert (process.returncode, error) == (130, "interrupted; running again goes on where it stopped\n")
    assert leftovers(chosen) == [f"download/{SHA[:12]}-kubelet.part"]
    have = received(chosen)
    assert ensure(["kubelet"], chosen, nothing)["kubelet"].sha256 == SHA
    assert site.seen[-1] == ("/kubelet", f"bytes={have}-")
    assert leftovers(chosen) == [f"artifacts/sha256/{SHA[:2]}/{SHA}"]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (SHA, SHA),
        (SHA.upper(), SHA),
        (f"{SHA}  file\n", SHA),
        (f"{SHA} *file\n", SHA),
        (f"{'0' * 64}  other\n{SHA}  ./dist/file\n", SHA),
        (f"{SHA}  other\n", ""),
        (f"{SHA[:-1]}  file\n", ""),
        (f"{'g' * 64}  file\n", ""),
        ("", ""),
    ],
)
def test_what_checksum_files_say(text: str, digest: str) -> None:
    assert download.checksum_of(text, "file") == digest
