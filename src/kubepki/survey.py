"""Finds and reads: every certificate below some paths, with the keys beside them. The effects of `check` are here.

Nothing that lies there may stop it: pipes are not opened, reads are bounded, directories behind links and other file
systems (volumes of pods, which may hang) are not entered, and what cannot be read is told as a `Trouble`.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubepki import contents, facts
from kubepki.contents import Contents, Entry, KeyPiece, Reference
from kubepki.facts import Facts

_LARGEST = 10 * 2**20
_HEAD = 4096
# Where the key of a certificate lies: (end of the certificate's name, end of the key's name), the first that exists.
_PARTNERS = (
    ("cert.pem", "key.pem"),
    (".pem", "-key.pem"),
    (".pem", ".key"),
    (".crt", ".key"),
    (".crt", "-key.pem"),
    (".cer", ".key"),
    (".der", ".key"),
)
# The kubelet leaves its former pairs beside the present one, to which a link leads.
_FORMER = re.compile(r"(.+)-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d\.pem")
_KEY_NAME = re.compile(r"(.*[-_.]|priv)?key(\.pem)?")


@dataclass(frozen=True)
class Place:
    """Where a certificate is: the `index`th (from 1) in a file, or of what an `entry` of a kubeconfig holds or names.

    `replaced_by`: the path of what took this file's place, empty when it is in use.
    """

    path: str
    index: int
    kubeconfig: str = ""
    entry: str = ""
    replaced_by: str = ""


@dataclass(frozen=True)
class KeyFound:
    """The private key that belongs to a certificate by its place; `path` is its file's."""

    path: str
    piece: KeyPiece


@dataclass(frozen=True)
class Sighting:
    """A certificate at a place. `key`: None when none lies there, or none could be read."""

    place: Place
    certificate: x509.Certificate = field(repr=False)
    facts: Facts
    encoded: bytes = field(repr=False)
    key: KeyFound | None = None


@dataclass(frozen=True)
class Trouble:
    """Something that could not be looked at, or is damaged.

    `kind`: `absent`, `unreadable`, `unreadable-key`, `not-a-file`, `too-large`, `elsewhere` (another file system),
    `dangling`, `damaged`, `reference` (a kubeconfig names what is not there). `named`: the user asked for this path.
    """

    kind: str
    path: str
    text: str
    named: bool = False


@dataclass(frozen=True)
class Survey:
    """All that was found; `key_modes`: path and mode of every file with a private key, `files`: how many were seen."""

    sightings: tuple[Sighting, ...]
    troubles: tuple[Trouble, ...]
    key_modes: tuple[tuple[str, int], ...]
    files: int
    kubeconfigs: int


@dataclass(frozen=True)
class _File:
    path: str
    mode: int
    contents: Contents


def find(paths: Iterable[str], ignore: Sequence[str] = ()) -> Survey:
    """Look through files and directories. `ignore`: patterns of the shell's for whole paths or last parts of them."""
    search = _Search(ignore)
    for path in paths:
        search.start(path)
    return search.survey()


class _Search:
    def __init__(self, ignore: Sequence[str]) -> None:
        self._ignored = [re.compile(fnmatch.translate(pattern)) for pattern in ignore]
        self._files: dict[str, _File | Trouble | None] = {}
        self._entered: set[tuple[int, int]] = set()
        self._troubles: dict[tuple[str, str, str], Trouble] = {}
        self._facts: dict[bytes, Facts] = {}
        # What kubeconfigs hold themselves.
        self._inside: list[_File] = []
        self._looked = 0

    def start(self, path: str) -> None:
        if not path:
            self._trouble("absent", "''", "is no path", named=True)
            return
        top = os.path.abspath(path)  # noqa: PTH100 - without following links, which Path.resolve() does
        try:
            found = os.stat(top)  # noqa: PTH116 - paths are texts here: thousands of Path objects cost more than the reading
        except FileNotFoundError:
            self._trouble("absent", top, "does not exist", named=True)
        except OSError as error:
            self._trouble("unreadable", top, _cause(error), named=True)
        else:
            if stat.S_ISDIR(found.st_mode):
                self._walk(top, found)
            else:
                self._look(top, named=True)

    def _skipped(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(pattern.match(path) or pattern.match(name) for pattern in self._ignored)

    def _walk(self, top: str, found: os.stat_result) -> None:
        waiting = [(top, found)]
        while waiting:
            directory, status = waiting.pop()
            if (status.st_dev, status.st_ino) in self._entered:
                continue
            self._entered.add((status.st_dev, status.st_ino))
            if status.st_dev != found.st_dev:
                self._trouble("elsewhere", directory, "is on another file system and was not entered")
                continue
            try:
                with os.scandir(directory) as entries:
                    children = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._trouble("unreadable", directory, _cause(error), named=directory == top)
                continue
            below = []
            for child in children:
                if self._skipped(child.path):
                    continue
                try:
                    if child.is_dir(follow_symlinks=False):
                        below.append((child.path, child.stat(follow_symlinks=False)))
                    elif child.is_file():
                        self._look(child.path)
                    elif child.is_symlink() and child.name.endswith((*contents.MEANT, ".key", ".conf", ".kubeconfig")):
                        self._link(child.path)
                except OSError as error:
                    self._trouble("unreadable", child.path, _cause(error))
            waiting += reversed(below)

    def _link(self, path: str) -> None:
        """A link to anything but a file: a directory is fine, a target that is not there is not."""
        if not os.path.lexists(path) or os.path.exists(path):  # noqa: PTH110 - see start
            return
        self._trouble("dangling", path, f"is a link to {os.readlink(path)}, which is not there")  # noqa: PTH115

    def _look(self, path: str, *, named: bool = False) -> None:
        """Read a file that is part of the search."""
        self._looked += path not in self._files
        found = self._file(path, named=named)
        if isinstance(found, Trouble):
            self._troubles[found.kind, found.path, found.text] = found

    def _file(self, path: str, *, named: bool = False) -> _File | Trouble | None:
        """A file, read once; None when it is none of ours."""
        if path not in self._files:
            self._files[path] = _read(path, named=named)
        return self._files[path]

    def _trouble(self, kind: str, path: str, text: str, *, named: bool = False) -> None:
        path, text = facts.plain(path), facts.plain(text)
        self._troubles[kind, path, text] = Trouble(kind, path, text, named)

    def survey(self) -> Survey:
        """What there is in the end, kubeconfigs' references followed."""
        sightings: list[Sighting] = []
        kubeconfigs = 0
        for _, found in sorted(self._files.items()):
            if not isinstance(found, _File):
                continue
            sightings += self._of_file(found)
            if found.contents.kubeconfig is not None:
                kubeconfigs += 1
                for entry in found.contents.kubeconfig:
                    sightings += self._of_entry(found, entry)
        # Now with the keys and the files that the loop came upon.
        files = [found for found in self._files.values() if isinstance(found, _File)]
        for found in files:
            for problem in found.contents.problems:
                self._trouble("damaged", found.path, problem)
        files += self._inside
        for found in files:
            for piece in found.contents.keys:
                if piece.problem:
                    self._trouble("damaged", found.path, piece.problem)
        return Survey(
            sightings=tuple(sightings),
            troubles=tuple(sorted(self._troubles.values(), key=lambda one: (one.path, one.text))),
            key_modes=tuple(sorted({(facts.plain(found.path), found.mode) for found in files if _has_key(found)})),
            files=self._looked,
            kubeconfigs=kubeconfigs,
        )

    def _of_file(self, found: _File) -> Iterator[Sighting]:
        certificates = found.contents.certificates
        if not certificates:
            return
        replaced_by = _replaced_by(found.path)
        key = KeyFound(facts.plain(found.path), found.contents.keys[0]) if found.contents.keys else None
        key = key or self._beside(found.path)
        for index, certificate in enumerate(certificates, 1):
            # A file's key is for the first of its certificates; the others complete its chain (Go, tls.X509KeyPair).
            yield self._sighting(
                Place(facts.plain(found.path), index, replaced_by=replaced_by), certificate, key if index == 1 else None
            )

    def _beside(self, path: str) -> KeyFound | None:
        for end, key_end in _PARTNERS:
            if not path.endswith(end):
                continue
            beside = path.removesuffix(end) + key_end
            if beside == path or self._skipped(beside) or not os.path.isfile(beside):  # noqa: PTH113
                continue
            found = self._file(beside)
            if isinstance(found, _File) and found.contents.keys:
                return KeyFound(facts.plain(beside), found.contents.keys[0])
            if isinstance(found, Trouble):
                self._troubles[found.kind, found.path, found.text] = found
            elif found is None or not found.contents.problems:
                self._trouble("damaged", beside, "holds no private key, as its name promises")
            return None
        return None

    def _of_entry(self, config: _File, entry: Entry) -> Iterator[Sighting]:
        if not entry.certificate:
            return
        found = self._referred(config, entry, entry.certificate)
        if not found:
            return
        key = None
        if entry.key and (file := self._referred(config, entry, entry.key)) and file.contents.keys:
            key = KeyFound(facts.plain(file.path), file.contents.keys[0])
        if not found.contents.certificates and not found.contents.problems:
            self._trouble("damaged", config.path, f"{entry}: holds no certificate in PEM")
        for index, certificate in enumerate(found.contents.certificates, 1):
            place = Place(facts.plain(found.path), index, facts.plain(config.path), str(entry))
            yield self._sighting(place, certificate, key if index == 1 else None)

    def _referred(self, config: _File, entry: Entry, reference: Reference) -> _File | None:
        """The file that a kubeconfig names, or holds itself."""
        if reference.problem:
            self._trouble("damaged", config.path, f"{entry}: {reference.problem}")
            return None
        if not reference.path:
            inside = _File(config.path, config.mode, contents.read(reference.data, ""))
            self._inside.append(inside)
            for problem in inside.contents.problems:
                self._trouble("damaged", config.path, f"{entry}: {problem}")
            return inside
        if "\0" in reference.path:
            self._trouble("damaged", config.path, f"{entry}: names {reference.path!r}")
            return None
        path = os.path.normpath(os.path.join(os.path.dirname(config.path), reference.path))  # noqa: PTH118, PTH120
        found = self._file(path)
        if isinstance(found, _File):
            return found
        what = f"{entry}: names {reference.path}, which"
        if isinstance(found, Trouble) and found.kind in ("unreadable", "unreadable-key"):
            self._troubles[found.kind, found.path, found.text] = found
        else:
            self._trouble("reference", config.path, f"{what} {found.text if found else 'holds no certificate or key'}")
        return None

    def _sighting(self, place: Place, certificate: x509.Certificate, key: KeyFound | None) -> Sighting:
        encoded = certificate.public_bytes(Encoding.DER)
        if encoded not in self._facts:
            self._facts[encoded] = facts.of(certificate)
        return Sighting(place, certificate, self._facts[encoded], encoded, key)


def _has_key(found: _File) -> bool:
    return any(not piece.encrypted for piece in found.contents.keys)


def _replaced_by(path: str) -> str:
    match = _FORMER.fullmatch(path)
    current = f"{match[1]}-current.pem" if match else ""
    if not current or not os.path.islink(current) or not os.path.exists(current):  # noqa: PTH110, PTH114
        return ""
    return "" if os.path.realpath(current) == os.path.realpath(path) else facts.plain(current)


def _cause(error: OSError) -> str:
    return f"cannot be read: {error.strerror or type(error).__name__}"


def _read(path: str, *, named: bool) -> _File | Trouble | None:
    shown = facts.plain(path)
    try:
        # To open a device may do something.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return Trouble("not-a-file", shown, "is no file", named) if named else None
        # Should it have become a pipe by now: one without a writer would hold up whoever opens it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(handle, "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            content = _content(stream.fileno(), status.st_size, path)
    except FileNotFoundError:
        return Trouble("absent", shown, "does not exist", named)
    except (PermissionError, BlockingIOError) as error:
        is_key = isinstance(error, PermissionError) and _KEY_NAME.fullmatch(path.rpartition("/")[2])
        return Trouble("unreadable-key" if is_key and not named else "unreadable", shown, _cause(error), named)
    except OSError as error:
        return Trouble("unreadable", shown, _cause(error), named)
    if content is None:
        return Trouble("too-large", shown, f"is larger than {_LARGEST // 2**20} MB and was not read", named)
    found = contents.read(content, path)
    return _File(path, status.st_mode, found) if found else None


def _content(handle: int, size: int, path: str) -> bytes | None:
    """The bytes of a file that may hold something, None for too many. Programs are known by their first bytes."""
    meant = path.endswith(contents.MEANT)
    head = os.read(handle, _HEAD)
    if b"\0" in head and head[:1] != b"\x30" and not meant:
        return b""
    if size > _LARGEST:
        return None
    parts = [head]
    length = len(head)
    while parts[-1] and length <= _LARGEST:
        parts.append(os.read(handle, 2**20))
        length += len(parts[-1])
    return b"".join(parts) if length <= _LARGEST else None
