"""Where artifacts come from, as tasks of Ansible say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubewright.artifacts.catalog import Settings
from kubewright.errors import UserError

_ROOT = Path(__file__).resolve().parents[3]
# In a directory or URL it stands for the release of Kubernetes: an upgrade over several needs the files of each.
_VERSION = "{version}"


def of(arguments: Mapping[str, Any]) -> Settings:
    """The settings of the arguments source, lock_file, mirror_url, directory and kubernetes_version of a task."""
    version = str(arguments.get("kubernetes_version") or "")
    named = str(arguments.get("lock_file") or "")
    try:
        lock_file = Path(named).expanduser().absolute() if named else _ROOT / "artifacts.lock.yml"
    except RuntimeError as error:
        raise UserError(f"artifacts_lock: {named!r}: {error}", "write the path in full") from error
    if not lock_file.is_file():
        raise UserError(f"artifacts_lock: {named!r} is no file", "name a lock file, such as artifacts.lock.yml")
    return Settings(
        source=str(arguments["source"]),
        lock_file=lock_file,
        mirror_url=str(arguments.get("mirror_url") or "").replace(_VERSION, version),
        directory=str(arguments.get("directory") or "").replace(_VERSION, version),
        kubernetes_version=version,
    )
