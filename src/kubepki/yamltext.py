"""YAML of strangers: libyaml's composer calls itself for each level, and overflows the stack of the process."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 50


def load(text: str, *, texts_only: bool = False) -> Any:
    """The data in a YAML text; with `texts_only` each value is a text. yaml.YAMLError, also when it is nested deeply;
    ValueError for numbers and dates that are none.
    """
    name = "BaseLoader" if texts_only else "SafeLoader"
    loader = getattr(yaml, f"C{name}", getattr(yaml, name))
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} levels deep")
    return yaml.load(text, loader)  # noqa: S506 - one of the two safe ones
