"""From a name to a verified file: which source, and what it takes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from kubewright import pyz
from kubewright.artifacts import debian, elf, images, kubernetes_build, kubernetes_version
from kubewright.artifacts.download import check_address
from kubewright.artifacts.heartbeat import Heartbeat
from kubewright.artifacts.local import LocalDirectory
from kubewright.artifacts.lock import KUBERNETES, Entry, Lock, load
from kubewright.artifacts.releases import Releases
from kubewright.artifacts.store import Artifact, Store, WrongContentError
from kubewright.cache import cache_directory
from kubewright.errors import UserError
from kubewright.versions import Version

SOURCES = ("upstream", "mirror", "local", "debian")
FLANNELD = "flanneld"
_BUSYBOX = "busybox"
# What comes from the same place whatever the source is.
_HERE, _USERS_BUSYBOX, _DEBIANS_BUSYBOX = "this repository", "busybox of artifacts_dir", "Debian's busybox"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Where artifacts come from. `kubernetes_version` empty: the locked one. `directory`: artifacts_dir."""

    source: str
    lock_file: Path
    mirror_url: str = ""
    directory: str = ""
    kubernetes_version: str = ""
    cache: Path = field(default_factory=cache_directory)

    def check(self) -> None:
        """UserError when they contradict each other."""
        if self.source not in SOURCES:
            raise UserError(f"artifacts_source: {self.source!r}", f"it must be one of {', '.join(SOURCES)}")
        if self.source == "mirror":
            if not self.mirror_url:
                raise UserError("artifacts_mirror_url is empty", "set it to the base URL of your mirror")
            check_address("artifacts_mirror_url", self.mirror_url)
        if self.source == "local" and not self.directory:
            raise UserError("artifacts_dir is empty", "set it to the directory with the releases' binaries or archives")
        try:
            Path(self.directory).expanduser()
        except RuntimeError as error:
            raise UserError(f"artifacts_dir: {self.directory!r}: {error}", "write the path in full") from error


class Catalog:
    """Obtains artifacts for one run."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        settings.check()
        self._settings = settings
        self._progress = progress = Heartbeat(progress)
        self._lock: Lock = load(settings.lock_file)
        self._store = Store(settings.cache)
        self._directory = LocalDirectory(Path(settings.directory).expanduser())
        self._apt = debian.Apt(debian.place(settings.cache, self._lock.suites), progress, self._lock.suites)
        self._builder = kubernetes_build.Builder(
            settings.cache / "build", self._lock, self._apt, self._store.scratch, progress
        )
        mirror = settings.mirror_url if settings.source == "mirror" else ""
        self._releases = Releases(self._lock, self._store, settings.cache / "download", mirror, progress)

    def _entry(self, name: str) -> Entry:
        if name == FLANNELD:
            return Entry(FLANNELD, flanneld_version(), "binary", {})
        entry = self._lock.entry(name)
        if name not in KUBERNETES or not self._settings.kubernetes_version:
            return entry
        wanted = str(Version.parse(self._settings.kubernetes_version))
        if wanted == entry.version.partition("+")[0]:
            return entry
        if self._settings.source == "debian":
            raise UserError(
                f"kube_version: {wanted} cannot be built from Debian's source package, which is {entry.version}",
                "use artifacts_source: upstream, mirror or local for other versions",
            )
        return Entry(name, wanted, entry.kind, entry.sources)

    def _origin(self, entry: Entry) -> str:
        """Where this artifact comes from: a source, or one of those that are the same whatever the source is."""
        if entry.name == FLANNELD:
            return _HERE
        if entry.kind == "image":
            return _USERS_BUSYBOX if self._own_busybox() else _DEBIANS_BUSYBOX
        return self._settings.source

    def _own_busybox(self) -> bool:
        return bool(self._settings.directory) and self._directory.holds(_BUSYBOX)

    def key(self, name: str) -> str:
        """Under which key an artifact is stored: whatever decides its content is in it."""
        entry = self._entry(name)
        source = self._settings.source
        if name == FLANNELD:
            return f"flanneld/{entry.version}"
        if entry.kind == "image":
            base = (
                self._directory.signature(_BUSYBOX) if self._own_busybox() else str(entry.sources["debian"]["sha256"])
            )
            return f"image/{name}/{entry.version}/{images.recipe(name, entry.reference)}/{base}"
        if source == "debian" and name in KUBERNETES:
            return f"debian/{name}/{kubernetes_build.key(self._lock.kubernetes)}"
        if source == "local":
            return f"local/{name}/{entry.version}/{self._directory.signature(_file_name(name))}"
        detail = entry.sources.get("debian" if source == "debian" else "upstream", {})
        content = detail.get("sha256") or self._place(detail)
        return f"{source}/{name}/{entry.version}/{content}"

    def _place(self, detail: Mapping[str, Any]) -> str:
        """Digest of where a file comes from whose content is only known there."""
        url = str(detail.get("url") or self._lock.kubernetes["upstream"])
        mirror = self._settings.mirror_url.rstrip("/") if self._settings.source == "mirror" else ""
        return hashlib.sha256(f"{mirror} {url}".encode()).hexdigest()[:16]

    def cached(self, name: str) -> Artifact | None:
        """The artifact if it is in the store; a directory of the user's is read anew when its files changed."""
        found = self._store.find(self.key(name))
        if not found:
            return None
        sha256, image = found
        entry = self._entry(name)
        path = self._store.path_of(sha256)
        return Artifact(name, entry.version, path, sha256, path.stat().st_size, entry.kind, image or None)

    def version(self, name: str) -> str:
        """Version that would be obtained."""
        return self._entry(name).version

    def kind(self, name: str) -> str:
        """`binary` or `image`."""
        return self._entry(name).kind

    def obtain(self, names: Collection[str]) -> dict[str, Artifact]:
        """All of them; what is missing is fetched or built."""
        found = {name: self.cached(name) for name in names}
        missing = [name for name, artifact in found.items() if artifact is None]
        if missing:
            with self._progress.beating("looking where the artifacts are"):
                self._check_possible([self._entry(name) for name in missing])
                found.update((name, self._obtain(name)) for name in missing)
        self._store.use([self.key(name) for name in names])
        return {name: artifact for name, artifact in found.items() if artifact}

    def _obtain(self, name: str) -> Artifact:
        entry = self._entry(name)
        if not self._is_built(entry):
            self._progress(f"{name} {entry.version} from {self._origin(entry)}")
        self._get(entry)
        artifact = self.cached(name)
        if artifact is None:
            raise UserError(f"{name}: its files changed while they were read", "run again when they are complete")
        self._check_version(artifact)
        return artifact

    def _is_built(self, entry: Entry) -> bool:
        return entry.name in KUBERNETES and self._settings.source == "debian"

    def _check_possible(self, missing: Collection[Entry]) -> None:
        """Before anything is downloaded or built: everything that cannot be had at all, as a UserError."""
        source = self._settings.source
        packaged = [e for e in missing if self._origin(e) in ("debian", _DEBIANS_BUSYBOX) and not self._is_built(e)]
        details = [entry.sources.get("debian", {}) for entry in packaged]
        packages = [
            (d["package"], d["version"]) for d in details if d and not self._apt.has(d["package"], d["version"])
        ]
        sources: list[tuple[str, str]] = []
        if any(self._is_built(entry) for entry in missing) and not self._builder.result():
            toolchain, sources = self._builder.requirements()
            packages += toolchain
        if packages or sources:
            self._apt.require(packages, sources)
        if source in ("upstream", "mirror"):
            self._releases.check_published([e for e in missing if self._origin(e) == source])

    def _get(self, entry: Entry) -> None:
        """Put an artifact into the store."""
        if entry.name == FLANNELD:
            self._flanneld(entry)
        elif entry.kind == "image":
            self._image(entry)
        elif self._is_built(entry):
            self._build(entry)
        elif self._settings.source == "debian":
            self._package(entry)
        elif self._settings.source == "local":
            self._local(entry)
        else:
            self._releases.get(entry, self.key(entry.name))

    def _check_version(self, artifact: Artifact) -> None:
        """UserError when it is another release of Kubernetes than the one that would be configured."""
        if artifact.name not in kubernetes_version.SPEAKING:
            return
        said = kubernetes_version.said_by(artifact.path)
        if said and said != artifact.version.partition("+")[0]:
            # It stays content of the store, but is not what this key stands for.
            self._store.forget([self.key(artifact.name)])
            place = self._settings.directory if self._settings.source == "local" else self._settings.mirror_url
            raise UserError(
                f"{artifact.name} of {place or self._settings.source} is Kubernetes {said}, kube_version is "
                f"{artifact.version}",
                f"set kube_version: '{said}', or get the files of {artifact.version}",
            )

    def _flanneld(self, entry: Entry) -> None:

        with self._store.scratch.directory() as directory, pyz.build_flanneld(directory / FLANNELD).open("rb") as built:
            self._store.add(self.key(entry.name), built)

    def _unpacked(self, entry: Entry, directory: Path) -> Path:
        """The artifact's file out of its Debian package."""
        detail = entry.sources.get("debian")
        if not detail:
            raise UserError(f"{entry.name} has no Debian source", "use artifacts_source: upstream, mirror or local")
        deb = self._apt.fetch(detail["package"], detail["version"], detail["sha256"])
        debian.unpack(deb, directory)
        path = directory / str(detail["member"])
        if not path.is_file():
            raise UserError(f"{deb.name} has no {detail['member']}", f"correct {self._lock.path}")
        return path

    def _package(self, entry: Entry) -> None:
        with (
            self._store.scratch.directory() as directory,
            self._unpacked(entry, directory).open("rb") as stream,
        ):
            self._store.add(self.key(entry.name), stream)

    def _build(self, entry: Entry) -> None:
        path, claim = (self._builder.result() or self._builder.build())[entry.name]
        try:
            with path.open("rb") as stream:
                self._store.add(self.key(entry.name), stream, claim)
        except WrongContentError:
            self._builder.discard()
            raise

    def _image(self, entry: Entry) -> None:
        with self._store.scratch.directory() as directory:
            busybox = self._users_busybox(directory) if self._own_busybox() else self._unpacked(entry, directory)
            applets = images.applets_of(busybox)
            archive, identity = images.assemble(
                entry.name, entry.reference, busybox.read_bytes(), applets, self._lock.architecture
            )
        image = {"reference": entry.reference, "id": identity}
        self._store.add(self.key(entry.name), io.BytesIO(archive), metadata=image)

    def _users_busybox(self, directory: Path) -> Path:
        with self._directory.find(_BUSYBOX) as (stream, claim):
            self._check_architecture(_BUSYBOX, stream)
            content = stream.read()
        if claim:
            claim.check(hashlib.sha256(content).hexdigest())
        if not elf.is_static(content):
            raise UserError(
                f"{_BUSYBOX} in {self._settings.directory} is not a statically linked program",
                "take the one of Debian's package busybox-static: images have no libraries",
            )
        busybox = directory / _BUSYBOX
        busybox.write_bytes(content)
        busybox.chmod(0o755)
        return busybox

    def _local(self, entry: Entry) -> None:
        name = _file_name(entry.name)
        with self._directory.find(name) as (stream, claim):
            self._check_architecture(name, stream)
            self._store.add(self.key(entry.name), stream, claim)

    def _check_architecture(self, name: str, stream: IO[bytes]) -> None:
        found = elf.architecture(stream)
        if found and found != self._lock.architecture:
            raise UserError(
                f"{name} in {self._settings.directory} is for {found}, the machines are {self._lock.architecture}",
                "take the release for the machines' architecture",
            )


def _file_name(artifact: str) -> str:
    return artifact.removeprefix("cni-")


def flanneld_version() -> str:
    """kubewright's version with a digest of what goes into the daemon's file."""
    return f"{metadata.version('kubewright')}-{pyz.recipe()[:8]}"


def ensure(names: Collection[str], settings: Settings, progress: Progress) -> dict[str, Artifact]:
    """Name -> verified artifact. UserError when one cannot be had; the store never holds a bad file."""
    return Catalog(settings, progress).obtain(names)


def all_names(settings: Settings) -> list[str]:
    """Every artifact of the lock file, and flanneld."""
    return [*load(settings.lock_file).entries, FLANNELD]


def keys_of(lock_file: Path, cache: Path) -> set[str]:
    """Under which keys the artifacts of a lock file are stored, from whatever source but directories."""
    entries = load(lock_file).entries
    keys: set[str] = set()
    for source in ("upstream", "debian"):
        found = Catalog(Settings(source, lock_file, cache=cache), lambda _: None)
        keys.update(found.key(name) for name in [*entries, FLANNELD])
    # Which mirrors they came from is not known here.
    mirrored = tuple(f"mirror/{entry.name}/{entry.version}/" for entry in entries.values())
    keys.update(key for key in Store(cache).last_uses() if key.startswith(mirrored))
    return keys
