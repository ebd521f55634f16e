"""Official releases over HTTP: from where their projects publish them (`upstream`), or from a mirror of the user's."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from kubewright.artifacts import download
from kubewright.artifacts.alone import alone
from kubewright.artifacts.lock import KUBERNETES, Entry, Lock
from kubewright.artifacts.store import Claim, Store
from kubewright.errors import UserError


@dataclass(frozen=True)
class Location:
    """Where a file is, and what says what it must be: `sha256`, or the URL `checksum` of a file that holds it.

    `member`: the path inside, when the file is an archive.
    """

    url: str
    sha256: str
    checksum: str
    member: str

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]


class Releases:
    """Downloads of one run. An empty `mirror_url`: from the projects themselves. `directory`: for unfinished files."""

    def __init__(
        self, lock: Lock, store: Store, directory: Path, mirror_url: str, progress: Callable[[str], None]
    ) -> None:
        self._lock = lock
        self._store = store
        self._directory = directory
        self._mirror_url = mirror_url
        self._progress = progress

    def location(self, entry: Entry) -> Location:
        """Where the artifact is; UserError when it is nowhere."""
        if entry.name in KUBERNETES:
            base = str(self._lock.kubernetes["upstream"])
            for name, value in (("version", entry.version), ("architecture", self._lock.architecture)):
                base = base.replace(f"{{{name}}}", value)
            detail = {"url": f"{base}/{entry.name}", "checksum": f"{base}/{entry.name}.sha256"}
        elif "upstream" in entry.sources:
            detail = {key: str(value) for key, value in entry.sources["upstream"].items()}
        else:
            raise UserError(f"{entry.name} has no upstream source", "use artifacts_source: debian or local")
        found = Location(detail["url"], detail.get("sha256", ""), detail.get("checksum", ""), detail.get("member", ""))
        if not self._mirror_url:
            return found
        # A mirror stands in for a network that is out of reach: its checksums are the mirror's too.
        url = f"{self._mirror_url.rstrip('/')}/{found.file_name}"
        return Location(url, found.sha256, f"{url}.sha256", found.member)

    def check_published(self, entries: Collection[Entry]) -> None:
        """UserError naming every file whose sha256 neither its project publishes nor the lock file gives."""
        locations = [self.location(entry) for entry in entries]
        urls = sorted({found.url for found in locations if not found.sha256 and not found.checksum})
        if urls:
            raise UserError(
                f"no sha256 is published of {', '.join(urls)}",
                f"get it from a place you trust and write it as `sha256:` beside each such `url:` in "
                f"{self._lock.path}; or use artifacts_source: local or mirror",
            )

    def get(self, entry: Entry, key: str) -> None:
        """Download what is missing and put the artifact into the store under `key`."""
        found = self.location(entry)
        with alone(self._directory / ".lock", "downloading", self._progress):
            expected = found.sha256 or download.published_checksum(
                found.checksum, found.file_name, self._progress, self._directory
            )
            claim = Claim(
                expected,
                found.url,
                "it is damaged, or not the file that was meant, and was thrown away: run again; if it stays so, look "
                "at what is between (proxy, mirror) or at the sha256 of artifacts.lock.yml",
            )
            archive = f"archive/{expected}"
            if not self._store.find(archive):
                self._download(found, archive, claim)
            self._store.use([archive])
            if not found.member:
                self._store.name(key, expected)
        if found.member:
            self._extract(self._store.path_of(expected), found, key)

    def _download(self, found: Location, archive: str, claim: Claim) -> None:
        target = self._directory / f"{claim.sha256[:12]}-{found.file_name}"
        download.fetch(found.url, target, self._progress)
        try:
            with target.open("rb") as stream:
                self._store.add(archive, stream, claim)
        finally:
            target.unlink()

    def _extract(self, archive: Path, found: Location, key: str) -> None:
        try:
            with tarfile.open(archive) as tar:
                member = tar.extractfile(found.member)
                if not member:
                    raise UserError(f"{found.file_name}: {found.member} is no file", f"correct {self._lock.path}")
                self._store.add(key, member)
        except (KeyError, tarfile.TarError) as error:
            raise UserError(
                f"{found.file_name}: no {found.member} in it: {error}", f"correct {self._lock.path}"
            ) from error
