from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import struct
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubewright.artifacts import (
    Settings,
    catalog,
    debian,
    download,
    ensure,
    images,
    kubernetes_build,
    local,
    lock,
    store,
)
from kubewright.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
CONTENT = b"\x7fELF" + b"\0" * 14 + struct.pack("<H", 62) + os.urandom(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


def silent(_: str) -> None:
    return


def test_the_lock_file_of_the_repository() -> None:
    found = lock.load(ROOT / "artifacts.lock.yml")
    for name in lock.KUBERNETES:
        assert found.entry(name).version == "1.20.2"
    for entry in found.entries.values():
        detail = entry.sources.get("debian", {})
        assert len(detail.get("sha256", SHA)) == 64, entry.name
    with pytest.raises(UserError, match="no artifact 'kubelt'"):
        found.entry("kubelt")


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    assert kept.add("a/1", io.BytesIO(CONTENT), SHA) == SHA
    assert store.Store(tmp_path).find("a/1") == (SHA, {})
    assert kept.path_of(SHA).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    with pytest.raises(UserError, match="expected 0000"):
        kept.add("a/1", io.BytesIO(CONTENT), "0" * 64)
    assert kept.find("a/1") is None
    assert [p for p in kept.root.rglob("*") if p.is_file()] == []


def test_a_damaged_file_is_not_handed_out(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    kept.add("a/1", io.BytesIO(CONTENT), SHA)
    kept.path_of(SHA).write_bytes(CONTENT[:100])
    assert kept.find("a/1") is None
    kept.add("a/1", io.BytesIO(CONTENT), SHA)
    assert kept.find("a/1") == (SHA, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        kept = store.Store(tmp_path)
        with pytest.raises(UserError, match="No space left on device"):
            kept.add("a/1", io.BytesIO(CONTENT), SHA)
        assert kept.find("a/1") is None
        assert not list(kept.root.glob(".incoming-*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under /file, half of it on the first try under /half."""

    served = 0

    def log_message(self, *args: Any) -> None:
        del args

    def do_GET(self) -> None:
        if self.path not in ("/file", "/half", "/file.sha256", "/kubelet", "/kubelet.sha256"):
            self.send_error(404)
            return
        name = self.path.strip("/").removesuffix(".sha256")
        body = f"{SHA}  {name}\n".encode() if self.path.endswith(".sha256") else CONTENT
        wanted = self.headers.get("Range")
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        Handler.served += 1
        broken = self.path == "/half" and not wanted
        self.wfile.write(body[begin : len(body) // 2] if broken else body[begin:])


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_a_broken_download_goes_on_where_it_stopped(server: str, tmp_path: Path) -> None:
    download.fetch(f"{server}/half", tmp_path / "x", silent)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert not (tmp_path / "x.part").exists()


def test_what_is_not_there(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answered 404"):
        download.fetch(f"{server}/nothing", tmp_path / "x", silent)
    with pytest.raises(UserError, match="only http"):
        download.fetch("file:///etc/passwd", tmp_path / "x", silent)
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match=r"refused.*3 tries"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", silent)


def test_published_checksums(server: str, tmp_path: Path) -> None:
    assert download.published_checksum(f"{server}/file.sha256", "file", silent, tmp_path) == SHA
    with pytest.raises(UserError, match="publishes no sha256 of other"):
        download.published_checksum(f"{server}/file.sha256", "other", silent, tmp_path)


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(lock_file=ROOT / "artifacts.lock.yml", cache=tmp_path / "cache", **changes)


def test_a_directory_of_any_version(tmp_path: Path) -> None:
    release = tmp_path / "release" / "kubernetes" / "server" / "bin"
    release.mkdir(parents=True)
    (release / "kubelet").write_bytes(CONTENT)
    chosen = settings(tmp_path, source="local", directory=str(tmp_path / "release"), kubernetes_version="1.22.17")
    found = ensure(["kubelet"], chosen, silent)["kubelet"]
    assert (found.version, found.sha256) == ("1.22.17", SHA)
    assert os.access(found.path, os.X_OK)


def test_a_release_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "etcd.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("etcd-v3.4.26-linux-amd64/etcd")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    found = ensure(["etcd"], settings(tmp_path, source="local", directory=str(tmp_path)), silent)
    assert found["etcd"].sha256 == SHA


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        ensure(["etcd"], settings(tmp_path, source="local", directory=str(tmp_path / "no")), silent)
    with pytest.raises(UserError, match="no file 'etcd' there"):
        ensure(["etcd"], settings(tmp_path, source="local", directory=str(tmp_path)), silent)
    (tmp_path / "etcd").write_bytes(CONTENT.replace(struct.pack("<H", 62), struct.pack("<H", 183), 1))
    with pytest.raises(UserError, match="is for arm64, the machines are amd64"):
        ensure(["etcd"], settings(tmp_path, source="local", directory=str(tmp_path)), silent)
    (tmp_path / "etcd").write_bytes(CONTENT)
    (tmp_path / "etcd.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match="expected 0000"):
        ensure(["etcd"], settings(tmp_path, source="local", directory=str(tmp_path)), silent)


def test_a_directory_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    (tmp_path / "kubelet").write_bytes(CONTENT)
    chosen = settings(tmp_path, source="local", directory=str(tmp_path))
    assert catalog.Catalog(chosen, silent).cached("kubelet") is None
    ensure(["kubelet"], chosen, silent)
    cached = catalog.Catalog(chosen, silent).cached("kubelet")
    assert cached
    assert cached.sha256 == SHA
    (tmp_path / "kubelet").write_bytes(CONTENT + b"changed")
    assert ensure(["kubelet"], chosen, silent)["kubelet"].sha256 != SHA


def test_damage_in_a_directory_is_named(tmp_path: Path) -> None:
    chosen = settings(tmp_path, source="local", directory=str(tmp_path))
    (tmp_path / "etcd.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"etcd\.tar\.gz: damaged"):
        ensure(["etcd"], chosen, silent)
    with tarfile.open(tmp_path / "etcd.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("etcd")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    whole = (tmp_path / "etcd.tar.gz").read_bytes()
    (tmp_path / "etcd.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"etcd\.tar\.gz: damaged"):
        ensure(["etcd"], chosen, silent)
    (tmp_path / "etcd").write_bytes(CONTENT)
    (tmp_path / "etcd.sha256").write_text("")
    with pytest.raises(UserError, match="holds no sha256"):
        ensure(["etcd"], chosen, silent)


def test_a_mirror_needs_nothing_but_itself(server: str, tmp_path: Path) -> None:
    chosen = settings(tmp_path, source="mirror", mirror_url=server)
    assert ensure(["kubelet"], chosen, silent)["kubelet"].sha256 == SHA


def test_images_come_from_the_same_place_whatever_the_source(tmp_path: Path) -> None:
    keys = set()
    for source in catalog.SOURCES:
        found = catalog.Catalog(settings(tmp_path, source=source), silent)
        keys.add(found.key(lock.load(ROOT / "artifacts.lock.yml").entry("image-pause")))
    assert len(keys) == 1


def test_missing_checksums_are_all_named_before_a_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sha256 is published of https://\S+/docker-20\.10\.24\.tgz\n") as raised:
        ensure(["kubelet", "dockerd", "runc"], settings(tmp_path, source="upstream"), silent)
    assert "artifacts.lock.yml" in raised.value.hint


def test_content_under_two_keys_is_not_hashed_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.Store(tmp_path)
    kept.add("a", io.BytesIO(CONTENT))
    kept.add("b", io.BytesIO(CONTENT))
    assert kept.find("a") == (SHA, {})
    monkeypatch.delattr(store, "_digest")
    assert kept.find("a") == kept.find("b") == (SHA, {})


def test_other_versions_need_another_source_than_debian(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.21\.0 cannot be built"):
        ensure(["kubelet"], settings(tmp_path, source="debian", kubernetes_version="1.21.0"), silent)
    with pytest.raises(UserError, match="must be one of"):
        ensure(["kubelet"], settings(tmp_path, source="ubuntu"), silent)


def test_architectures() -> None:
    assert local.architecture(CONTENT[:20]) == "amd64"
    assert local.architecture(b"#!/bin/sh") == ""


def test_images_are_the_same_bytes_every_time() -> None:
    first = images.assemble("image-pause", "kubewright/pause:3.2", b"busybox", ["sh", "ping"], "amd64")
    assert first == images.assemble("image-pause", "kubewright/pause:3.2", b"busybox", ["ping", "sh"], "amd64")
    archive, identity = first
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        stream = tar.extractfile("manifest.json")
        assert stream
        [manifest] = json.load(stream)
        config = tar.extractfile(manifest["Config"])
        layer = tar.extractfile("layer.tar")
        assert config
        assert layer
        content = config.read()
        assert identity == "sha256:" + hashlib.sha256(content).hexdigest()
        diff = json.loads(content)["rootfs"]["diff_ids"]
        assert diff == ["sha256:" + hashlib.sha256(layer.read()).hexdigest()]


def test_sources_of_the_host_with_source_packages() -> None:
    assert debian.with_sources("Types: deb\nURIs: x\n", deb822=True) == "Types: deb deb-src\nURIs: x\n"
    assert debian.with_sources("deb x y main\n# deb z\n", deb822=False) == "deb x y main\ndeb-src x y main\n"


def test_the_build_key_knows_its_inputs() -> None:
    recipe = lock.load(ROOT / "artifacts.lock.yml").kubernetes
    other = json.loads(json.dumps(recipe))
    other["debian"]["toolchain"][0]["sha256"] = "0" * 64
    assert kubernetes_build.key(recipe) != kubernetes_build.key(other)


def test_the_version_is_stamped_where_gopath_mode_looks() -> None:
    flags = kubernetes_build.link_flags("1.20.2", "abc")
    assert "-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v1.20.2" in flags
    assert "client-go/pkg/version.gitMinor=20" in flags


def test_a_builder_without_its_tools_names_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = lock.load(ROOT / "artifacts.lock.yml").kubernetes
    builder = kubernetes_build.Builder(tmp_path, recipe, debian.Apt(tmp_path), silent)
    with pytest.raises(UserError, match=r"rsync.*dpkg-dev"):
        builder.build()
