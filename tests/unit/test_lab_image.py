"""The base image in the cache: whole, or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubewright import cache
from kubewright.lab import image
from kubewright.lab.apt import AptSource


def test_an_image_has_its_name_only_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEWRIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(image, "host_source", lambda: AptSource("http://mirror.example/debian", "bookworm", ("main",)))
    monkeypatch.setattr(image, "require_space", lambda *_: None)
    # In their place: two minutes of debootstrap, as root.
    monkeypatch.setattr(image, "_debootstrap", lambda _source, root, *_: root.mkdir())
    monkeypatch.setattr(image, "_configure", lambda root: (root / "file").write_text("x"))
    settled: list[list[str]] = []

    def settle(path: Path) -> None:
        cache.settle(path)
        assert (path / "rootfs" / "file").exists()
        settled.append([p.name for p in image.images_directory().glob("[!.]*")])

    monkeypatch.setattr(image, "settle", settle)
    said: list[Any] = []
    name = image.ensure_image(said.append)
    assert settled == [[]]
    assert (image.images_directory() / name / "rootfs" / "file").exists()
    assert image.ensure_image(said.append) == name
    assert len(settled) == 1
