"""Artifacts of a run, obtained on the controller and handed out as the fact `artifacts`."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from kubewright.artifacts import settings
from kubewright.artifacts.catalog import Catalog
from kubewright.artifacts.store import Artifact
from kubewright.errors import UserError


class ActionModule(ActionBase):
    """Runs once, in the controller's own process; shows progress while it works."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the fact; in check mode what is missing has no path, no digest and no size."""
        super().run(tmp, task_vars)
        arguments = self._task.args
        try:
            catalog = Catalog(settings.of(arguments), Display().display)
            found = {str(name): catalog.cached(str(name)) for name in arguments["names"]}
            missing = [name for name, artifact in found.items() if artifact is None]
            if not self._task.check_mode:
                found.update(catalog.obtain(list(found)))
            facts = {name: _fact(catalog, name, artifact) for name, artifact in found.items()}
            versions = "".join(f"{name} {fact['version']}\n" for name, fact in facts.items() if name in missing)
        except UserError as error:
            return {"failed": True, "msg": str(error)}
        result = {"changed": bool(missing), "missing": missing, "ansible_facts": {"artifacts": facts}}
        if missing and self._task.diff:
            result["diff"] = {"before_header": "cache", "after_header": "cache", "before": "", "after": versions}
        return result


def _fact(catalog: Catalog, name: str, artifact: Artifact | None) -> dict[str, Any]:
    return {
        "version": catalog.version(name),
        "kind": catalog.kind(name),
        "path": str(artifact.path) if artifact else "",
        "sha256": artifact.sha256 if artifact else "",
        "size": artifact.size if artifact else 0,
        "image": dict(artifact.image or {}) if artifact else {"reference": name, "id": ""},
    }
