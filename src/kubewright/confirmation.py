"""What has to be said before something that cannot be undone: the name of the cluster that it is done to."""

from __future__ import annotations

from kubewright.errors import UserError


def question(doing: str, name: str) -> str:
    """The prompt where somebody sits at a terminal. `doing` ends a sentence that begins with "This"."""
    return f"This {doing}.\nType the cluster's name, {name}, to go on: "


def check(doing: str, name: str, said: str | None) -> None:
    """UserError unless `said` is the cluster's name; None: nobody has said anything."""
    if said is None:
        raise UserError(f"this {doing}: nothing has been done", f"add -e confirm={name} to the command to do it")
    if said != name:
        raise UserError(
            f"confirm: {said!r} is not the name of this cluster, {name}: nothing has been done",
            "is this the right inventory? cluster_name is its name",
        )
