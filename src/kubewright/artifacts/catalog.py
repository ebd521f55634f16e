"""From a name to a verified file: which source, and what it takes."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from kubewright.artifacts import debian, download, images, kubernetes_build, local
from kubewright.artifacts.lock import KUBERNETES, Entry, Lock, load
from kubewright.artifacts.store import Artifact, Store, cache_directory
from kubewright.errors import UserError

SOURCES = ("upstream", "mirror", "local", "debian")
FLANNELD = "flanneld"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Where artifacts come from. `kubernetes_version` empty: the locked one."""

    source: str
    lock_file: Path
    mirror_url: str = ""
    directory: str = ""
    kubernetes_version: str = ""
    cache: Path = field(default_factory=cache_directory)


class Catalog:
    """Obtains artifacts for one run."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        if settings.source not in SOURCES:
            raise UserError(f"artifacts_source: {settings.source!r}", f"it must be one of {', '.join(SOURCES)}")
        self._settings = settings
        self._progress = progress
        self._lock: Lock = load(settings.lock_file)
        self._store = Store(settings.cache)
        self._apt = debian.Apt(settings.cache / "apt")

    def _entry(self, name: str) -> Entry:
        if name == FLANNELD:
            return Entry(FLANNELD, flanneld_version(), "binary", {})
        entry = self._lock.entry(name)
        wanted = self._settings.kubernetes_version
        if name not in KUBERNETES or not wanted or wanted == entry.version:
            return entry
        if self._settings.source == "debian":
            raise UserError(
                f"kube_version: {wanted} cannot be built from Debian's source package, which is {entry.version}",
                "use artifacts_source: upstream, mirror or local for other versions",
            )
        return Entry(name, wanted, entry.kind, entry.sources)

    def key(self, entry: Entry) -> str:
        """Under which key an artifact is stored: whatever decides its content is in it."""
        # Images are assembled here from Debian's busybox, whatever the source of the binaries is.
        source = "debian" if entry.kind == "image" else self._settings.source
        if entry.name == FLANNELD:
            return f"flanneld/{entry.version}"
        if source == "debian" and entry.name in KUBERNETES:
            return f"debian/{entry.name}/{kubernetes_build.key(self._lock.kubernetes)}"
        if source == "local":
            state = local.signature(Path(self._settings.directory), _file_name(entry.name))
            return f"local/{entry.name}/{entry.version}/{state}"
        detail = entry.sources.get("debian" if source == "debian" else "upstream", {})
        return f"{source}/{entry.name}/{entry.version}/{detail.get('sha256', '')}"

    def cached(self, name: str) -> Artifact | None:
        """The artifact if it is in the store; a directory of the user's is read anew when its files changed."""
        entry = self._entry(name)
        found = self._store.find(self.key(entry))
        return self._artifact(entry, *found) if found else None

    def version(self, name: str) -> str:
        """Version that would be obtained."""
        return self._entry(name).version

    def _artifact(self, entry: Entry, sha256: str, image: dict[str, str]) -> Artifact:
        path = self._store.path_of(sha256)
        return Artifact(entry.name, entry.version, path, sha256, path.stat().st_size, entry.kind, image or None)

    def obtain(self, names: Collection[str]) -> dict[str, Artifact]:
        """All of them; what is missing is fetched or built."""
        found = {name: self.cached(name) for name in names}
        missing = [name for name, artifact in found.items() if artifact is None]
        self._check_published(missing)
        for name in missing:
            entry = self._entry(name)
            if name not in KUBERNETES or self._settings.source != "debian":
                self._progress(f"{name} {entry.version} from {self._origin(entry)}")
            found[name] = self._artifact(entry, *self._get(entry))
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    def _check_published(self, names: Collection[str]) -> None:
        """Before anything is downloaded: every file whose sha256 nobody publishes and the lock file does not give."""
        if self._settings.source != "upstream":
            return
        entries = [self._entry(name) for name in names if name not in KUBERNETES and name != FLANNELD]
        details = [entry.sources.get("upstream", {}) for entry in entries if entry.kind != "image"]
        urls = sorted({str(d["url"]) for d in details if d and not d.get("sha256") and not d.get("checksum")})
        if urls:
            raise UserError(
                f"no sha256 is published of {', '.join(urls)}",
                f"get it from a place you trust and write it as `sha256:` beside each such `url:` in "
                f"{self._settings.lock_file}; or use artifacts_source: local or mirror",
            )

    def _origin(self, entry: Entry) -> str:
        if entry.name == FLANNELD:
            return "this repository"
        return "Debian's busybox" if entry.kind == "image" else self._settings.source

    def _get(self, entry: Entry) -> tuple[str, dict[str, str]]:
        if entry.name == FLANNELD:
            return self._flanneld(entry)
        if entry.kind == "image":
            return self._image(entry)
        if self._settings.source == "debian":
            return self._debian(entry)
        if self._settings.source == "local":
            return self._local(entry)
        return self._download(entry)

    def _add(self, entry: Entry, stream: BinaryIO, expected: str = "") -> tuple[str, dict[str, str]]:
        return self._store.add(self.key(entry), stream, expected), {}

    def _flanneld(self, entry: Entry) -> tuple[str, dict[str, str]]:
        from kubewright import pyz  # noqa: PLC0415 - imports flanneld's dependencies, which only this one needs

        with tempfile.TemporaryDirectory() as directory:
            built = pyz.build_flanneld(Path(directory) / FLANNELD)
            return self._add(entry, io.BytesIO(built.read_bytes()))

    def _package(self, entry: Entry, directory: Path) -> Path:
        detail = entry.sources["debian"]
        deb = self._apt.fetch(detail["package"], detail["version"], detail["sha256"])
        debian.unpack(deb, directory)
        path = directory / str(detail["member"])
        if not path.is_file():
            raise UserError(f"{deb.name} has no {detail['member']}", "correct artifacts.lock.yml")
        return path

    def _debian(self, entry: Entry) -> tuple[str, dict[str, str]]:
        if entry.name in KUBERNETES:
            builder = kubernetes_build.Builder(
                self._settings.cache / "build", self._lock.kubernetes, self._apt, self._progress
            )
            paths = builder.result() or builder.build()
            with paths[entry.name].open("rb") as stream:
                return self._add(entry, stream, builder.digest(entry.name))
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as directory:
            path = self._package(entry, Path(directory))
            with path.open("rb") as stream:
                return self._add(entry, stream)

    def _image(self, entry: Entry) -> tuple[str, dict[str, str]]:
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as directory:
            busybox = self._package(entry, Path(directory))
            archive, identity = images.assemble(
                entry.name, entry.reference, busybox.read_bytes(), images.applets_of(busybox), self._lock.architecture
            )
        image = {"reference": entry.reference, "id": identity}
        return self._store.add(self.key(entry), io.BytesIO(archive), metadata=image), image

    def _local(self, entry: Entry) -> tuple[str, dict[str, str]]:
        name = _file_name(entry.name)
        with local.find(Path(self._settings.directory), name) as (stream, published):
            head = stream.read(20)
            found = local.architecture(head)
            if found and found != self._lock.architecture:
                raise UserError(
                    f"{name} in {self._settings.directory} is for {found}, the machines are {self._lock.architecture}",
                    "take the release for the machines' architecture",
                )
            rest = _Joined(head, stream)
            return self._add(entry, rest, published)  # type: ignore[arg-type]

    def _download(self, entry: Entry) -> tuple[str, dict[str, str]]:
        detail = self._upstream(entry)
        url = detail["url"]
        file_name = url.rpartition("/")[2]
        if self._settings.source == "mirror":
            if not self._settings.mirror_url:
                raise UserError("artifacts_mirror_url is empty", "set it to the base URL of your mirror")
            url = f"{self._settings.mirror_url.rstrip('/')}/{file_name}"
            # A mirror stands in for a network that is out of reach: its checksums are the mirror's too.
            detail = {**detail, "checksum": f"{url}.sha256"}
        directory = self._settings.cache / "download"
        expected = detail.get("sha256", "")
        if not expected and detail.get("checksum"):
            expected = download.published_checksum(detail["checksum"], file_name, self._progress, directory)
        if not expected:
            raise UserError(
                f"{entry.name}: the release publishes no sha256 of {file_name}",
                "download it once from a place you trust and write its sha256 into artifacts.lock.yml",
            )
        target = directory / f"{expected[:12]}-{file_name}"
        archive_key = f"archive/{expected}"
        known = self._store.find(archive_key)
        if not known:
            download.fetch(url, target, self._progress)
            with target.open("rb") as stream:
                try:
                    self._store.add(archive_key, stream, expected)
                finally:
                    target.unlink()
        path = self._store.path_of(expected)
        if not detail.get("member"):
            with path.open("rb") as stream:
                return self._add(entry, stream, expected)
        with tarfile.open(path) as tar:
            try:
                member = tar.extractfile(detail["member"])
            except KeyError:
                member = None
            if member is None:
                raise UserError(f"{file_name} has no {detail['member']}", "correct artifacts.lock.yml")
            return self._add(entry, member)  # type: ignore[arg-type]

    def _upstream(self, entry: Entry) -> dict[str, str]:
        detail = entry.sources.get("upstream")
        if entry.name in KUBERNETES:
            base = self._lock.kubernetes["upstream"].format(version=entry.version, architecture=self._lock.architecture)
            url = f"{base}/{entry.name}"
            return {"url": url, "checksum": f"{url}.sha256"}
        if not detail:
            raise UserError(f"{entry.name} has no upstream source", "use artifacts_source: debian or local")
        return {key: str(value) for key, value in detail.items()}


class _Joined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        return head or self._rest.read(size)


def _file_name(artifact: str) -> str:
    return artifact.removeprefix("cni-")


def flanneld_version() -> str:
    """kubewright's version with a digest of what goes into the daemon's file."""
    digest = hashlib.sha256(metadata.version("pyroute2").encode())
    source = Path(__file__).parent.parent
    for path in [source / "pyz.py", *sorted((source.parent / "flanneld").rglob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return f"{metadata.version('kubewright')}-{digest.hexdigest()[:8]}"


def ensure(names: Collection[str], settings: Settings, progress: Progress) -> dict[str, Artifact]:
    """Name -> verified artifact. UserError when one cannot be had; the store never holds a bad file."""
    return Catalog(settings, progress).obtain(names)


def all_names(settings: Settings) -> list[str]:
    """Every artifact of the lock file, and flanneld."""
    return [*load(settings.lock_file).entries, FLANNELD]
