"""What becomes of a cache over the years: nothing damaged stays in it, and nothing that nobody uses.

The cache belongs to all checkouts on a machine, and to runs with settings that nobody here knows. So nothing goes only
because one lock file does not name it: it must also have been unused for a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kubewright.artifacts import kubernetes_build
from kubewright.artifacts.alone import alone
from kubewright.artifacts.store import Store

_DAY_SECONDS = 86400


@dataclass(frozen=True)
class Health:
    """A file of the store, or a build, that was hashed again. `what` names it, `size` in bytes."""

    what: str
    size: int
    good: bool


def verify(cache: Path, progress: Callable[[str], None]) -> Iterator[Health]:
    """Hash everything again; what is damaged is removed. Waits for a build that is under way."""
    for path, keys, size, good in Store(cache).verify():
        yield Health(f"{', '.join(keys) or 'unused'} ({path})", size, good)
    build = cache / "build"
    if kubernetes_build.results(build):
        with alone(build / ".lock", "building Kubernetes", progress):
            for result in kubernetes_build.results(build):
                size = _size(result)
                good = kubernetes_build.is_good(result)
                if not good:
                    shutil.rmtree(result)
                yield Health(f"build of Kubernetes ({result})", size, good)


@dataclass(frozen=True)
class Garbage:
    """What can go: a file or directory, or a key of the store with its file. `last_used`: seconds since the epoch."""

    what: str
    paths: tuple[Path, ...]
    keys: tuple[str, ...]
    size: int
    last_used: float

    def __str__(self) -> str:
        day = datetime.fromtimestamp(self.last_used, UTC).date()
        return f"{self.size >> 20:>6} MiB  last used {day}  {self.what}"


def unused(cache: Path, keep: Collection[str], days: int, now: float) -> list[Garbage]:
    """What no run has used for `days` days, the keys `keep` and what they were made of excepted."""
    store = Store(cache)
    limit = now - days * _DAY_SECONDS
    last_uses = store.last_uses()
    old = sorted(key for key, used in last_uses.items() if used < limit and key not in keep)
    kept_keys = {*keep, *(set(last_uses) - set(old))}
    content = {path.name: path for path in store.unreferenced(old)}
    found = []
    for key in old:
        path = content.pop(store.sha256(key), None)
        paths = (path,) if path else ()
        found.append(Garbage(key, paths, (key,), path.stat().st_size if path else 0, last_uses[key]))
    rest = [path for path in content.values() if _last_change(path) < limit]
    needed = {key.rpartition("/")[2] for key in kept_keys if key.startswith("debian/")}
    build = cache / "build"
    # Sources and Go's cache only spare time, should there ever be another build of them.
    builds = [
        *(p for p in kubernetes_build.results(build) if kubernetes_build.key_of(p) not in needed),
        *kubernetes_build.work_directories(build),
    ]
    rest += [p for p in builds if _last_change(p) < limit]
    for directory in (cache / "download", *sorted(cache.glob("apt*/download"))):
        rest += [p for p in sorted(directory.glob("[!.]*")) if _last_change(p) < limit]
    found += [Garbage(str(path.relative_to(cache)), (path,), (), _size(path), _last_change(path)) for path in rest]
    return found


def collect(
    cache: Path, keep: Collection[str], days: int, now: float, progress: Callable[[str], None]
) -> list[Garbage]:
    """Remove what `unused` finds, and return it; waits for builds and downloads that are under way."""
    build, download, apt = (cache / name / ".lock" for name in ("build", "download", "apt"))
    doing = "filling the cache"
    with alone(build, doing, progress), alone(download, doing, progress), alone(apt, doing, progress):
        store = Store(cache)
        garbage = unused(cache, keep, days, now)
        # First the keys: a key without content is noticed, content without a key would stay for ever.
        store.forget([key for item in garbage for key in item.keys])
        # From a directory of the user's the same content can come again at any time.
        dead = set(store.unreferenced())
        for path in [path for item in garbage for path in item.paths]:
            if path.is_dir():
                shutil.rmtree(path)
            elif path in dead or store.root not in path.parents:
                path.unlink(missing_ok=True)
    return garbage


def _last_change(path: Path) -> float:
    """Of a file, or of what is directly in a directory. Not the time of modification: apt sets it to the archive's."""
    inside = path.iterdir() if path.is_dir() else ()
    return max(float(p.lstat().st_ctime) for p in (path, *inside))


def _size(path: Path) -> int:
    return sum(p.lstat().st_size for p in (path, *path.rglob("*")) if not p.is_dir())
