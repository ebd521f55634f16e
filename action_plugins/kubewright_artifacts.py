"""Artifacts of a run, obtained on the controller and handed out as the fact `artifacts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright.artifacts.catalog import Catalog, Settings
from kubewright.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent


class ActionModule(ActionBase):
    """Runs once, in the controller's own process; shows progress while it works."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return name -> {version, path, sha256, image}; in check mode what is missing has no path and no digest."""
        super().run(tmp, task_vars)
        arguments = self._task.args
        settings = Settings(
            source=str(arguments["source"]),
            lock_file=_ROOT / "artifacts.lock.yml",
            mirror_url=str(arguments.get("mirror_url") or ""),
            directory=str(arguments.get("directory") or ""),
            kubernetes_version=str(arguments.get("kubernetes_version") or ""),
        )
        try:
            catalog = Catalog(settings, Display().display)
            names = [str(name) for name in arguments["names"]]
            if self._task.check_mode:
                found = {name: catalog.cached(name) for name in names}
            else:
                found = dict(catalog.obtain(names))
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        missing = [name for name, artifact in found.items() if artifact is None]
        return {
            "changed": bool(missing),
            "missing": missing,
            "ansible_facts": {
                "artifacts": {
                    name: {
                        "version": artifact.version if artifact else catalog.version(name),
                        "path": str(artifact.path) if artifact else "",
                        "sha256": artifact.sha256 if artifact else "",
                        "image": dict(artifact.image or {}) if artifact else {"reference": name, "id": ""},
                    }
                    for name, artifact in found.items()
                }
            },
        }
