"""Image archives without a registry or a builder: assembled from files, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from kubewright.errors import UserError

# A pause container holds a pod's namespaces: it must end at once when told to, and use no time meanwhile.
_PAUSE = ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM INT; while :; do /bin/busybox sleep 86400 & wait $!; done"]
_ENTRYPOINTS: dict[str, dict[str, Any]] = {
    "image-pause": {"Entrypoint": _PAUSE},
    "image-busybox": {"Cmd": ["/bin/sh"]},
}


def _member(
    tar: tarfile.TarFile, name: str, content: bytes | None = None, *, mode: int = 0o755, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.mode = mode
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    elif content is None:
        info.type = tarfile.DIRTYPE
    else:
        info.size = len(content)
    tar.addfile(info, io.BytesIO(content) if content else None)


def _layer(busybox: bytes, applets: list[str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in ("bin", "etc", "root"):
            _member(tar, directory)
        _member(tar, "tmp", mode=0o1777)
        _member(tar, "bin/busybox", busybox)
        for applet in applets:
            _member(tar, f"bin/{applet}", link="busybox")
        _member(
            tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", mode=0o644
        )
        _member(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", mode=0o644)
    return stream.getvalue()


def assemble(name: str, reference: str, busybox: bytes, applets: list[str], architecture: str) -> tuple[bytes, str]:
    """(docker-archive, image id) of one of our images. The id is the digest of its configuration."""
    if name not in _ENTRYPOINTS:
        raise UserError(f"{name}: no such image", f"kubewright makes {', '.join(sorted(_ENTRYPOINTS))}")
    layer = _layer(busybox, sorted(set(applets) - {"busybox"}))
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/bin"], **_ENTRYPOINTS[name]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "kubewright"}],
        },
        sort_keys=True,
    ).encode()
    identity = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{identity}.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _member(tar, f"{identity}.json", config, mode=0o644)
        _member(tar, "layer.tar", layer, mode=0o644)
        _member(tar, "manifest.json", manifest, mode=0o644)
    return stream.getvalue(), f"sha256:{identity}"


def recipe(name: str, reference: str) -> str:
    """Digest of what decides an image, busybox apart: it changes when the code above makes something else of it."""
    return hashlib.sha256(assemble(name, reference, b"", [], "")[0]).hexdigest()[:16]


def applets_of(busybox: Path) -> list[str]:
    """What this busybox can do, as it says itself."""
    try:
        reply = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"busybox does not run on this machine: {error}", "is KUBEWRIGHT_CACHE on a disk mounted noexec?"
        ) from error
    return reply.stdout.split()
