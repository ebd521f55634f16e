"""The lock file, directories of the user's, images, and how they meet in the catalog."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubewright.artifacts import Settings, catalog, elf, ensure, images, kubernetes_build, lock
from kubewright.artifacts.local import LocalDirectory
from kubewright.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
CONTENT = b"\x7fELF" + b"\0" * 14 + struct.pack("<H", 62) + os.urandom(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


def program(text: bytes) -> bytes:
    """A statically linked program for Linux on amd64 that writes a text and ends."""
    # write(1, text, length); exit(0)
    code = b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\x10\0\0\0\xba" + struct.pack("<I", len(text))
    code += b"\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05"
    base, offset = 0x400000, 64 + 56
    size = offset + len(code) + len(text)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + offset, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code + text


def pack(path: Path, member: str, content: bytes = CONTENT) -> None:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "version: 3.4.23",
            "version: 3.4",
            "artifacts.etcd.version is 3.4, which is no text (write a number in quotes)",
        ),
        ("  commit: ", "  comment: ", "kubernetes.commit is missing"),
        ("      sha256: 3a9445d4560ad6", "      sha265: 3a9445d4560ad6", "artifacts.etcd.debian.sha256 is missing"),
        ("    toolchain:\n", "    toolchain: 5\n    x:\n", "kubernetes.debian.toolchain is 5, which is no list"),
        ("    reference: kubewright/pause:3.2\n", "", "artifacts.image-pause.reference is missing"),
        ("architecture: amd64", "architecture: [", "cannot be read"),
    ],
)
def test_damage_in_the_lock_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "artifacts.lock.yml").read_text()
    assert old in text
    (tmp_path / "lock.yml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        lock.load(tmp_path / "lock.yml")
    assert message in str(raised.value)
    assert "git checkout artifacts.lock.yml" in raised.value.hint


def test_a_lock_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        lock.load(tmp_path / "lock.yml")
    (tmp_path / "lock.yml").touch()
    with pytest.raises(UserError, match="the file: None is no mapping"):
        lock.load(tmp_path / "lock.yml")


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


@pytest.mark.parametrize("said", [b"Kubernetes v1.21.3\n", b"Kubernetes v1.20.20-rc.1\n"])
def test_another_version_than_the_configured_one_is_refused(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "kubelet").write_bytes(program(said))
    chosen = settings(tmp_path, source="local", directory=str(tmp_path), kubernetes_version="1.20.2")
    release = said.decode().removeprefix("Kubernetes v").partition("-")[0].strip()
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            ensure(["kubelet"], chosen, silent)
        assert str(raised.value) == (
            f"kubelet of {tmp_path} is Kubernetes {release}, kube_version is 1.20.2\n"
            f"  set kube_version: '{release}', or get the files of 1.20.2"
        )
    right = settings(tmp_path, source="local", directory=str(tmp_path), kubernetes_version=release)
    assert ensure(["kubelet"], right, silent)["kubelet"].version == release


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kubelet", program(b"Kubernetes v1.20.2-vendor.7+x\n")),
        ("kubelet", program(b"flavour of our own, Kubernetes v1.21.3\n")),
        ("kubelet", b"#!/bin/sh\nexit 3\n"),
        # Runs nowhere.
        ("kubelet", CONTENT),
        ("kubectl", program(b"Kubernetes v1.21.3\n")),
        ("etcd", program(b"Kubernetes v1.21.3\n")),
    ],
)
def test_what_does_not_contradict_is_taken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    chosen = settings(tmp_path, source="local", directory=str(tmp_path), kubernetes_version="1.20.2")
    assert ensure([name], chosen, silent)[name].path.read_bytes() == content


def test_a_release_archive(tmp_path: Path) -> None:
    pack(tmp_path / "etcd.tar.gz", "etcd-v3.4.26-linux-amd64/etcd")
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


def test_another_directory_is_another_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kubelet").write_bytes(CONTENT + name.encode())
        os.utime(tmp_path / name / "kubelet", (0, 0))
    for name in ("one", "two", "one"):
        chosen = settings(tmp_path, source="local", directory=str(tmp_path / name))
        assert ensure(["kubelet"], chosen, silent)["kubelet"].path.read_bytes().endswith(name.encode())


def test_damage_in_a_directory_is_named(tmp_path: Path) -> None:
    chosen = settings(tmp_path, source="local", directory=str(tmp_path))
    (tmp_path / "etcd.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"etcd\.tar\.gz: damaged"):
        ensure(["etcd"], chosen, silent)
    pack(tmp_path / "etcd.tar.gz", "etcd")
    whole = (tmp_path / "etcd.tar.gz").read_bytes()
    (tmp_path / "etcd.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"etcd\.tar\.gz: damaged"):
        ensure(["etcd"], chosen, silent)
    (tmp_path / "etcd").write_bytes(CONTENT)
    (tmp_path / "etcd.sha256").write_text("")
    with pytest.raises(UserError, match="holds no sha256"):
        ensure(["etcd"], chosen, silent)


@pytest.mark.parametrize("sums", ["etcd.tgz.sha256", "SHA256SUMS"])
def test_an_archive_is_checked_before_it_is_read(tmp_path: Path, sums: str) -> None:
    chosen = settings(tmp_path, source="local", directory=str(tmp_path))
    pack(tmp_path / "etcd.tgz", "etcd")
    digest = hashlib.sha256((tmp_path / "etcd.tgz").read_bytes()).hexdigest()
    (tmp_path / sums).write_text(f"{'0' * 64}  etcd.tgz\n")
    with pytest.raises(UserError, match=rf"etcd\.tgz: the sha256 is {digest}, expected 0000.*\n.*get both again"):
        ensure(["etcd"], chosen, silent)
    assert not list((tmp_path / "cache").glob("artifacts/sha256/*/*"))
    (tmp_path / sums).write_text(f"{digest}  etcd.tgz\n")
    assert ensure(["etcd"], chosen, silent)["etcd"].sha256 == SHA


def test_checksums_in_the_directory_of_a_file_or_above(tmp_path: Path) -> None:
    chosen = settings(tmp_path, source="local", directory=str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "runc").write_bytes(CONTENT)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  bin/runc\n")
    with pytest.raises(UserError, match="expected 0000"):
        ensure(["runc"], chosen, silent)
    (tmp_path / "bin" / "SHA256SUMS").write_text(f"{SHA} *runc\n")
    assert ensure(["runc"], chosen, silent)["runc"].sha256 == SHA


def test_an_archive_is_hashed_once_for_all_its_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "docker.tgz", "w:gz") as tar:
        for name in ("docker", "dockerd"):
            info = tarfile.TarInfo(f"docker/{name}")
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    beside = tmp_path / "docker.tgz.sha256"
    beside.write_text(hashlib.sha256((tmp_path / "docker.tgz").read_bytes()).hexdigest())
    directory = LocalDirectory(tmp_path)
    with directory.find("docker") as (stream, _):
        assert stream.read() == CONTENT
    beside.unlink()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  docker.tgz\n")
    with directory.find("dockerd") as (stream, _):
        assert stream.read() == CONTENT


def test_a_directory_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "etcd").write_bytes(CONTENT)
    (tmp_path / "bin").chmod(0)
    user = os.geteuid()
    # Root may read everything.
    os.seteuid(user or 65534)
    try:
        for ask in (LocalDirectory(tmp_path).signature, LocalDirectory(tmp_path).holds):
            with pytest.raises(UserError, match=r"artifacts_dir: .*: Permission denied\n.*readable"):
                ask("etcd")
        with (
            pytest.raises(UserError, match=r"artifacts_dir: .*: Permission denied"),
            LocalDirectory(tmp_path).find("etcd"),
        ):
            pass
    finally:
        os.seteuid(user)
        (tmp_path / "bin").chmod(0o755)


def test_a_directory_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "runc").write_bytes(CONTENT)
    chosen = settings(tmp_path, source="local", directory="~/releases")
    assert ensure(["runc"], chosen, silent)["runc"].sha256 == SHA
    with pytest.raises(UserError, match="artifacts_dir: '~no-such-user/x'"):
        ensure(["runc"], settings(tmp_path, source="local", directory="~no-such-user/x"), silent)
    with pytest.raises(UserError, match="artifacts_dir is empty"):
        ensure(["runc"], settings(tmp_path, source="local"), silent)


def test_images_come_from_one_place_whatever_the_source(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    all_settings = [
        settings(tmp_path, source="debian"),
        settings(tmp_path, source="upstream"),
        settings(tmp_path, source="mirror", mirror_url="http://127.0.0.1:9"),
        settings(tmp_path, source="local", directory=str(tmp_path / "own")),
    ]
    keys = {catalog.Catalog(chosen, silent).key("image-pause") for chosen in all_settings}
    assert len(keys) == 1
    (tmp_path / "own" / "busybox").write_bytes(program(b"sh\n"))
    assert catalog.Catalog(all_settings[3], silent).key("image-pause") not in keys


def test_images_of_a_busybox_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "busybox").write_bytes(program(b"sh\nping\nbusybox\n"))
    chosen = settings(tmp_path, source="upstream", directory=str(own))
    found = ensure(["image-busybox"], chosen, silent)["image-busybox"]
    assert (found.kind, found.version) == ("image", "1.35")
    with tarfile.open(found.path) as tar:
        layer = tar.extractfile("layer.tar")
        assert layer
        with tarfile.open(fileobj=layer) as files:
            assert {"bin/busybox", "bin/sh", "bin/ping", "etc/passwd"} <= set(files.getnames())
    (own / "busybox.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match="expected 0000"):
        ensure(["image-busybox"], chosen, silent)
    (own / "busybox.sha256").unlink()
    (own / "busybox").write_bytes(Path("/bin/ls").read_bytes())
    with pytest.raises(UserError, match="is not a statically linked program"):
        ensure(["image-busybox"], chosen, silent)


def test_programs() -> None:
    assert elf.architecture(io.BytesIO(CONTENT)) == "amd64"
    assert elf.architecture(io.BytesIO(b"#!/bin/sh\n")) == ""
    assert elf.is_static(program(b""))
    assert not elf.is_static(Path("/bin/ls").read_bytes())
    assert not elf.is_static(b"#!/bin/sh\n")
    assert not elf.is_static(program(b"")[:100])


def test_an_image_that_nobody_knows(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "artifacts.lock.yml").read_text())
    data["artifacts"]["image-nginx"] = data["artifacts"]["image-pause"]
    (tmp_path / "lock.yml").write_text(yaml.safe_dump(data))
    chosen = Settings("debian", tmp_path / "lock.yml", cache=tmp_path / "cache")
    with pytest.raises(UserError, match="image-nginx: no such image"):
        ensure(["image-nginx"], chosen, silent)


def test_other_versions_need_another_source_than_debian(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.21\.0 cannot be built"):
        ensure(["kubelet"], settings(tmp_path, source="debian", kubernetes_version="1.21.0"), silent)
    with pytest.raises(UserError, match="must be one of"):
        ensure(["kubelet"], settings(tmp_path, source="ubuntu"), silent)


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


def test_the_build_key_knows_its_inputs() -> None:
    recipe = lock.load(ROOT / "artifacts.lock.yml").kubernetes
    other = json.loads(json.dumps(recipe))
    other["debian"]["toolchain"][0]["sha256"] = "0" * 64
    assert kubernetes_build.key(recipe) != kubernetes_build.key(other)
    assert kubernetes_build.work_key(recipe) != kubernetes_build.work_key(other)
    # What is only linked otherwise is compiled once.
    for stamp in ({"version": "1.21.14"}, {"build": "mine"}, {"commit": "0" * 40}):
        assert kubernetes_build.key({**recipe, **stamp}) != kubernetes_build.key(recipe)
        assert kubernetes_build.work_key({**recipe, **stamp}) == kubernetes_build.work_key(recipe)


def test_the_version_is_stamped_where_gopath_mode_looks() -> None:
    flags = kubernetes_build.link_flags("1.20.2", "abc")
    assert "-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v1.20.2" in flags
    assert "client-go/pkg/version.gitMinor=20" in flags
